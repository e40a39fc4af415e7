"""Which calls are made when, and settings that make no sense."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcdm_cli.errors import UsageError
from dcdm_cli.generation.guidance import Guidance, guidance_of
from dcdm_cli.run.resolution import resolve

from .conftest import config

SCALES = st.sampled_from([0.0, 1.0, 2.0, 6.0])


@given(text=st.sampled_from([1.0, 2.0, 3.0]), difficulty=SCALES, steps=st.integers(1, 60), data=st.data())
def test_weights_sum_to_one_and_only_guided_steps_have_several(
    text: float, difficulty: float, steps: int, data: st.DataObject
) -> None:
    low = data.draw(st.floats(0, 1))
    high = data.draw(st.floats(low, 1))
    guidance = Guidance(text, difficulty, (low, high))
    schedule = guidance.schedule(steps)
    assert len(schedule) == steps and all(sum(weights.values()) == pytest.approx(1) for weights in schedule)
    guided = [i for i, weights in enumerate(schedule) if weights != {"full": 1.0}]
    assert all(low <= (i + 0.5) / steps <= high for i in guided)
    assert guidance.call_counts(steps) == {len(weights) for weights in schedule}
    assert guidance.shared_calls(steps) in (1, len(guidance.weights()))


def test_a_plain_lora_has_no_difficulty_term() -> None:
    assert guidance_of(config(), plain=True).weights() == {"none": -1.0, "full": 2.0}
    assert guidance_of(config(), plain=False).weights() == {"none": -1.0, "text": -2.0, "full": 4.0}
    assert guidance_of(config(guidance_interval=(0.1, 0.9)), plain=False).interval == (0.1, 0.9)


@pytest.mark.parametrize("interval", [("0.8", "0.2"), ("0.5", "0.5"), ("0.5", "1.5"), ("-0.1", "1"), ("0.5",)])
def test_an_interval_that_is_none_is_a_usage_error(interval: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"generate\.guidance_interval"):
        resolve(flags={"generate.guidance_interval": interval})
