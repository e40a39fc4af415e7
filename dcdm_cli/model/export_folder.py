"""An export folder as generation uses it: the right adapter's, whole, and unchanged. Needs neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dcdm_cli.errors import MismatchError, NotFoundError
from dcdm_export.signature import SIGNATURE_FILE, ModelFacts, Signature, SignatureError, read_signature, verify

REMEDY = "export again: dcdm export (finished networks that are intact are kept)"


def open_export(
    folder: Path,
    *,
    adapter_hash: str,
    lora_scale: float,
    networks: Iterable[str] | None = None,
    distilled: bool = False,
    extra_lora: str = "",
) -> Signature:
    """The folder's signature, once it fits the adapter in use and the files of `networks` are what was exported.

    networks: all when None; an engine needs none, since its own check covers the graph. distilled: whether one call is
    guided already. extra_lora: identity of the few-step LoRA that is asked for. Raises NotFoundError when nothing was
    exported, MismatchError when it is another adapter's, damaged, incomplete or changed.
    """
    if not (folder / SIGNATURE_FILE).is_file():
        again = "make it first: dcdm export" + (" --guidance distilled" if distilled else "")
        raise NotFoundError(f"no finished export in {folder}", again, file=folder)
    with signature_problems():
        signature = read_signature(folder)
        # first: a distilled adapter is another adapter too, but exporting again would not help
        _check_guidance(folder, signature.model, distilled)
        _check_model(folder, signature.model, adapter_hash, lora_scale)
        _check_extra(folder, signature.model, extra_lora)
        # last, as it reads and hashes whole files
        verify(folder, signature, networks)
    return signature


def decodes_as(wanted: str, exported: str) -> bool:
    """Whether an exported decoder serves `generate.vae_precision`; bf16 stands for an fp16 that overflows."""
    return wanted in ("auto", exported) or (wanted, exported) == ("fp16", "bf16")


@contextmanager
def signature_problems() -> Iterator[None]:
    """Turns SignatureError into the error users see, with the remedy."""
    try:
        yield
    except SignatureError as error:
        raise MismatchError(str(error), REMEDY, file=error.file) from error


def _check_guidance(folder: Path, model: ModelFacts, distilled: bool) -> None:
    if model.distilled != distilled:
        words = {True: "distilled guidance, of one call", False: "guidance by calls"}
        raise MismatchError(
            f"{folder} was exported for {words[model.distilled]}, and generation asks for {words[distilled]}",
            f"dcdm export --guidance {'distilled' if distilled else 'calls'}",
            file=folder,
        )


def _check_extra(folder: Path, model: ModelFacts, extra_lora: str) -> None:
    if model.extra_lora != extra_lora:
        said = "another few-step LoRA than" if model.extra_lora and extra_lora else "other settings of"
        raise MismatchError(f"{folder} was exported with {said} generate.extra_lora now", REMEDY, file=folder)


def _check_model(folder: Path, model: ModelFacts, adapter_hash: str, lora_scale: float) -> None:
    if model.adapter_hash != adapter_hash:
        raise MismatchError(f"{folder} was exported from another adapter", REMEDY, file=folder)
    if model.lora_scale != lora_scale:
        raise MismatchError(
            f"{folder} was exported with lora_scale = {model.lora_scale}, generation asks for {lora_scale}",
            f"dcdm export --set generate.lora_scale={lora_scale}",
            file=folder,
        )
