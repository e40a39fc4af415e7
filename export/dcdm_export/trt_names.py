"""Every name of TensorRT's Python API that this project uses, by class.

One list, so that a test can hold it against the real bindings of a TensorRT release on a machine that cannot run it.
`trt_engine.py` (building, loading) and `dcdm_cli/backends/trt_backend.py` (running) use these and no others.
"""

from __future__ import annotations

MODULE = "module"
USED: dict[str, frozenset[str]] = {
    MODULE: frozenset({"__version__", "nptype"}),
    "ILogger": frozenset({"__init__", "ERROR", "INTERNAL_ERROR", "log"}),
    "Builder": frozenset(
        {"create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"}
    ),
    "INetworkDefinition": frozenset({"num_layers", "get_layer"}),
    "ILayer": frozenset({"type"}),
    "LayerType": frozenset(),
    "IAttentionOutputLayer": frozenset({"attention"}),
    "IAttention": frozenset({"decomposable"}),
    "OnnxParser": frozenset({"parse_from_file", "num_errors", "get_error"}),
    "ParserError": frozenset({"desc"}),
    "IOptimizationProfile": frozenset({"set_shape"}),
    "IBuilderConfig": frozenset(
        {
            "add_optimization_profile",
            "builder_optimization_level",
            "clear_flag",
            "create_timing_cache",
            "get_timing_cache",
            "profiling_verbosity",
            "progress_monitor",
            "set_flag",
            "set_timing_cache",
        }
    ),
    "BuilderFlag": frozenset({"REFIT", "TF32"}),
    "ProfilingVerbosity": frozenset({"DETAILED"}),
    "ITimingCache": frozenset({"serialize"}),
    "IProgressMonitor": frozenset({"__init__", "phase_start", "phase_finish", "step_complete"}),
    "Runtime": frozenset({"deserialize_cuda_engine"}),
    "ICudaEngine": frozenset(
        {
            "create_engine_inspector",
            "create_execution_context",
            "create_serialization_config",
            "get_tensor_dtype",
            "get_tensor_name",
            "get_tensor_profile_shape",
            "num_io_tensors",
            "serialize_with_config",
        }
    ),
    "EngineInspector": frozenset({"get_engine_information"}),
    "LayerInformationFormat": frozenset({"JSON"}),
    "Refitter": frozenset({"get_missing_weights", "refit_cuda_engine"}),
    "OnnxParserRefitter": frozenset({"refit_from_file", "num_errors", "get_error"}),
    "ISerializationConfig": frozenset({"set_flag"}),
    "SerializationFlag": frozenset({"INCLUDE_REFIT"}),
    "IExecutionContext": frozenset({"execute_async_v3", "infer_shapes", "set_input_shape", "set_tensor_address"}),
}
# Used where they exist: 10.12 to 10.16 need the first, releases before 10.14 have no attention layer to mend.
OPTIONAL: dict[str, frozenset[str]] = {
    "NetworkDefinitionCreationFlag": frozenset({"STRONGLY_TYPED"}),
    "LayerType": frozenset({"ATTENTION_OUTPUT"}),
}
