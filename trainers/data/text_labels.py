"""The labels of texts: ids in a file, and the names that they stand for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.data.rows import short
from trainers.data.tner import read_label_names

LABEL_COLUMNS = ("label", "labels", "class", "class index", "category", "sentiment")
"""Columns that can hold the label, the first that is there, in any case."""


@dataclass(frozen=True)
class LabelNames:
    """What the labels in a file mean."""

    names: tuple[str, ...] | None
    """Declared names in order of their ids. None: whatever the file holds are names."""
    first_id: int = 0
    """The id of the first name, where the file has ids."""

    def name_of(self, label: Any) -> str:
        """The name of a label as a file has it. ValueError for one that is not declared, or is neither id nor name."""
        if type(label) is str:
            label = label.strip()
            if label and (self.names is None or label in self.names):
                return label
        elif type(label) is int and self.names is None and label >= 0:
            return str(label)
        if self.names is None:
            raise ValueError(f"the label is {short(label)}, expected a name, or an id from 0")
        if type(label) is int or (type(label) is str and label.isdecimal()):
            index = int(label) - self.first_id
            if 0 <= index < len(self.names):
                return self.names[index]
        ids = f"{self.first_id} to {self.first_id + len(self.names) - 1}"
        raise ValueError(f"the label is {short(label)}, expected one of {', '.join(self.names)}, or an id from {ids}")


def declared_names(path: Path, folder: Path) -> LabelNames:
    """The labels that stand beside a file, or else in its data set's folder, or in the file itself."""
    for place in (path.parent, folder):
        if (place / "label.json").is_file():
            return LabelNames(read_label_names(place / "label.json"))
        if (place / "classes.txt").is_file():
            return LabelNames(_read_classes(place / "classes.txt"), first_id=int(path.suffix == ".csv"))
    return LabelNames(_names_in_parquet(path) if path.suffix == ".parquet" else None)


def _read_classes(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}.") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{path} holds {list(names)}: expected the name of each class once, one a line.")
    return names


def _names_in_parquet(path: Path) -> tuple[str, ...] | None:
    """Class names of the label column, where the hub's libraries wrote them."""
    from trainers.data.parquet import metadata

    features = ((metadata(path) or {}).get("info") or {}).get("features") or {}
    for name, feature in features.items():
        if name.lower() in LABEL_COLUMNS and isinstance(feature, dict) and feature.get("names"):
            return tuple(feature["names"])
    return None


def sorted_names(names: set[str]) -> tuple[str, ...]:
    """Ids by their size, names by the alphabet."""
    are_ids = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=int) if are_ids else sorted(names))
