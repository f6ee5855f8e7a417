"""Pictures in a folder for each class: which folders are splits, which are classes, and what is left out."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from trainers.data.images.batches import ImageDataset
from trainers.data.images.files import (
    Row,
    datasets_of_rows,
    holds_pictures,
    image_files,
    inner_folders,
    say_what_is_not_read,
)
from trainers.data.images.lists import labels_listed
from trainers.data.rows import BadRows
from trainers.data.sources import SPLIT_NAMES, SPLIT_OF_NAME, UNSPLIT, split_in_name

logger = logging.getLogger(__name__)

EXPECTED = "folders train, val and test with a folder for each class in them, or a folder for each class"


def read_class_folders(folder: Path, bad_rows: BadRows) -> dict[str, ImageDataset]:
    """The splits of a folder, or under UNSPLIT its pictures where it has none.

    In a split every folder with pictures is a class, whatever lies deeper in it. Where there is only one, and folders
    with pictures in it, it is an outer folder and those are the classes; so in train/animals/cat the class is cat.

    Raises:
        ValueError: there are no folders of classes, or it cannot be told which they are.
    """
    say_what_is_not_read(folder)
    splits = labelled_splits(folder)
    listed: dict[str, list[Row]] = {}
    if splits:
        roots, listed = _class_roots(splits)
    else:
        roots = {UNSPLIT: folder}
        _check_that_classes_are_outermost(folder)
    rows = {split: listed.get(split) or _pictures(root) for split, root in roots.items()}
    return datasets_of_rows(rows, {split: str(root) for split, root in roots.items()}, bad_rows)


def class_folders(folder: Path) -> list[Path]:
    """Folders directly in ``folder`` that hold a picture, sorted by name."""
    return [path for path in inner_folders(folder) if holds_pictures(path)]


def outer_folder(folder: Path, *, in_split: bool = False) -> Path | None:
    """The only folder with pictures in a folder, if it is not a class but what the data set lies in.

    Args:
        folder: where to look.
        in_split: it is the folder of a split, in which a name such as seg_train/seg_train tells nothing more.
    """
    children = class_folders(folder)
    if len(children) != 1 or next(image_files(folder, deep=False), None):
        return None
    if split_in_name(children[0].name) and not in_split:
        return None
    return children[0] if class_folders(children[0]) else None


def has_labelled_splits(folder: Path) -> bool:
    """Whether a folder holds the folder of a split with folders of classes in it."""
    return any(class_folders(path) for path in split_folders(folder).values())


def labelled_splits(folder: Path) -> dict[str, Path]:
    """The folders of splits that hold folders of classes; logs what is left out beside them.

    Raises:
        ValueError: it cannot be told what is a split and what a class.
    """
    splits = split_folders(folder)
    if not splits:
        return {}
    labelled = {split: path for split, path in splits.items() if class_folders(path)}
    classes = [path for path in class_folders(folder) if path not in splits.values()]
    if not labelled:
        return _flat_splits(folder, splits, classes)
    if classes and "train" not in labelled:
        raise ValueError(
            f"{folder} holds {_listed(labelled.values())} for a split beside {_listed(classes)}. Put these into a "
            "folder train."
        )
    known = {path.name for path in class_folders(labelled["train"])} if "train" in labelled else set()
    flat = {split: path for split, path in splits.items() if split not in labelled}
    labelled |= {split: path for split, path in flat.items() if known and labels_listed(path, known)}
    for path in (*classes, *(path for path in splits.values() if path not in labelled.values())):
        count = sum(1 for _ in image_files(path))
        if count:
            logger.warning(
                "%s: its %d pictures have no folders of classes beside those of the splits, and are left out. "
                "`lora-core predict RUN %s` reads them.",
                path, count, path,
            )  # fmt: skip
        else:
            raise ValueError(f"{path} holds no usable picture. Fill it or remove it.")
    return labelled


def _flat_splits(folder: Path, splits: dict[str, Path], classes: list[Path]) -> dict[str, Path]:
    """No splits, where a class is called train; else an error: the folders of splits hold no folders of classes."""
    for path in splits.values():
        if not holds_pictures(path):
            raise ValueError(f"{path} holds no usable picture. Fill it or remove it.")
    if not classes:
        raise ValueError(
            f"{_listed(splits.values())} in {folder} hold pictures, but no folders of classes: expected {EXPECTED}, or "
            "a table of pictures and labels."
        )
    if list(splits) != ["train"]:
        raise ValueError(
            f"{folder} holds {_listed(splits.values())} beside {_listed(classes)}: a split or a class? Move the "
            "pictures of a split into folders of classes, and those to learn from into train; or rename the class."
        )
    logger.warning("%s is read as a class, not as a split: it holds pictures and no folders", splits["train"])
    return {}


def split_folders(folder: Path) -> dict[str, Path]:
    """The folder of each split: called train, TEST_SET or seg_train, or cats_train beside cats_test.

    Raises:
        ValueError: there are several for a split.
    """
    found: dict[str, list[Path]] = {}
    prefixed: dict[str, dict[str, Path]] = {}
    for path in inner_folders(folder):
        words = re.split(r"[-_. ]+", path.name.lower())
        named = [word for word in words if word in SPLIT_OF_NAME]
        if split := split_in_name(path.name):
            found.setdefault(split, []).append(path)
        elif len(named) == 1:
            rest = " ".join(word for word in words if word not in SPLIT_OF_NAME)
            prefixed.setdefault(rest, {})[SPLIT_OF_NAME[named[0]]] = path
    for paths in prefixed.values():
        if len(paths) > 1 and not found:
            found = {split: [path] for split, path in paths.items()}
    for split, paths in found.items():
        if len(paths) > 1:
            raise ValueError(
                f"{folder} holds {_listed(paths)} for the {split} split. Keep one of them, or move all pictures there."
            )
    return {split: found[split][0] for split in SPLIT_NAMES if split in found}


def _class_roots(splits: dict[str, Path]) -> tuple[dict[str, Path], dict[str, list[Row]]]:
    """The folder in which each split's classes lie, and the pictures of those whose classes stand in a file; splits
    without a class of the training split are left out."""
    roots: dict[str, Path] = {}
    listed: dict[str, list[Row]] = {}
    known: set[str] = set()
    for split, folder in splits.items():
        chain = [folder]
        while inner := outer_folder(chain[-1], in_split=True):
            chain.append(inner)
        if split == "train" or not known:
            roots[split] = chain[-1]
            known = {path.name for path in class_folders(chain[-1])} if split == "train" else known
            continue
        fitting = [place for place in chain if known & {path.name for path in class_folders(place)}]
        if fitting:
            roots[split] = fitting[0]
            continue
        if rows := labels_listed(folder, known):
            roots[split], listed[split] = folder, rows
            continue
        names = _listed(class_folders(chain[-1]))
        logger.warning(
            "%s: its folders (%s) are no classes of the training split (%s): it has no labels, and is left out. "
            "`lora-core predict RUN %s` reads it.",
            folder, names, ", ".join(sorted(known)[:5]), folder,
        )  # fmt: skip
    for split, root in roots.items():
        if root != splits[split]:
            logger.info("%s: the classes are the folders in %s", splits[split], root)
    return roots, listed


def _check_that_classes_are_outermost(folder: Path) -> None:
    """Refuse folders that hold splits of their own: several data sets, or splits inside of classes."""
    with_splits = [path for path in class_folders(folder) if any(map(holds_pictures, split_folders(path).values()))]
    if with_splits:
        raise ValueError(
            f"{_listed(with_splits)} in {folder} hold folders of splits of their own. Name one of them, or put the "
            "splits outermost: train/cat, not cat/train."
        )


def _pictures(folder: Path) -> list[Row]:
    """The pictures of every class; logs what is no class."""
    rows: list[Row] = []
    deeper = []
    for path in inner_folders(folder):
        files = list(image_files(path))
        if not files:
            logger.warning("%s holds no picture: it is left out", path)
        if any(file.parent != path for file in files):
            deeper.append(path.name)
        rows += [(file, path.name, file, None) for file in files]
    if deeper:
        logger.warning(
            "%s: folders lie inside the classes %s; their pictures count for these", folder, ", ".join(deeper[:5])
        )
    loose = sum(1 for _ in image_files(folder, deep=False))
    if not rows:
        there = f"{loose} pictures, but no folders of classes" if loose else "no pictures"
        raise ValueError(f"{folder} holds {there}: expected {EXPECTED}, or a table of pictures and labels.")
    if loose:
        logger.warning("%s: %d pictures lie in no class folder: they are left out", folder, loose)
    return rows


def _listed(paths: Iterable[Path]) -> str:
    """The names of folders for a message."""
    names = [path.name for path in paths]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
