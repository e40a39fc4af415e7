"""What `reliability.py` does to images, to files of a run and to run folders, and what is expected then."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

EXPECTED: dict[str, str] = {
    **dict.fromkeys(("empty", "text", "html", "svg as png"), "not_an_image, exit 3"),
    **dict.fromkeys(("half a jpeg", "half a png"), "truncated, exit 3"),
    **dict.fromkeys(("one pixel", "16 bit", "palette with alpha", "cmyk", "animation"), "taken, exit 0"),
    "very wide": "extreme_aspect, exit 3",
    "bomb": "too_large, exit 3",
    "float tiff": "bad_range, exit 3",
    **dict.fromkeys(("fifo", "loop of links"), "passed over, exit 0"),
}
VERIFY = ["check", "--verify"]
LORA = "adapter/pytorch_lora_weights.safetensors"


# Images


def bad_images() -> Iterator[tuple[str, Callable[[Path], Any]]]:
    good = Image.effect_noise((64, 48), 60)

    def saved(suffix: str, image: Image.Image = good, **how: Any) -> Callable[[Path], Path]:
        def save_as(path: Path) -> Path:
            image.save(path.with_suffix(suffix), **how)
            return path.with_suffix(suffix)

        return save_as

    def cut(suffix: str) -> Callable[[Path], Any]:
        return lambda path: os.truncate(file := saved(suffix)(path), file.stat().st_size // 2)

    def content(text: bytes, suffix: str = ".jpg") -> Callable[[Path], Any]:
        return lambda path: path.with_suffix(suffix).write_bytes(text)

    yield "empty", content(b"")
    yield "text", content(b"this is no image")
    yield "html", content(b"<html><body>404</body></html>")
    yield "svg as png", content(b"<svg xmlns='http://www.w3.org/2000/svg'/>", ".png")
    yield "half a jpeg", cut(".jpg")
    yield "half a png", cut(".png")
    yield "one pixel", saved(".png", Image.new("RGB", (1, 1)))
    yield "very wide", saved(".png", Image.new("RGB", (4000, 2)))
    yield "bomb", saved(".png", Image.new("1", (20000, 20000)))
    yield "16 bit", saved(".png", Image.new("I;16", (32, 32), 40000))
    yield "palette with alpha", saved(".png", Image.new("RGBA", (32, 32), (9, 9, 9, 0)).quantize(8))
    yield "cmyk", saved(".jpg", Image.new("CMYK", (32, 32), (9, 9, 9, 0)))
    yield "animation", saved(".gif", save_all=True, append_images=[good])
    yield "float tiff", saved(".tiff", Image.new("F", (32, 32), 7.0))
    yield "fifo", lambda path: os.mkfifo(path.with_suffix(".png"))
    yield "loop of links", lambda path: path.with_suffix(".png").symlink_to(path.with_suffix(".png").name)


# Files of a run


def cut_in_half(file: Path, _: random.Random | None = None) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _flipped(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    if content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def _number_changed(file: Path, draw: random.Random) -> None:
    """For JSON: NaN, a huge number or a deep nest instead of the first number; other files lose a piece."""
    text = file.read_bytes()
    place = next((i for i, byte in enumerate(text) if chr(byte).isdigit()), 0)
    text = text[:place] + draw.choice([b"NaN", b"1e999", b"9" * 400, b"[" * 9000, b'"x"', b"-1"]) + text[place + 1 :]
    file.write_bytes(text)


CHANGES = {
    "half of it": cut_in_half,
    "one bit": _flipped,
    "another number": _number_changed,
    "nothing in it": lambda file, draw: file.write_bytes(b""),
    "other bytes": lambda file, draw: file.write_bytes(draw.randbytes(300)),
}


def unseal(record: Path) -> None:
    """A received run folder may say anything of its files."""
    try:
        document = json.loads(record.read_text("utf-8"))
        record.write_text(json.dumps(document | {"read": {}, "wrote": {}}))
    except (ValueError, TypeError, RecursionError):
        return


def last_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 16
    file.write_bytes(content)


def _without_a_tensor(file: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(file)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, file)


def _without_a_line(file: Path) -> None:
    lines = file.read_text("utf-8").splitlines(keepends=True)
    file.write_text("".join(lines[:1] + lines[2:]))


Remedy = list[str] | Callable[[Path], list[str]] | None


def tampered() -> dict[str, tuple[Callable[[Path], Any], list[str], Remedy]]:
    """Name -> (damage to a run folder, the command that would use it, the remedy that is named, where it is not to make
    the stage again: a command, or what is done by hand and the command after it)."""
    scorer, metadata = "scorer/fold-0/model.safetensors", "generated/train/metadata.jsonl"
    generate, picture = ["generate"], lambda run: next((run / "generated" / "train").rglob("*.png"))
    cut = lambda run: os.truncate(run / "generated/samples.parquet", 500)  # noqa: E731

    def removed(run: Path) -> list[str]:
        picture(run).unlink()
        return generate

    return {
        "bit in the adapter": (lambda run: last_bit(run / LORA), generate, None),
        "tensor gone from the adapter": (lambda run: _without_a_tensor(run / LORA), generate, None),
        "bit in the scorer": (lambda run: last_bit(run / scorer), generate, None),
        "tensor gone from the scorer": (lambda run: _without_a_tensor(run / scorer), generate, None),
        "bit in the table of samples": (lambda run: last_bit(run / "samples.parquet"), generate, None),
        "bit in the cached latents": (
            lambda run: last_bit(next((run / "cache").glob("*.npy"))),
            ["finetune"],
            ["check", "--repair"],
        ),
        "line gone from metadata.jsonl": (lambda run: _without_a_line(run / metadata), generate, generate),
        "bit in a generated image": (
            lambda run: last_bit(picture(run)),
            ["evaluate", "--force"],
            removed,
        ),
        "image gone": (lambda run: picture(run).unlink(), generate, generate),
        "table of generated images cut": (cut, generate, generate),
    }


# Run folders that say where to write


def forgeries(source: Path, secret: Path) -> dict[str, tuple[Callable[[Path], Any], list[str]]]:
    """Name -> (what is done to a finished run, the command that would follow it)."""
    again = ["generate", "--force"]

    def settings(section: str, *lines: str) -> Callable[[Path], Any]:
        return lambda run: with_settings(run, section, lines)

    def linked(*names: str) -> Callable[[Path], Any]:
        return lambda run: [_replaced_by_link(run / name, secret) for name in names]

    found: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
        f"link {name}": (linked(name), again)
        for name in ("generated", "generated/train", "generated/shards", "records", "logs", "checkpoints", "tables")
    }
    found |= {
        "link sets/hard/shards": (linked("sets/hard/shards"), ["generate", "--name", "hard"]),
        "link evaluation/judge": (linked("evaluation/judge"), ["evaluate", "--force"]),
        "link cache/features": (
            linked("cache/features"),
            ["score", str(source), "--method", "features", "--force"],
        ),
        "plan ids": (
            lambda run: _forged_ids(run, secret),
            ["generate", str(secret.parent / "forged.parquet"), "--force"],
        ),
        "paths of samples": (lambda run: _forged_paths(run, secret), ["finetune", "--force"]),
        "class names": (_forged_classes, again),
        "captions beside images": (
            settings("caption", "sidecars = true", "overwrite = true"),
            ["caption", "--force"],
        ),
        "somebody else's engines": (settings("generate", "trust_engine = true"), again),
    }
    return found


def with_settings(run: Path, section: str, lines: Sequence[str]) -> None:
    text, head = (run / "dcdm.toml").read_text(), f"[{section}]"
    with_head = text if head in text else f"{text}\n{head}\n"
    (run / "dcdm.toml").write_text(with_head.replace(head, "\n".join((head, *lines)), 1))


def _replaced_by_link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.symlink_to(target)


def _forged_ids(run: Path, secret: Path) -> None:
    _rewritten(
        next(run.glob("generated/plan.parquet")),
        "sample_id",
        f"../../{secret.name}/x",
        secret.parent / "forged.parquet",
    )


def _forged_paths(run: Path, secret: Path) -> None:
    _rewritten(run / "samples.parquet", "path", f"../../{secret.name}/x.png", run / "samples.parquet")


def _rewritten(file: Path, column: str, value: str, to: Path) -> None:
    """A column of a Parquet table filled with one value; its metadata stays."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    place = table.schema.get_field_index(column)
    made = table.set_column(place, table.schema.field(place), pa.array([value] * len(table), table.schema.types[place]))
    pq.write_table(made.replace_schema_metadata(table.schema.metadata), to)


def _forged_classes(run: Path) -> None:
    for file in (run / "samples.parquet", run / "adapter/config.json"):
        content = file.read_bytes()
        file.write_bytes(content.replace(b"one", b"../"))
