"""How models learn and serve: `loop.py` is the page to read first; README.md draws the rooms.

Its own names are what a notebook needs: `train` on data in memory, `pipeline` to predict, the data sets to build. They
are imported when they are first used, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.config import RunConfig
    from trainers.data.images.batches import ImageDataset
    from trainers.data.splits import hold_out
    from trainers.data.texts.dataset import TextDataset
    from trainers.data.tokens.reader import TokenDataset
    from trainers.notebook import train
    from trainers.serve import pipeline

__all__ = ["ImageDataset", "RunConfig", "TextDataset", "TokenDataset", "hold_out", "pipeline", "train"]

_HOMES = {
    "ImageDataset": "data.images.batches",
    "RunConfig": "config",
    "TextDataset": "data.texts.dataset",
    "TokenDataset": "data.tokens.reader",
    "hold_out": "data.splits",
    "pipeline": "serve",
    "train": "notebook",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
