"""`generate --strength`: images that start from real ones, by the command, its parts and workers; what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dcdm_cli.commands.generate import show_part, show_price
from dcdm_cli.data.manifest import read_manifest, write_manifest
from dcdm_cli.difficulty.calibration import fit_calibration, save_calibration
from dcdm_cli.errors import MismatchError, NotFoundError, UsageError
from dcdm_cli.generation import pricing
from dcdm_cli.generation.engine import sampler_settings
from dcdm_cli.generation.plan_file import PlanFile
from dcdm_cli.model.adapter import CALIBRATION_FILE
from dcdm_cli.run.session import Session
from dcdm_cli.run.store import RunFolder
from dcdm_cli.stages.generate import run_generate
from dcdm_cli.stages.plan import Wishes
from dcdm_cli.stages.probe import usable_calibration

from ..generation.fakes import NAMES, contents
from .conftest import REAL, Open

COUNT = 20  # half as many as real ones


@pytest.fixture(autouse=True)
def images(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The run's real images, which the other tests do without."""
    monkeypatch.setattr(pricing, "PROBE_S", 0.1)
    rng = np.random.default_rng(0)
    for number in range(sum(REAL)):
        picture = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        picture.resize((32, 32), Image.Resampling.BICUBIC).save(run.path / f"{number}.png")
    return sorted(run.path.glob("*.png"))


def begun(session: Open, strength: float = 0.5, **flags: object) -> Session:
    return session(generate__strength=strength, generate__steps=4, **flags)


def test_each_image_names_a_real_one_of_its_class(session: Open, run: RunFolder) -> None:
    record = run_generate(begun(session))
    made, real = read_manifest(run.generated / "samples.parquet"), read_manifest(run.samples)
    label_of = dict(zip(real.column("sample_id"), real.column("label"), strict=True))
    assert [label_of[source] for source in made.column("source_id")] == made.column("label").tolist()
    assert record.results["images"] == COUNT and run_generate(begun(session)).started == record.started
    cached = {file.name.split("-")[0] for file in run.cache.iterdir()}  # latents with their seal
    assert cached == {"latents", "originals"}
    run_generate(session(force=True, generate__steps=4))  # from noise
    again = read_manifest(run.generated / "samples.parquet")
    assert again.column("source_id").tolist() == [None] * COUNT
    assert not set(again.column("sample_id")) & set(made.column("sample_id"))


def test_cached_latents_do_without_the_images_and_without_both_it_says_so(
    session: Open, run: RunFolder, images: list[Path]
) -> None:
    run_generate(begun(session))
    before = contents(run.generated)
    for image in images:
        image.unlink()
    run_generate(begun(session, force=True))
    assert contents(run.generated) == before
    for file in run.cache.iterdir():
        file.unlink()
    with pytest.raises(NotFoundError, match=r"no cached latents and cannot be read: .*0\.png") as caught:
        run_generate(begun(session, force=True))
    assert "--strength 1" in caught.value.hint and "dcdm score" in caught.value.hint
    assert contents(run.generated) == before  # nothing is lost


def priced(opened: Session) -> Path:
    show_price(opened, Wishes())
    return Path(json.loads(opened.console.out.getvalue())["plan"])  # type: ignore[attr-defined]


def images_of(run: RunFolder) -> dict[str, bytes]:
    return {name: content for name, content in contents(run.generated / "train").items() if name != "metadata.jsonl"}


def test_parts_make_what_one_process_makes(session: Open, run: RunFolder) -> None:
    file = priced(begun(session))
    assert PlanFile(file).made_for["strength"] == 0.5
    run_generate(begun(session), file)
    parts = run.with_images("parts")
    for part in ("1/2", "2/2"):
        show_part(replace(begun(session), run=parts), file, part)
    assert images_of(parts) == images_of(run) != {}


@pytest.mark.slow
def test_a_worker_makes_what_this_process_makes(session: Open, run: RunFolder) -> None:
    run_generate(begun(session))
    pool = run.with_images("pool")
    run_generate(replace(begun(session, scale__devices=("1",), threads=1), run=pool))
    assert images_of(pool) == images_of(run) != {}


def test_a_plan_for_another_strength_is_named(session: Open, run: RunFolder) -> None:
    file = priced(begun(session))
    with pytest.raises(MismatchError, match=r"strength 0\.5, here 1\.0"):
        run_generate(session(generate__steps=4), file)
    file = priced(session(generate__steps=4))
    assert "strength" not in PlanFile(file).made_for
    with pytest.raises(MismatchError, match=r"strength 1\.0, here 0\.5"):
        run_generate(begun(session), file)


def test_a_class_whose_images_are_all_suspect_has_no_source(session: Open, run: RunFolder) -> None:
    manifest = read_manifest(run.samples)
    suspect = manifest.column("label") == 2
    write_manifest(manifest.with_columns({"suspect_label": suspect}), run.samples)
    with pytest.raises(UsageError, match=f"class '{NAMES[2]}' has no usable training image") as caught:
        run_generate(begun(session))
    assert "--strength 1" in caught.value.hint
    run_generate(begun(session, finetune__keep_suspects=True))


@pytest.mark.parametrize("strength", [0, -0.5, 1.5])
def test_a_strength_outside_its_range_is_refused_with_the_rule(session: Open, strength: float) -> None:
    with pytest.raises(UsageError, match="strength") as caught:
        begun(session, strength)
    assert str(strength) in caught.value.message


def test_damaged_latents_are_made_again_and_a_damaged_note_is_named(session: Open, run: RunFolder) -> None:
    run_generate(begun(session))
    (latents,) = run.cache.glob("latents-*.npy")
    whole, images = latents.read_bytes(), contents(run.generated)
    latents.write_bytes(whole[:1000])
    run_generate(begun(session, force=True))
    assert latents.read_bytes() == whole and contents(run.generated) == images
    (note,) = run.cache.glob("originals-*.json")
    note.write_text('{"latents": "../../x.npy"}')
    with pytest.raises(MismatchError, match="is damaged: latents"):
        run_generate(begun(session, force=True))


def test_the_images_files_have_the_column(session: Open, run: RunFolder) -> None:
    run_generate(begun(session, generate__format="parquet"))
    assert "source_id" in pq.read_schema(run.generated / "samples.parquet").names


def test_a_calibration_holds_for_its_strength_alone(session: Open, run: RunFolder) -> None:
    requested = np.tile(np.linspace(0.1, 0.9, 9), 20)
    settings = sampler_settings(begun(session).config.generate)
    fitted = fit_calibration(requested, requested, requested < 2, np.repeat([0, 1], 90), 2, settings)
    save_calibration(fitted, run.adapter / CALIBRATION_FILE)
    assert usable_calibration(begun(session, generate__calibrated=True)) is not None
    for other in (0.25, 1.0):
        assert usable_calibration(begun(session, other, generate__calibrated=True)) is None
