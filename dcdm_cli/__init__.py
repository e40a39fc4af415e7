"""dcdm: extra training images of chosen difficulty for image classifiers.

`Run` does what the command line does, `DifficultyEncoder` brings difficulty to plain diffusers (docs/python.md). Both
are imported when they are first asked for: the package itself costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcdm_cli.api.run import Run
    from dcdm_cli.model.encoder import DifficultyEncoder

__version__ = "0.1.0"
__all__ = ["DifficultyEncoder", "Run", "__version__"]
_PLACES = {"DifficultyEncoder": "dcdm_cli.model.encoder", "Run": "dcdm_cli.api.run"}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        # what `hasattr` and the import of a submodule expect of a name that is not there
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # globals() lacks what nobody has asked for yet
