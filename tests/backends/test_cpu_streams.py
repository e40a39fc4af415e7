"""Cutting a batch: nothing lost, nothing twice, and all streams busy."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from dcdm_cli.backends.cpu_streams import CELLS_PER_CHUNK, Streams, plan_streams, rows_of

SMALL = st.integers(1, 40)


@given(images=st.integers(1, 500), count=st.integers(1, 9), most=SMALL)
def test_the_chunks_are_the_batch(images: int, count: int, most: int) -> None:
    streams = Streams(count, 1, most, 3)
    chunks = list(streams.cut(images))
    assert [i for start, stop in chunks for i in range(start, stop)] == list(range(images))
    sizes = [stop - start for start, stop in chunks]
    assert set(sizes[:-1]) <= {streams.chunk_size(images)} and max(sizes) <= most
    assert len(chunks) <= -(-images // (most * count)) * count  # no round more than it takes


def test_streams_share_a_batch_evenly() -> None:
    assert list(Streams(2, 1, 16, 3).cut(8)) == [(0, 4), (4, 8)]
    assert list(Streams(2, 1, 16, 3).cut(64)) == [(0, 16), (16, 32), (32, 48), (48, 64)]
    assert list(Streams(2, 1, 16, 3).cut(1)) == [(0, 1)]


def test_small_networks_get_a_stream_per_thread_and_large_ones_all_threads() -> None:
    assert plan_streams(64, 3, 2) == Streams(2, 1, CELLS_PER_CHUNK // 192, 3)
    assert plan_streams(64 * 64, 3, 2) == Streams(1, 2, 1, 3)


@given(images=SMALL, calls=st.integers(1, 3), data=st.data())
def test_the_rows_of_a_chunk_are_all_calls_of_its_images(images: int, calls: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, images - 1))
    stop = data.draw(st.integers(start + 1, images))
    rows = torch.arange(calls * images)
    expected = [call * images + image for call in range(calls) for image in range(start, stop)]
    assert rows_of(rows, calls, start, stop).flatten().tolist() == expected
