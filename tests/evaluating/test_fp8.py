"""A network in eight bits, on a finished run: quantised by the run's own sampler, judged by its own scorer."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcdm_cli.errors import CapabilityError, NumericalError
from dcdm_cli.generation.engine import open_engine
from dcdm_cli.run.store import RunFolder
from dcdm_cli.stages import fp8
from dcdm_cli.stages.calibrate import probe_points
from dcdm_cli.stages.export import run_export
from dcdm_cli.stages.jobs import open_job
from dcdm_export.finished import read_parity

from .conftest import forced, session_of

EIGHT = {"generate__precision": "fp8", "generate__check": "none"}


def test_recorded_calls_are_the_samplers_over_the_schedule_and_the_difficulties(run: Path) -> None:
    session = session_of(run, generate__steps=5)
    calls = fp8.sampled_calls(session, open_job(session))
    assert 60 <= len(calls) <= 240 and len({call["latents"].shape for call in calls}) == 1
    rows = len(calls[0]["latents"])
    assert rows % fp8.BATCH == 0 and rows > fp8.BATCH  # guided: several calls of an image lie in one
    assert len({float(call["timestep"][0]) for call in calls}) == 5
    asked = {round(float(value), 3) for call in calls for value in call["difficulty"] if value >= 0}
    points = {round(float(point), 3) for point in probe_points(session, fp8.REQUESTS)}
    assert len(asked) >= fp8.REQUESTS - 1 and asked <= points and {min(asked), max(asked)} == {min(points), max(points)}


@pytest.mark.slow
def test_images_judge_it_and_torch_makes_none(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, folder = session_of(run, **EIGHT), RunFolder(run)
    results = run_export(session).results
    assert [network["precision"] for network in results["networks"]] == ["fp8", "fp32", "fp32"]
    assert read_parity(folder.export)["denoiser"]["status"] == "passed"
    assert results["fp8"]["images"] == fp8.REQUESTS * fp8.EACH and results["fp8"]["difficulty_error"] > 0
    config = session.config.generate
    for backend in ("onnxruntime", "openvino"):
        chosen = config.model_copy(update={"backend": backend})
        assert open_engine(folder.adapter, chosen, "cpu", export=folder.export).denoiser.name == backend
    with pytest.raises(CapabilityError, match="torch does not compute in fp8") as refused:
        open_engine(folder.adapter, config.model_copy(update={"backend": "torch"}), "cpu", export=folder.export)
    assert "dcdm export --precision fp8" in refused.value.hint
    monkeypatch.setattr(fp8, "DRIFT", -1.0)  # whatever was found is too much
    with pytest.raises(NumericalError, match="images of the same seeds; allowed") as worse:
        run_export(forced(session))
    assert worse.value.hint == "use --precision fp16" and not (folder.export / "signature.json").exists()
