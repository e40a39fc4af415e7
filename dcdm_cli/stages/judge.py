"""The judge: a classifier trained on images that neither scorer nor generator saw, kept in the evaluation folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dcdm_cli.run.roles import fingerprint, others
from dcdm_cli.run.store import Outcome, Stage

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.difficulty.classifier import Images
    from dcdm_cli.difficulty.scorer import Scorer
    from dcdm_cli.run.progress import Job, Progress
    from dcdm_cli.run.session import Context

CHUNK = 1024  # images whose class probabilities are held at once


@dataclass(frozen=True)
class Judge:
    """scorer: of one model; trained_on: how many images."""

    scorer: Scorer
    trained_on: int
    progress: Progress | None = None

    def labels(self, images: Images) -> np.ndarray:
        """int64 [N]: what the judge takes the images for."""
        parts = [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)]
        asked = [(part, np.full(len(part), -1)) for part in parts]
        found = [self.scorer.measure(*ask, progress=self.progress).predicted for ask in asked]
        return np.concatenate([np.zeros(0, np.int64), *found])

    def features(self, images: Images) -> np.ndarray:
        """float32 [N, D]"""
        from dcdm_cli.evaluation.features import features_of

        return features_of(self.scorer.models[0], images, self.scorer.preprocessing, self.scorer.device)


def judge_stage(context: Context, images: str) -> Stage:
    """images: hash of the judge's images and their labels."""
    config = context.config
    settings = {**fingerprint(config.judge), "seed": config.evaluate.seed + config.seed}
    return Stage("judge", settings, {"images": images}, others(config.judge))


def open_judge(context: Context, manifest: Manifest, job: Job) -> Judge:
    """Makes the judge once per run and settings; afterwards reads it back."""
    from dcdm_cli.difficulty.judge import fit_judge, load_judge
    from dcdm_cli.difficulty.scoring import Scoring
    from dcdm_cli.files import hash_json

    run, config = context.run, context.config
    judged, folder = manifest.split("judge"), run.evaluation / "judge"
    data = hash_json([judged.column("sample_id").tolist(), judged.column("label").tolist()])
    stage = judge_stage(context, data)
    seed = stage.config["seed"]

    def work() -> Outcome:
        place = Scoring(run.checkpoints / "judge", cache=run.cache / "features")
        fitted = fit_judge(judged, config.judge, seed, place, job)
        fitted.save(folder)
        return Outcome([folder], "", {**fitted.results, "images": len(judged)}, job.device)

    run.run(stage, work, force=context.force)
    return Judge(load_judge(folder, job.device), len(judged), job.stoppable("the judge is trained"))
