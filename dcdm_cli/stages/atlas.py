"""`dcdm evaluate atlas`: class by difficulty, in pictures, and what makes each class hard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dcdm_cli.evaluation.data import Evaluated
from dcdm_cli.evaluation.quality import spaces
from dcdm_cli.run.progress import Job
from dcdm_cli.run.roles import IMAGES, all_others, fingerprints
from dcdm_cli.run.session import Session
from dcdm_cli.run.store import Outcome, Stage, StageRecord
from dcdm_cli.stages.atlas_groups import groups_of
from dcdm_cli.stages.devices import run_features, settle_generation
from dcdm_cli.stages.evaluation_data import checked_data, look_at_sources
from dcdm_cli.stages.given import image_input
from dcdm_cli.stages.jobs import open_job
from dcdm_cli.stages.judge import open_judge
from dcdm_cli.stages.label_check import generator_files
from dcdm_cli.stages.probe import first_draws, open_run_engine, plan_inputs, probe_rows
from dcdm_cli.stages.quality import difficulty_of, generated_images

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.evaluation.features import Space
    from dcdm_cli.generation.plan import PlanRow
    from dcdm_cli.reports.atlas import ClassEntry, Strip, Tile

PAGE = "atlas.html"
SEEDS = 2  # rows of generated pictures per class
ENDS = 4  # easiest and hardest real images shown
MOST_PER_CLASS = 200  # images a class's factors are measured on
ABOUT = (
    "Under a generated picture: the difficulty asked for, and the one the scorer finds in it.",
    "Pictures in one row come from the same seed: only the difficulty differs.",
    "Difficulty alone: the prompt is empty; class and difficulty reach the generator through the encoder.",
    "Nearest real: the training image that looks most alike, with its difficulty.",
    "Groups: real images that look alike, by their most typical pictures; generated ones are put to the nearest group.",
    "Factors are rank correlations with difficulty; only those that stand out are put into words.",
)


@dataclass(frozen=True)
class Kind:
    """One way of asking: its title, with the class in the prompt or without, and which of the seeds."""

    title: str
    text: bool
    seed: int


KINDS = (
    *(Kind(f"generated, seed {number + 1}", True, number) for number in range(SEEDS)),
    Kind("difficulty alone", False, 0),
)


def run_atlas(session: Session) -> StageRecord:
    session, run = settle_generation(session), session.run
    with run.lock("dcdm evaluate atlas"):
        look_at_sources(session)
        record, done = run.run(atlas_stage(session), lambda: _make_atlas(session), force=session.force)
    if not done:
        session.console.note("evaluate atlas: nothing changed, skipped (--force runs it again)")
    return record


def atlas_stage(session: Session) -> Stage:
    run, config = session.run, session.config
    found = {name: run.record(name) for name in ("score", "caption", "finetune", "calibrate", "generate")}
    inputs = {name: record.id for name, record in found.items() if record}
    inputs |= run.adapter_ids() | image_input(session)
    made, judge = {"generate": config.generate}, {"judge": config.judge}
    settings: dict[str, Any] = {**fingerprints(made, *IMAGES), **fingerprints(judge)}
    # of [evaluate] only what the page shows: arms and seeds of a comparison do not make it stale
    settings |= {"targets": list(config.evaluate.atlas_targets), "classes": config.evaluate.atlas_classes}
    settings |= {"seed": config.evaluate.seed + config.seed, "features": config.evaluate.features}
    reads = (*generator_files(session), run.generated / "samples.parquet")
    return Stage("atlas", settings, inputs, {**all_others(made, *IMAGES), **all_others(judge)}, reads)


def _make_atlas(session: Session) -> Outcome:
    from dcdm_cli.reports.atlas import factor_chart, write_atlas, write_grids

    run, job = session.run, open_job(session)
    data = checked_data(session)
    chosen = hardest_classes(data.real, session.config.evaluate.atlas_classes)
    real, judge = _Real(data.real), open_judge(session, data.manifest, job)
    # the first is the one that was asked for; Inception's may follow
    space = spaces(session.config.evaluate.features, run_features(session, job), judge, job)[0]
    pictures = _generated(session, real, chosen, space, job)
    made = generated_images(session, data)  # once: each image is held against its shard
    factors = _factors(session, data, made, job)
    groups, alike = groups_of(session, data, made, chosen, space, job)
    by_name = {kind: {row["class"]: row for row in rows} for kind, rows in factors.items()}
    entries = [_grouped(_entry(real, label, pictures, by_name), groups, alike) for label in chosen]
    folder, page = run.evaluation / "atlas", run.evaluation / PAGE
    folder.mkdir(parents=True, exist_ok=True)
    left_out = len(data.real.class_names) - len(chosen)
    about = [*ABOUT, *([f"{left_out} easier classes are left out (--atlas-classes)."] if left_out else [])]
    write_atlas(page, "Difficulty atlas", entries, about, [entry.name for entry in entries])
    files = [*write_grids(folder, entries), factor_chart(folder / "factors.png", entries)]
    results = {"classes": len(entries), "factors": factors, "groups": groups, "files": len(files)}
    return Outcome([page, *files], "", results, job.device)


def _grouped(
    entry: ClassEntry, groups: Sequence[Mapping[str, Any]], alike: Mapping[str, Sequence[Strip]]
) -> ClassEntry:
    """With the groups of alike images that its class falls into."""
    from dcdm_cli.reports.atlas_tables import group_sentences

    own = [row for row in groups if row["class"] == entry.name]
    said = [*entry.sentences, *group_sentences(own)]
    return replace(entry, sentences=said, groups=alike.get(entry.name, ()))


def hardest_classes(real: Manifest, most: int) -> list[int]:
    """Labels of classes with images, in label order; the ones with the highest mean difficulty when there are more."""
    labels, s = real.column("label"), np.nan_to_num(real.column("difficulty"))
    counts = np.bincount(labels, minlength=len(real.class_names))
    means = np.bincount(labels, s, len(counts)) / np.maximum(counts, 1)
    present = np.flatnonzero(counts)
    return np.sort(present[np.argsort(-means[present], kind="stable")[:most]]).tolist()


def _generated(
    session: Session, real: _Real, chosen: Sequence[int], space: Space, job: Job
) -> dict[tuple[int, str], list[Tile]]:
    """(label, strip title) -> tiles in the order of the targets."""
    from dcdm_cli.reports.atlas import Tile

    engine = open_run_engine(session, session.run.adapter, job)
    rows, kinds = _rows(session, chosen)
    neighbours = _Neighbours(real, space)
    tiles: dict[tuple[int, str], list[Tile]] = {}

    def watch(batch: Sequence[PlanRow], images: np.ndarray, realised: np.ndarray) -> None:
        alike = neighbours.of(images)
        for row, image, s, near in zip(batch, images, realised.tolist(), alike, strict=True):
            kind = kinds[row.index]
            caption = f"{row.target_difficulty:.2f} → {s:.2f}"
            tiles.setdefault((row.label, kind.title), []).append(Tile.of(Image.fromarray(image), caption))
            if kind == KINDS[0]:  # the page has neighbours of the first seed alone
                tiles.setdefault((row.label, "nearest real"), []).append(near)

    probe_rows(session, first_draws(engine), rows, job, watch, check=False)  # another draw would be another seed
    return tiles


def _rows(session: Session, chosen: Sequence[int]) -> tuple[list[PlanRow], list[Kind]]:
    """For each class and kind one row per target, all with the kind's seed."""
    from dcdm_cli.generation.plan import PlanRow
    from dcdm_cli.generation.seeds import image_seed

    config, inputs = session.config, plan_inputs(session)
    seed, targets = config.evaluate.seed + config.seed, np.array(config.evaluate.atlas_targets, np.float32)
    rows, kinds = [], []
    for label in chosen:
        requested = targets
        if inputs.calibration is not None:
            requested, _ = inputs.calibration.request_for(targets, np.full(len(targets), label))
        for kind in KINDS:
            caption = inputs.captions[label][0] if kind.text else ""
            for target, request in zip(targets.tolist(), requested.tolist(), strict=True):
                index, name = len(rows), inputs.class_names[label]
                drawn, source = image_seed(seed, kind.seed), inputs.source_of(label, kind.seed)
                rows.append(PlanRow(index, f"{index}", label, name, caption, target, request, drawn, source_id=source))
                kinds.append(kind)
    return rows, kinds


