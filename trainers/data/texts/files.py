"""Which files of a folder hold labelled texts, and which split each belongs to."""

import logging
from collections.abc import Sequence
from itertools import chain, product
from pathlib import Path

from trainers.data.sources import SPLIT_NAMES, SPLIT_OF_NAME, UNSPLIT, by_split, check_one_form, split_of
from trainers.data.texts.forms import IGNORED_CLASSES, class_folders

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".data", ".label", ".jsonl", ".ndjson", ".json", ".parquet", ".xlsx")
"""Ends of names of files that may hold texts, also with .gz; what is in them tells their form."""
NO_DATA = ("label.json", "classes.txt", "dataset_infos.json", "dataset_dict.json", "state.json", "dataset_info.json")
"""Files beside the data, in lower case; so are those whose names begin with README or LICENSE."""


def split_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split, or the folder that holds its class folders."""
    found = _files_in(folder)
    if not any(map(split_of, chain.from_iterable(found.values()))):  # test_ids.txt beside the folders train and test
        found = _folders_in(folder) or found
    if not found:
        inner = {path: files for path in sorted(folder.iterdir()) if path.is_dir() and (files := _files_in(path))}
        if len(inner) > 1:
            raise ValueError(f"several folders hold a data set: {', '.join(map(str, inner))}. Name one of them.")
        found = next(iter(inner.values()), {})
    if not found:
        inside = sorted(folder.iterdir())
        single = [path for path in inside if _may_hold_texts(path)]
        single = single or [path for path in inside if not path.suffix and _may_hold_texts(path, "")]
        if len(single) > 1:
            listed = ", ".join(path.name for path in single)
            raise ValueError(
                f"{folder} holds {listed}, and no name says which split it is. Name one of them, or call them train, "
                "valid and test."
            )
        if single or len(class_folders(folder)) > 1:
            return {UNSPLIT: single or [folder]}
        raise ValueError(
            f"{folder} holds no labelled texts: expected train, valid and test files ending in "
            f"{', '.join(SUFFIXES)}, one such file, or folders train and test with a folder of .txt files for each "
            "class."
        )
    for split, paths in found.items():
        check_one_form(split, paths, paths[0].parent)
    _name_others(list(chain.from_iterable(found.values())))
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def _files_in(folder: Path) -> dict[str, list[Path]]:
    return by_split((path, path) for path in sorted(folder.iterdir()) if _may_hold_texts(path))[0]


def _folders_in(folder: Path) -> dict[str, list[Path]]:
    found, _ = by_split((Path(path.name), path) for path in sorted(folder.iterdir()) if class_folders(path))
    for path in chain.from_iterable(found.values()):
        for ignored in IGNORED_CLASSES:
            if (path / ignored).is_dir():
                logger.warning("%s holds texts without labels, which are left out", path / ignored)
    return found


def _may_hold_texts(path: Path, suffixes: str | tuple[str, ...] = SUFFIXES) -> bool:
    """Whether a file can hold labelled texts, by its name."""
    name = path.name.lower()
    if name in NO_DATA or name.startswith((".", "readme", "license")) or not path.is_file():
        return False
    return name.removesuffix(".gz").endswith(suffixes) or (name.endswith(".gz") and split_of(path) is not None)


def _name_others(read: Sequence[Path]) -> None:
    """Say which files beside those that are read look like data and are passed over."""
    folders = dict.fromkeys(path.parent for path in read)
    others = [path for folder in folders for path in sorted(folder.iterdir()) if _may_hold_texts(path)]
    others = [path for path in others if path not in read]
    if others:
        listed = ", ".join(map(str, others[:5])) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        logger.warning("not read, as the name says no split, or one that has its file: %s", listed)


def patterns() -> list[str]:
    """Names of the files that a hub data set can hold."""
    names = (*SPLIT_OF_NAME, *map(str.capitalize, SPLIT_OF_NAME))
    ends = [f"{suffix}{packed}" for suffix in SUFFIXES for packed in ("", ".gz")]
    return ["*label.json", "*classes.txt", *(f"*{name}*{end}" for name, end in product(names, ends))]
