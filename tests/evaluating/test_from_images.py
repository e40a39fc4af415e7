"""Images that start from real ones: compared with them in the leakage report, and an arm of experiments."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dcdm_cli.data.manifest import read_manifest
from dcdm_cli.evaluation.experiments import Experiment, find_experiment
from dcdm_cli.run.progress import Job
from dcdm_cli.stages.artefacts import run_artefacts
from dcdm_cli.stages.evaluation_data import checked_data
from dcdm_cli.stages.experiments.sets import GeneratedSets
from dcdm_cli.stages.generate import run_generate

from .conftest import forced, session_of


def as_if_generated(folder: Path) -> None:
    """The shards' hashes of the images that lie there now: others are refused."""
    for file in (folder / "shards").glob("*.parquet"):
        table = pq.read_table(file)
        hashes = [hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in table["path"].to_pylist()]
        place = table.schema.get_field_index("sha256")
        pq.write_table(table.set_column(place, table.schema.field(place), pa.array(hashes)), file)


def test_what_repeats_its_source_is_counted(run: Path) -> None:
    session = session_of(run, generate__strength=0.5)
    cached = sorted(session.run.cache.glob("latents-*"))
    run_generate(forced(session))
    assert sorted(session.run.cache.glob("latents-*")) == cached != []  # fine-tuning's, not encoded again
    made, real = read_manifest(run / "generated" / "samples.parquet"), read_manifest(run / "samples.parquet")
    path_of = dict(zip(real.column("sample_id"), real.paths(), strict=True))
    for number in range(3):
        shutil.copyfile(path_of[made.column("source_id")[number]], made.paths()[number])
    as_if_generated(run / "generated")
    run_artefacts(session)
    found = json.loads((run / "evaluation" / "artefacts.json").read_text())["quality"]["leakage"]
    assert found["from_source"] == 20 and 3 <= found["near_source"] <= found["near_train"]
    page = (run / "evaluation" / "artefacts.html").read_text()
    assert f"{found['near_source']} of 20 images that started from a real one repeat it" in page


def test_the_arm_starts_from_real_images_of_its_class(shared: Path) -> None:
    session = session_of(shared)
    arm = next(arm for arm in find_experiment("controls").arms if arm.name == "img2img")
    data = checked_data(session)
    sets = GeneratedSets(session, Experiment(name="x", arms=(arm,)), data.real, Job())
    made = sets.make(arm, 0.1, seed=1000)
    images = read_manifest(made.paths[0].parents[2] / "samples.parquet")
    label_of = dict(zip(data.real.column("sample_id"), data.real.column("label"), strict=True))
    assert [label_of[source] for source in images.column("source_id")] == images.column("label").tolist()
    assert len(made) == 20 and made.paths[0].parents[3].name == "sets"
