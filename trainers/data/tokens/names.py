"""What a corpus calls its tags: in label.json, in the metadata of parquet files, in dataset_infos.json, in its card."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_core.files import read_json_object
from trainers.data.labels import read_label_names
from trainers.data.rows import ARROW, parquet_metadata, short
from trainers.data.tokens.schemes import notation_of, tag_parts


def declared_names(first: Path, folder: Path, keys: Sequence[str]) -> tuple[str, ...] | None:
    """The names of tag ids in their order, where a corpus tells them.

    Args:
        first: a file of the corpus.
        folder: its folder.
        keys: the columns that can hold the tags.

    Raises:
        ValueError: a file that should tell them is damaged.
    """
    if first.suffix in (".parquet", ARROW) and (names := _names_in(parquet_metadata(first), keys)):
        return names
    for place in (first.parent, folder, folder / "dataset"):
        if (place / "label.json").is_file():
            return _read_tag_names(place / "label.json")
    if (folder / "dataset_infos.json").is_file():
        infos = read_json_object(folder / "dataset_infos.json", "Correct it, or name the labels in a file.")
        return _names_in(infos, keys)
    return _names_in(_read_card(folder / "README.md"), keys) if (folder / "README.md").is_file() else None


def _names_in(features: Any, keys: Sequence[str]) -> tuple[str, ...] | None:
    """Class names of the tag column in a description of features, in any of the hub's notations."""
    for value in _tag_features(features, keys):
        for names in _values_of("names", value):
            if isinstance(names, dict):  # a card's {"0": "O", "1": "B-X", ...}
                names = [names[key] for key in sorted(names, key=int)]
            if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
                return tuple(names)
    return None


def _tag_features(value: Any, keys: Sequence[str]) -> Iterator[Any]:
    if isinstance(value, dict):
        if value.get("name") in keys:
            yield value
        for column in keys:
            if column in value:
                yield value[column]
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _tag_features(inner, keys)


def _values_of(key: str, value: Any) -> Iterator[Any]:
    if isinstance(value, dict) and key in value:
        yield value[key]
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _values_of(key, inner)


def _read_card(path: Path) -> Any:
    """The YAML head of a data set's README."""
    import yaml

    text = path.read_text(encoding="utf-8")
    if not text.startswith("---"):
        return None
    try:
        return yaml.safe_load(text.split("---", 2)[1])
    except yaml.YAMLError as error:
        raise ValueError(
            f"the head of {path} is not YAML: {error}. Correct it, or name the labels in a file."
        ) from error


def read_names(path: Path) -> tuple[str, ...]:
    """Tag names in order of their ids from a file that the user names."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; it should name the tags in order of their ids.")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix != ".json":
        return tuple(text.split())
    if not text.lstrip().startswith("["):
        return _read_tag_names(path)
    try:
        names = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON in UTF-8: {error}.") from error
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f'{path} holds {short(names)}, expected ["O", "B-X", ...] or {{"O": 0, "B-X": 1, ...}}.')
    return tuple(names)


def _read_tag_names(path: Path) -> tuple[str, ...]:
    """The names in a label.json, which must be tags."""
    names = read_label_names(path)
    notation = notation_of(Counter(names)) or "B-X"
    foreign = [name for name in names if not tag_parts(name, notation)]
    if foreign:
        raise ValueError(
            f"{path} has labels outside the IOB scheme: {short(foreign)}; expected O, B-TYPE and I-TYPE, or those of "
            "IOBES, BILOU or BMEWO, or O and types alone."
        )
    return names