class _Real:
    """The real training images, read off the manifest once."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest, self.names, self.paths = manifest, manifest.class_names, manifest.paths()
        self.label, self.difficulty = manifest.column("label"), manifest.column("difficulty")
        known = np.flatnonzero(np.isfinite(self.difficulty))
        order = known[np.argsort(self.difficulty[known], kind="stable")]
        self._rows: dict[int, list[int]] = {}
        for row in order.tolist():
            self._rows.setdefault(int(self.label[row]), []).append(row)

    def rows(self, label: int) -> list[int]:
        """Of a class, easiest first."""
        return self._rows.get(label, [])

    def tile(self, row: int, *, named: bool = False) -> Tile:
        from dcdm_cli.data.images import decode_image
        from dcdm_cli.reports.atlas import Tile

        s = float(self.difficulty[row])
        caption = f"real {s:.2f}" if np.isfinite(s) else "real"
        return Tile.of(decode_image(self.paths[row]), caption, self.names[self.label[row]] if named else "")


class _Neighbours:
    """The real training image that looks most alike."""

    def __init__(self, real: _Real, space: Space) -> None:
        from sklearn.neighbors import NearestNeighbors

        self.real, self.space = real, space
        self.tree = NearestNeighbors(n_neighbors=1).fit(space.of(real.manifest))

    def of(self, images: np.ndarray) -> list[Tile]:
        found = self.tree.kneighbors(self.space.seen(images), return_distance=False)[:, 0]
        return [self.real.tile(row, named=True) for row in found.tolist()]


def _entry(real: _Real, label: int, pictures: Mapping[Any, Sequence[Tile]], factors: Mapping[str, Any]) -> ClassEntry:
    from dcdm_cli.reports.atlas import ClassEntry, Strip

    rows, name = real.rows(label), real.names[label]
    # in a small class no image stands at both ends
    easiest, hardest = rows[:ENDS], rows[max(ENDS, len(rows) - ENDS) :]
    strips = [
        Strip("real, easiest", [real.tile(row) for row in easiest]),
        *(Strip(kind.title, pictures[label, kind.title]) for kind in KINDS),
        Strip("nearest real, seed 1", pictures[label, "nearest real"]),
        Strip("real, hardest", [real.tile(row) for row in hardest]),
    ]
    about = {kind: found.get(name) for kind, found in factors.items()}
    correlations = (about["real"] or {}).get("correlations", {})
    mean = round(float(real.difficulty[rows].mean()), 4) if rows else None
    return ClassEntry(name, mean, strips, list(_sentences(about)), correlations)


def _sentences(about: Mapping[str, Mapping[str, Any] | None]) -> Iterator[str]:
    for kind, row in about.items():
        if row is None:
            continue
        moving = ", ".join(row["moving"]) or "nothing measured stands out"
        rival = ""
        if row["confused_with"] is not None:
            rival = f"; most often taken for {row['confused_with']} ({100 * row['confused_share']:.0f} %)"
        yield f"{kind.capitalize()} images, as they get harder: {moving}{rival} ({row['n']} images)."


def _factors(session: Session, data: Evaluated, made: Manifest | None, job: Job) -> dict[str, list[dict[str, Any]]]:
    """For the real training images, and for the run's generated images where there are any."""
    real = data.real
    found = {"real": _hard_factors(real, real.column("difficulty"), job)}
    if made is not None:
        found["generated"] = _hard_factors(made, difficulty_of(session, made, job), job)
    return found


def _hard_factors(images: Manifest, difficulty: np.ndarray, job: Job) -> list[dict[str, Any]]:
    from dcdm_cli.data.images import decode_image
    from dcdm_cli.evaluation.factors import FACTORS, MeasuredFactors, hard_factors, measure

    labels = images.column("label").astype(np.int64)
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:MOST_PER_CLASS] for c in np.unique(labels)]))
    paths, table = images.paths(), np.zeros((len(chosen), len(FACTORS)))
    for row, i in enumerate(chosen):
        table[row] = list(measure(decode_image(paths[i])).values())
        job.progress("measuring factors", row + 1, len(chosen))
    measured = MeasuredFactors(
        table, difficulty[chosen], labels[chosen], images.column("predicted")[chosen].astype(np.int64)
    )
    return hard_factors(measured, images.class_names)
