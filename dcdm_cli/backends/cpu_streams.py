"""How a batch is cut on a CPU: into chunks whose activations stay in a core's cache, run side by side on one core each.

A small network spends much of its time in operations that are too short to share between threads; two chunks on two
threads of their own finish sooner than one batch on both. A large network is left whole and shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

CELLS_PER_CHUNK = 3072  # latent cells of all rows of a chunk; with 48 channels, one tensor of them is 0.6 MiB


@dataclass(frozen=True)
class Streams:
    """count: chunks that run side by side. threads: for each. most: images in a chunk. calls: rows per image."""

    count: int
    threads: int
    most: int
    calls: int

    def chunk_size(self, images: int) -> int:
        """Images per chunk, so that all chunks but the last are equal and all streams have work to the end."""
        rounds = -(-images // (self.most * self.count))
        return -(-images // (rounds * self.count))

    def cut(self, images: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of each chunk, in images."""
        size = self.chunk_size(images)
        for start in range(0, images, size):
            yield start, min(start + size, images)


def plan_streams(cells: int, calls: int, threads: int) -> Streams:
    """cells: latent cells (h * w) of one row. calls: rows that must stay together, as they share a prefix."""
    most = CELLS_PER_CHUNK // (cells * calls)
    if most < 1:
        return Streams(1, threads, 1, calls)
    return Streams(threads, 1, most, calls)


def rows_of(tensor: Tensor, calls: int, start: int, stop: int) -> Tensor:
    """The rows of images start..stop of a batch [calls * B, ...], all calls of them: [calls * (stop - start), ...]."""
    return tensor.unflatten(0, (calls, -1))[:, start:stop]
