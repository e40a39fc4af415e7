"""The judge: a classifier trained on images that neither scorer nor generator saw, kept in the evaluation folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dcdm_cli.run.roles import fingerprint, others
from dcdm_cli.run.store import Outcome, Stage

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.difficulty.classifier import Images, StoredClassifier
    from dcdm_cli.run.progress import Job
    from dcdm_cli.run.session import Context

CHUNK = 1024  # images whose class probabilities are held at once


@dataclass(frozen=True)
class Judge:
    """stored: the network; trained_on: how many images."""

    stored: StoredClassifier
    trained_on: int
    device: str

    def labels(self, images: Images) -> np.ndarray:
        """int64 [N]: what the judge takes the images for."""
        from dcdm_cli.difficulty.classifier import predict_logits

        parts = [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)]
        model, config = self.stored.model, self.stored.config
        found = [predict_logits(model, part, config, self.device).argmax(1) for part in parts]
        return np.concatenate([np.zeros(0, np.int64), *found])

    def features(self, images: Images) -> np.ndarray:
        """float32 [N, D]"""
        from dcdm_cli.difficulty.classifier import preprocessing_of
        from dcdm_cli.evaluation.features import features_of

        preprocessing = preprocessing_of(self.stored.model, self.stored.config)
        return features_of(self.stored.model, images, preprocessing, self.device)


def judge_stage(context: Context, images: str) -> Stage:
    """images: hash of the judge's images and their labels."""
    config = context.config
    settings = {**fingerprint(config.judge), "seed": config.evaluate.seed + config.seed}
    return Stage("judge", settings, {"images": images}, others(config.judge))


def open_judge(context: Context, manifest: Manifest, job: Job) -> Judge:
    """Trains the judge once per run and settings; afterwards reads it back."""
    from dcdm_cli.difficulty.classifier import load_classifier, save_classifier, train_classifier
    from dcdm_cli.files import hash_json

    run, config = context.run, context.config
    judged, folder = manifest.split("judge"), run.evaluation / "judge"
    data = hash_json([judged.column("sample_id").tolist(), judged.column("label").tolist()])
    stage = judge_stage(context, data)
    seed = stage.config["seed"]

    def work() -> Outcome:
        names = manifest.class_names
        model = train_classifier(
            judged.paths(), judged.column("label"), len(names), config.judge, seed, job.device, job.progress
        )
        save_classifier(model, folder, names, config.judge)
        return Outcome([folder], "", {"images": len(judged)}, job.device)

    run.run(stage, work, force=context.force)
    return Judge(load_classifier(folder, job.device), len(judged), job.device)
