"""Pictures and labels in a table in memory, whatever library made it; none of them is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def as_stored(table: Any) -> Any:
    """The table; of a datasets.Dataset one whose pictures stay files, so that memory holds no pixels."""
    if not hasattr(table, "cast_column"):
        return table
    for name, feature in dict(getattr(table, "features", None) or {}).items():
        kind: Any = type(feature)
        if getattr(feature, "decode", None) is True and kind.__name__ == "Image":
            table = table.cast_column(name, kind(decode=False))
    return table


def in_folder(image: Any, folder: str | Path) -> Any:
    """A picture of a table: the content or the path of what the hub stores, and paths below ``folder``."""
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    return Path(folder, image) if isinstance(image, (str, Path)) else image


def plain_label(label: Any) -> Any:
    """A label without what libraries make of it: NumPy's numbers become Python's, whole ones with a point whole."""
    if isinstance(label, np.generic):
        label = label.item()
    return int(label) if isinstance(label, float) and label.is_integer() else label
