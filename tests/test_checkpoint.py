"""A checkpoint is what was written and fits what goes on from it, or the one before it counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dcdm_cli.errors import MismatchError
from dcdm_cli.files import hash_file
from dcdm_cli.run.checkpoint import (
    STATE,
    STATE_HASH,
    TENSORS,
    Awaited,
    SavedState,
    ScheduleState,
    drop_checkpoints,
    load_checkpoint,
    optimizer_tensors,
    save_checkpoint,
)

STEPS = 3


@dataclass(frozen=True)
class Rated(SavedState):
    lr: ScheduleState

    @property
    def rates(self) -> ScheduleState:
        return self.lr


class Lesson:
    """Two layers, each with a learning rate of its own, and a checkpoint after every step. The second has a bias that
    gets no gradient."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        first, last = nn.Linear(4, 3), nn.Linear(3, 2)
        self.folder, self.net = folder, nn.Sequential(first, nn.BatchNorm1d(3), last)
        groups = [{"params": list(layer.parameters()), "lr": 1e-2} for layer in (first, last)]
        self.optimizer = torch.optim.AdamW(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)
        for step in range(1, STEPS + 1):
            self.net(torch.randn(8, 4)).square().sum().backward()
            last.bias.grad = None
            self.optimizer.step()
            schedule.step()
            state = {"settings": "s", "lr": schedule.state_dict(), "loss": 0.1}
            save_checkpoint(folder, step, {**self.tensors, **optimizer_tensors(self.optimizer)}, state, keep=2)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {f"model.{name}": value for name, value in self.net.state_dict().items()}

    @property
    def newest(self) -> Path:
        return self.folder / f"step-{STEPS:08d}"

    def found(self, settings: str = "s", steps: int = STEPS) -> tuple[dict[str, Tensor], dict[str, Any]]:
        awaited = Awaited(self.tensors, self.optimizer, steps)
        found = load_checkpoint(self.folder, settings, kind=Rated, awaited=awaited)
        assert found is not None
        return found

    def edit(self, **changes: object) -> None:
        """The newest state, as one from before states had hashes."""
        said = json.loads((self.newest / STATE).read_text())
        said.pop(STATE_HASH, None)
        (self.newest / STATE).write_text(json.dumps(said | changes))

    def forge(self, change: Callable[[dict[str, Tensor]], object]) -> None:
        """The newest tensors, with a hash that is theirs."""
        tensors = load_file(self.newest / TENSORS)
        change(tensors)
        save_file(tensors, self.newest / TENSORS)
        self.edit(sha256=hash_file(self.newest / TENSORS))


@pytest.fixture
def lesson(tmp_path: Path) -> Lesson:
    return Lesson(tmp_path / "checkpoints")


def test_what_was_written_is_found(lesson: Lesson) -> None:
    tensors, state = lesson.found()
    assert state["step"] == STEPS and STATE_HASH not in state
    assert all(torch.equal(tensors[name], value) for name, value in lesson.tensors.items())
    lesson.edit()
    assert lesson.found()[1]["step"] == STEPS, "one from before states had hashes is believed as far as it fits"


@pytest.mark.parametrize(
    ("change", "says"),
    [({"step": 10**15}, "it is of step 1000000000000000"), ({"step": 2}, "it is of step 2"),
     ({"sha256": "x"}, "sha256"),
     ({"lr": {"last_epoch": 3, "_step_count": 4, "base_lrs": [0.1], "_last_lr": [0.1], "lr_lambdas": [None]}},
      "1 learning rates for 2 groups of parameters")],
)  # fmt: skip
def test_a_state_that_does_not_fit_is_damage(
    lesson: Lesson, caplog: pytest.LogCaptureFixture, change: dict[str, Any], says: str
) -> None:
    lesson.edit(**change)
    assert lesson.found()[1]["step"] == STEPS - 1
    assert f"step-{STEPS:08d} is damaged" in caplog.text and says in caplog.text


def test_a_step_beyond_the_last_is_damage(lesson: Lesson) -> None:
    assert lesson.found(steps=STEPS - 1)[1]["step"] == STEPS - 1


@pytest.mark.parametrize("edit", [lambda text: text.replace("0.1", "0.9"), lambda text: text.replace("0.01", "0.05")])
def test_a_state_that_is_as_plausible_as_before_is_damage_too(
    lesson: Lesson, caplog: pytest.LogCaptureFixture, edit: Callable[[str], str]
) -> None:
    file = lesson.newest / STATE
    file.write_text(edit(file.read_text()))
    assert lesson.found()[1]["step"] == STEPS - 1
    assert "the state differs from its recorded hash" in caplog.text


WEIGHT, MOMENT = "model.0.weight", "optimizer.0.exp_avg"


@pytest.mark.parametrize(
    ("change", "says"),
    [(lambda found: found.update({WEIGHT: found[WEIGHT][:1].clone()}), "float32 [1, 4] instead of float32 [3, 4]"),
     (lambda found: found.update({WEIGHT: found[WEIGHT].double()}), "float64"),
     (lambda found: found.pop(WEIGHT), f"{WEIGHT} is missing"),
     (lambda found: found.update({"model.9.weight": torch.ones(1)}), "model.9.weight is no tensor of this training"),
     (lambda found: found[WEIGHT].fill_(float("nan")), f"{WEIGHT} is not finite"),
     (lambda found: found.update({"optimizer.9.step": torch.ones(())}), "optimizer.9.step is no tensor"),
     (lambda found: found.pop(MOMENT), f"{MOMENT} is missing"),
     (lambda found: found.update({MOMENT: found[MOMENT][:1].clone()}), f"{MOMENT} is float32 [1, 4]"),
     (lambda found: found[MOMENT].fill_(float("inf")), f"{MOMENT} is not finite")],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_damage(
    lesson: Lesson, caplog: pytest.LogCaptureFixture, change: Callable[[dict[str, Tensor]], object], says: str
) -> None:
    """With a hash that is theirs: nothing is broadcast, left out or believed."""
    lesson.forge(change)
    assert lesson.found()[1]["step"] == STEPS - 1
    assert says in caplog.text


def test_what_is_not_finite_is_never_the_last_good_checkpoint(lesson: Lesson, caplog: pytest.LogCaptureFixture) -> None:
    save_checkpoint(lesson.folder, STEPS + 1, {"model.a": torch.full((2,), float("nan"))}, {"settings": "s"}, keep=1)
    assert lesson.found()[1]["step"] == STEPS and len(list(lesson.folder.iterdir())) == 2
    assert "model.a is not finite" in caplog.text


def test_those_of_another_training_are_refused_and_not_called_damaged(lesson: Lesson) -> None:
    lesson.forge(lambda found: found.pop(WEIGHT))
    with pytest.raises(MismatchError, match="made with other settings or data"):
        lesson.found("others")


def test_from_a_step_on_they_are_dropped(lesson: Lesson) -> None:
    assert drop_checkpoints(lesson.folder, STEPS) == 1 and lesson.found()[1]["step"] == STEPS - 1
    assert drop_checkpoints(lesson.folder, STEPS) == 0
    assert [path.name for path in lesson.folder.iterdir()] == [f"step-{STEPS - 1:08d}"]
