"""UniPC's sums are diffusers' own, and nothing of the schedule reaches the sample's device."""

from __future__ import annotations

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from torch.utils._python_dispatch import TorchDispatchMode

from dcdm_cli.model.unipc import LeanUniPC

SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def samples(kind: type[UniPCMultistepScheduler], device: str = "cpu", **changes: object) -> list[torch.Tensor]:
    scheduler = kind(**{**SCHEDULE, **changes})
    scheduler.set_timesteps(8)
    sample = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)).to(device)
    made = []
    for timestep in scheduler.timesteps:
        prediction = 0.3 * sample + 0.1 * torch.tanh(sample)
        sample = scheduler.step(prediction, timestep, sample, return_dict=False)[0]
        made.append(sample)
    return made


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"solver_order": 3}, {"solver_order": 1}, {"final_sigmas_type": "sigma_min"},
        {"prediction_type": "v_prediction"}, {"disable_corrector": [0, 1]},
        {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        {"predict_x0": False, "final_sigmas_type": "sigma_min"},
    ],
)  # fmt: skip
def test_the_samples_are_diffusers_own(changes: dict[str, object]) -> None:
    for ours, theirs in zip(samples(LeanUniPC, **changes), samples(UniPCMultistepScheduler, **changes), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


class Copies(TorchDispatchMode):
    """Counts what goes from the CPU to the device of the samples."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        moved = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        self.count += moved and made.device.type == "meta" and args[0].device.type == "cpu"
        return made


def test_no_step_copies_the_schedule_to_the_device() -> None:
    """The meta device stands for a GPU."""
    with Copies() as ours:
        samples(LeanUniPC, "meta")
    with Copies() as theirs:  # of first order, as no system can be solved there
        samples(UniPCMultistepScheduler, "meta", solver_order=1)
    assert ours.count == 1, "the noise"
    assert theirs.count > 2 * 8, "else this test sees nothing"
