"""What children of this process find in their environment, and for how long."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# Every Python that is started from here finds '' in its path, and would run a pickle.py of the folder one stands in.
SAFE_PATH = {"PYTHONSAFEPATH": "1"}


@contextmanager
def variables(settings: Mapping[str, str]) -> Iterator[None]:
    """With these variables; afterwards each of them is what it was before."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
