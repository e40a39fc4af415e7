"""Captions are encoded once, independently of one another, within a bound of memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dcdm_cli.generation.prompts import CHUNK, PromptCache


class Encoder:
    """[N, 2, 4] filled with each caption's length; remembers what it was given."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, captions: list[str]) -> torch.Tensor:
        self.asked.append(captions)
        return torch.stack([torch.full((2, 4), float(len(caption))) for caption in captions])


ONE = 2 * 4 * 4  # bytes of an encoding


def test_each_caption_is_encoded_once_and_in_order() -> None:
    encoder = Encoder()
    cache = PromptCache(encoder, "cpu")
    assert cache.get(["bb", "a", "bb"])[:, 0, 0].tolist() == [2, 1, 2]
    assert cache.get(["a", "", "bb"])[:, 0, 0].tolist() == [1, 0, 2]
    assert [len(asked) for asked in encoder.asked] == [CHUNK]


def test_an_encoding_is_made_in_the_same_shape_whatever_is_due() -> None:
    encoder = Encoder()
    cache = PromptCache(encoder, "cpu")
    for count in (1, 3, CHUNK, CHUNK + 1, 3 * CHUNK):
        cache.get([f"{count}-{i}" for i in range(count)])
    assert {len(asked) for asked in encoder.asked} == {CHUNK}


def test_a_chunk_is_filled_up_with_what_comes_next() -> None:
    encoder = Encoder()
    cache = PromptCache(encoder, "cpu")
    coming = [f"c{i}" for i in range(20)]
    cache.get(["a"], iter(["a", "c0", *coming]))
    assert encoder.asked == [["a", *coming[: CHUNK - 1]]]
    cache.get(coming[:3])
    assert len(encoder.asked) == 1


def never_read() -> Iterator[str]:
    raise AssertionError("read without need")
    yield ""


def test_what_comes_next_is_not_read_without_need() -> None:
    cache = PromptCache(Encoder(), "cpu")
    cache.get(["a"])
    cache.get(["a"], never_read())


def test_the_oldest_are_forgotten_when_memory_is_short() -> None:
    encoder = Encoder()
    cache = PromptCache(encoder, "cpu", limit_bytes=CHUNK * ONE)
    first, second = ([f"{name}{i}" for i in range(CHUNK)] for name in "xy")
    cache.get(first)
    cache.get(first)
    assert len(encoder.asked) == 1
    cache.get(second)
    cache.get(second)
    assert len(encoder.asked) == 2
    cache.get(first)
    assert len(encoder.asked) == 3


def test_more_captions_than_fit_still_come_out() -> None:
    cache = PromptCache(Encoder(), "cpu", limit_bytes=ONE)
    made = cache.get(["x" * i for i in range(30)])
    assert made[:, 0, 0].tolist() == list(range(30))
