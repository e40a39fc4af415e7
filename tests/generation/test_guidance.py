"""Which calls are made when, and settings that make no sense."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcdm_cli.errors import UsageError
from dcdm_cli.generation.engine import sampler_settings
from dcdm_cli.generation.guidance import Guidance, check_one_scale, guidance_of
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


@given(easy=st.floats(1, 10), hard=st.floats(1, 10), requested=st.floats(0, 1), difficulty=SCALES)
def test_a_span_leaves_the_calls_as_they_are(easy: float, hard: float, requested: float, difficulty: float) -> None:
    guidance = Guidance(2.0, difficulty, span=(easy, hard))
    weights = guidance.weights(requested)
    assert sum(weights.values()) == pytest.approx(1) and len(weights) == (2 if difficulty == 2.0 else 3)
    scale = 1 - weights["none"]
    assert min(easy, hard) - 1e-6 <= scale <= max(easy, hard) + 1e-6
    assert guidance.call_counts(5) == {len(weights)}


def test_a_span_of_a_run_reaches_its_guidance() -> None:
    assert guidance_of(config(guidance_span=(8.0, 1.5)), plain=False).span == (8.0, 1.5)
    assert guidance_of(config(), plain=False).span is None
    # calibrations from before there was one still hold, and those with one do not without it
    assert "guidance_span" not in sampler_settings(config())
    assert sampler_settings(config(guidance_span=(8.0, 1.5)))["guidance_span"] == [8.0, 1.5]


@pytest.mark.parametrize("span", [("0.5", "2"), ("2", "0"), ("2",), ("2", "3", "4")])
def test_a_span_that_is_none_is_a_usage_error(span: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"generate\.guidance_span"):
        resolve(flags={"generate.guidance_span": span})


def test_a_span_is_not_distilled() -> None:
    with pytest.raises(UsageError, match=r"guidance_span.*a scale of its own"):
        check_one_scale(config(guidance_span=(8.0, 1.5)))
