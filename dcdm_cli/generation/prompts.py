"""Text encodings of captions, computed once per distinct caption and kept while there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

CHUNK = 8  # captions encoded at once, always: an encoding must not depend on which others were due with it
LIMIT_BYTES = 2**28
Encode = Callable[[list[str]], Tensor]


class PromptCache:
    """encode: captions -> [N, T, D]. device: where the encodings are kept and wanted. limit_bytes: memory for them.

    Asking for more captions at once than fit still works: the limit holds between calls.
    """

    def __init__(self, encode: Encode, device: str, limit_bytes: int = LIMIT_BYTES) -> None:
        self._encode, self._device, self._limit = encode, device, limit_bytes
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0

    def get(self, captions: Sequence[str], coming: Iterable[str] = ()) -> Tensor:
        """float32 [len(captions), T, D]. coming: captions that will be asked for soon, which fill up a chunk."""
        missing = [caption for caption in dict.fromkeys(captions) if caption not in self._kept]
        # otherwise what is coming is not even read
        if missing:
            missing += self._ahead(coming, {*self._kept, *missing}, -len(missing) % CHUNK)
        for start in range(0, len(missing), CHUNK):
            self._add(missing[start : start + CHUNK])
        for caption in captions:
            self._kept.move_to_end(caption)
        text = torch.stack([self._kept[caption] for caption in captions])
        # only now: this call may have asked for more than may be kept
        self._forget()
        return text

    @staticmethod
    def _ahead(coming: Iterable[str], known: set[str], room: int) -> list[str]:
        """The first `room` captions of `coming` that are not known."""
        found: list[str] = []
        for caption in coming:
            if len(found) == room:
                break
            if caption not in known:
                found.append(caption)
                known.add(caption)
        return found

    def _add(self, captions: list[str]) -> None:
        padded = captions + [""] * (CHUNK - len(captions))
        for caption, text in zip(padded, self._encode(padded).float().to(self._device), strict=True):
            # what fills a chunk up comes several times, and its bytes count once
            if caption not in self._kept:
                self._kept[caption] = text.clone()  # a slice would keep its whole chunk in memory
                self._bytes += text.nbytes

    def _forget(self) -> None:
        """Drops what was not asked for the longest."""
        while self._bytes > self._limit and self._kept:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
