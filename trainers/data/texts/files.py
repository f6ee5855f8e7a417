"""Which files of a folder hold labelled texts, and which split each belongs to."""

import logging
from collections.abc import Sequence
from itertools import chain, product
from pathlib import Path

from trainers.data.sources import (
    HUB_FILES,
    SPLIT_NAMES,
    SPLIT_OF_NAME,
    UNSPLIT,
    are_shards,
    by_split,
    check_one_form,
    names_no_split,
    split_of,
)
from trainers.data.texts.forms import IGNORED_CLASSES, class_folders
from trainers.data.texts.lines import CLASS_ENDS, UTTERANCES

logger = logging.getLogger(__name__)

SUFFIXES = (
    ".csv", ".tsv", ".tab", ".txt", ".data", ".label", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".xlsx"
)  # fmt: skip
"""Ends of names of files that may hold texts, also with .gz; what is in them tells their form."""
NO_DATA = ("label.json", "classes.txt", *HUB_FILES)
"""Files beside the data, in lower case; so are those whose names hold README or begin with LICENSE."""


def split_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split, or the folder that holds its class folders.

    They lie in the folder, in its folders of splits, or in the only folder in it that holds such.
    """
    found = _splits_in(folder)
    if not found:
        inner = {path: files for path in sorted(folder.iterdir()) if path.is_dir() and (files := _splits_in(path))}
        if len(class_folders(folder)) > 1:  # words in the names of their texts are no splits
            inner = {path: files for path, files in inner.items() if any(map(split_of, chain(*files.values())))}
        if len(inner) > 1:
            raise ValueError(f"several folders hold a data set: {', '.join(map(str, inner))}. Name one of them.")
        found = next(iter(inner.values()), {})
        for path in inner:
            logger.info("%s: the data set lies in %s", folder, path.name)
    if not found:
        folders = [path for path in sorted(folder.iterdir()) if path.is_dir()]
        if unsplit := _unsplit(folder):
            return {UNSPLIT: unsplit}
        if len(folders) == 1:
            return split_files(folders[0])
        raise ValueError(
            f"{folder} holds no labelled texts: expected train, valid and test files ending in {', '.join(SUFFIXES)}, "
            "one such file, or folders train and test with a folder of .txt files for each class."
        )
    for split, paths in found.items():
        if not all(path.suffix in CLASS_ENDS for path in paths):
            check_one_form(split, paths, paths[0].parent)
    _name_others(list(chain.from_iterable(found.values())))
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def _unsplit(folder: Path) -> list[Path]:
    """The only file of a folder without splits, those of its classes, or the folder itself if it has class folders."""
    inside = sorted(folder.iterdir())
    of_classes = [path for path in inside if path.suffix in CLASS_ENDS]
    if len({path.stem for path in of_classes}) == 1 and len(of_classes) > 1:
        return of_classes
    single = [path for path in inside if _may_hold_texts(path)]
    single = single or [path for path in inside if not path.suffix and _may_hold_texts(path, "")]
    if single and not are_shards(path.name for path in single):
        listed = ", ".join(path.name for path in single)
        raise ValueError(
            f"{folder} holds {listed}, and no name says which split it is. Name one of them, or call them train, valid "
            "and test."
        )
    return single or ([folder] if len(class_folders(folder)) > 1 else [])


def _splits_in(folder: Path) -> dict[str, list[Path]]:
    """The files or folders of each split in a folder."""
    found = by_split((path, path) for path in sorted(folder.iterdir()) if _may_hold_texts(path))[0]
    if any(map(split_of, chain.from_iterable(found.values()))):
        return found
    # test_ids.txt may stand beside the folders train and test
    return _folders_in(folder) or _files_in_split_folders(folder) or found


def _files_in_split_folders(folder: Path) -> dict[str, list[Path]]:
    """Files whose names tell nothing in the folders of splits: shards, and seq.in."""
    files = [path for path in sorted(folder.glob("*/*")) if _may_hold_texts(path) and names_no_split(path.name)]
    files = [path for path in files if path.suffix != ".txt"]  # a text each
    return by_split((path, path) for path in files)[0]


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
    if name in NO_DATA or name.startswith((".", "license", "cache-")) or "readme" in name or not path.is_file():
        return False
    if name == UTTERANCES or (path.suffix in CLASS_ENDS and suffixes):
        return name == UTTERANCES or split_of(path) is not None
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
