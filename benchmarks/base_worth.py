"""What the small base could add at most, and what it adds before any fine-tuning. CIFAR-10, on validation images.

    python benchmarks/base_worth.py --data CIFAR10_DIR --state DIR [--seeds 4] [--guidance 1,1.5,3,5]

1,000 real images alone, and with as many more: other real images, these as the base's VAE rebuilds them, and the base's
own first draws at several guidance scales, by diffusers' pipeline. If rebuilt images are worth what real ones are, the
VAE is not what holds the base back. Sets are made once. Writes results/base_worth.json. Not from the paper.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar10_data import Images, assign, read_images
from cifar10_run import Experiments
from common import RESULTS, write_result
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from pieces import Clock
from PIL import Image
from vae_keeps import rebuilt

from dcdm_cli.api.session import open_session
from dcdm_cli.console import Console
from dcdm_cli.data.manifest import read_manifest
from dcdm_cli.evaluation.downstream import NOTHING, Arm, Samples, open_ledger, run_arms, seeds_of, trial_of
from dcdm_cli.files import hash_json
from dcdm_cli.model.packaged import SMALL_BASE
from dcdm_cli.stages.jobs import open_job

EACH, STEPS, FIRST_SEED = 100, 15, 9000  # images per class and set; of the sampler; of the classifiers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--guidance", default="1,1.5,3,5")
    options = parser.parse_args()
    state = options.state.absolute()
    state.mkdir(parents=True, exist_ok=True)
    experiments = Experiments(options.data.absolute(), state, "cpu", RESULTS, Clock(None), SMALL_BASE)
    for step in experiments.first_steps("tune"):
        step.work()
    images = read_images(options.data, "train")
    scales = [float(text) for text in options.guidance.split(",")]
    arms = [Arm("real alone", lambda seed: NOTHING, ""), *(_arm(state, *made) for made in _sets(images, scales))]
    document = _worth(state, arms, options.seeds)
    table = {"title": "1,000 real images, and as many more", "columns": ["added", "accuracy", "points"]}
    title = "CIFAR-10, 1,000 real images: what the small base can add, validation images"
    write_result("base_worth", {"title": title, "tables": [table | {"rows": _rows(document)}], **document}, {})


def _sets(images: Images, scales: list[float]) -> list[tuple[str, Callable[[], np.ndarray], np.ndarray]]:
    """Name, what makes the pixels uint8 [N, 3, 32, 32], and labels."""
    base = assign(images.labels)["base"]
    rng = np.random.default_rng(1)
    rows = np.concatenate([rng.permutation(base[images.labels[base] == label])[:EACH] for label in range(10)])
    labels = images.labels[rows]
    drawn = np.repeat(np.arange(10), EACH)
    return [
        ("other real images", lambda: images.pixels(rows), labels),
        ("the same, rebuilt by the VAE", lambda: rebuilt(SMALL_BASE, images.pixels(rows)), labels),
        *((f"draws, guidance {scale:g}", lambda s=scale: _drawn(images.names, s), drawn) for scale in scales),
    ]


def _drawn(names: tuple[str, ...], guidance: float) -> np.ndarray:
    pipe = StableDiffusionPipeline.from_pretrained(SMALL_BASE, torch_dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    noise, made = torch.Generator().manual_seed(0), []
    for name in names:
        settings: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": guidance, "generator": noise}
        pictures = pipe([f"a photo of a {name}"] * EACH, output_type="np", height=32, width=32, **settings).images
        made.append((pictures * 255).round().astype(np.uint8).transpose(0, 3, 1, 2))
    return np.concatenate(made)


def _arm(state: Path, name: str, make: Callable[[], np.ndarray], labels: np.ndarray) -> Arm:
    """The set as files, made where they are not all there."""
    folder = state / "sets" / name.replace(" ", "-").replace(",", "")
    paths = [folder / f"{number:04d}.png" for number in range(len(labels))]
    if not paths[-1].is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for path, pixels in zip(paths, make(), strict=True):
            Image.fromarray(pixels.transpose(1, 2, 0)).save(path)
    return Arm(name, lambda seed: Samples(paths, labels), hash_json([name, EACH, STEPS]))


def _worth(state: Path, arms: list[Arm], seeds: int) -> dict[str, Any]:
    session = open_session(state / "runs" / "tune", "evaluate", {}, Console(), name="")
    job, manifest = open_job(session), read_manifest(session.run.samples)
    trial = trial_of(manifest.split("train"), manifest.split("judge"), baseline=arms[0].name, focus=arms[-1].name)
    ledger = open_ledger(session.run.evaluation, session.console.warn)
    return run_arms(arms, trial, session.config.downstream, seeds_of(FIRST_SEED, seeds), ledger=ledger, job=job)


def _rows(document: dict[str, Any]) -> list[list[str]]:
    base = document["arms"][0]["accuracy_mean"]
    return [
        [arm["name"], f"{arm['accuracy_mean']:.1%}", f"{100 * (arm['accuracy_mean'] - base):+.1f}"]
        for arm in document["arms"]
    ]


if __name__ == "__main__":
    main()
