"""Lists of pictures in text files, as data sets are published with: the split of each picture, or its class."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from trainers.data.images.batches import ImageDataset
from trainers.data.images.files import Row, holds_pictures, image_files, inner_folders
from trainers.data.images.paths import Pictures
from trainers.data.rows import encoding_of
from trainers.data.sources import SPLIT_OF_NAME, UNSPLIT
from trainers.data.splits import take

logger = logging.getLogger(__name__)

PROBED = 20
"""Lines of a file that tell whether it is a list of pictures."""
IDS, SPLIT_OF_IDS = "images.txt", "train_test_split.txt"
"""CUB-200's lists: a number and a path; a number and 1 for training, 0 for test."""


def by_lists(place: Path, dataset: ImageDataset) -> dict[str, ImageDataset]:
    """The splits that lists of names beside the pictures tell; under UNSPLIT the data set itself where there are none.

    Lists are train.txt and test.txt (train_val_list.txt, TestImages.txt, ...), a picture a line, by its path or the end
    of one, with or without the ending, perhaps with something behind it; or CUB-200's pair of files. They lie in the
    folder of the data set or in a folder in it. Without a list for training, what no list names is for training.

    Raises:
        ValueError: two lists name the same picture.
    """
    folder = place if place.is_dir() else place.parent
    if isinstance(dataset.images, np.ndarray) or not all(isinstance(image, Path) for image in dataset.images):
        return {UNSPLIT: dataset}
    pictures = Pictures(folder)
    lists = _ids_list(folder, pictures) or _named_lists(folder, pictures)
    if not lists:
        return {UNSPLIT: dataset}
    index_of = {os.path.normpath(image): index for index, image in enumerate(dataset.images)}
    split_of_index: dict[int, str] = {}
    for split, (path, names) in lists.items():
        found = [index_of.get(os.path.normpath(picture)) for picture in map(pictures.named, names) if picture]
        indices = [index for index in found if index is not None]
        if len(indices) < len(names):
            missing = len(names) - len(indices)
            logger.warning("%s: %d of the %d pictures that it names are not in the data", path, missing, len(names))
        for index in indices:
            if split_of_index.setdefault(index, split) != split:
                both = f"{split_of_index[index]} and {split}"
                raise ValueError(f"{path}: {dataset.images[index]} is listed for {both}. Take it out of one list.")
    listed = ", ".join(str(path.relative_to(folder)) for path in dict.fromkeys(path for path, _ in lists.values()))
    logger.info("%s: the splits are those of %s", folder, listed)
    rest = [index for index in range(len(dataset)) if index not in split_of_index]
    if rest and "train" not in lists:
        split_of_index |= dict.fromkeys(rest, "train")
        logger.info("%s: the %d pictures that no list names are for training", folder, len(rest))
    elif rest:
        first = dataset.images[rest[0]]
        logger.warning("%s: %d pictures stand in no list, and are left out; the first: %s", folder, len(rest), first)
    places = {split: [i for i in range(len(dataset)) if split_of_index.get(i) == split] for split in SPLIT_OF_NAME}
    return {split: take(dataset, np.array(own)) for split, own in places.items() if own}


def labels_listed(folder: Path, classes: Collection[str]) -> list[Row]:
    """The pictures of a split without folders of classes, by a file in it that names the class of each.

    Such is Tiny ImageNet's val_annotations.txt: the name of a picture, a tab, its class, and more.

    Args:
        folder: of the split.
        classes: those of the training split.
    """
    pictures = Pictures(folder)
    for path in _texts_in(folder):
        rows: list[Row] = []
        for number, line in _lines(path):
            cells = [cell.strip(' "') for cell in re.split(r"[\t,;]|\s+", line) if cell]
            picture = pictures.named(cells[0]) if len(cells) > 1 and cells[1] in classes else None
            if picture:
                rows.append((picture, cells[1], path, number))
        if rows:
            left = {*map(str, image_files(folder))} - {str(picture) for picture, _, _, _ in rows}
            logger.info("%s: the classes of its pictures are those of %s", folder, path.name)
            if left:
                logger.warning("%s names no class for %d pictures: they are left out", path, len(left))
            return rows
    return []


def _texts_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.txt")) + sorted(folder.glob("*.csv")) if path.is_file()]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are neither blank nor comments, with their numbers."""
    with path.open("rb") as file:
        encoding = encoding_of(file.read(1 << 16))
    with path.open(encoding=encoding, errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip() and not line.startswith("#"):
                yield number, line.strip().lstrip("\ufeff")


def _ids_list(folder: Path, pictures: Pictures) -> dict[str, tuple[Path, list[str]]]:
    """The list of each split in CUB-200's two files."""
    if not ((folder / IDS).is_file() and (folder / SPLIT_OF_IDS).is_file()):
        return {}
    names = dict(line.split(maxsplit=1) for _, line in _lines(folder / IDS) if " " in line)
    found: dict[str, tuple[Path, list[str]]] = {}
    for _, line in _lines(folder / SPLIT_OF_IDS):
        number, _, is_train = line.partition(" ")
        if number in names and is_train.strip() in ("0", "1"):
            split = "train" if is_train.strip() == "1" else "test"
            found.setdefault(split, (folder / SPLIT_OF_IDS, []))[1].append(names[number])
    return found


def _named_lists(folder: Path, pictures: Pictures) -> dict[str, tuple[Path, list[str]]]:
    """The list of each split by the names of the files; none where several claim one."""
    places = [folder, *(inner for inner in inner_folders(folder) if not holds_pictures(inner))]
    found: dict[str, list[tuple[Path, list[str]]]] = {}
    for path in (path for place in places for path in sorted(place.glob("*.txt"))):
        split = _split_of_list(path.stem)
        if split and any(_picture_on(line, pictures) for _, line in islice(_lines(path), PROBED)):
            names = [_picture_on(line, pictures) or line for _, line in _lines(path)]
            found.setdefault(split, []).append((path, names))
    own = {split: lists for split, lists in found.items() if split != "train and validation"}
    if "train" not in own and "train and validation" in found:
        own["train"] = found["train and validation"]
    several = [path.name for lists in own.values() if len(lists) > 1 for path, _ in lists]
    if several:
        shown = ", ".join(several[:5]) + (", ..." if len(several) > 5 else "")
        logger.warning("%s: NOT used are the lists of splits, of which there are several for one: %s. Keep one for "
                       "each split.", folder, shown)  # fmt: skip
        return {}
    return {split: lists[0] for split, lists in own.items()}


def _split_of_list(stem: str) -> str | None:
    """The split that the name of a list tells: train, val_list, TestImages, trainval."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem).lower())
    splits = {SPLIT_OF_NAME[word] for word in words if word in SPLIT_OF_NAME}
    if "trainval" in words or splits == {"train", "validation"}:
        return "train and validation"
    return splits.pop() if len(splits) == 1 else None


def _picture_on(line: str, pictures: Pictures) -> str | None:
    """The name of the picture on a line: all of it, or its first word; None: there is none."""
    for name in dict.fromkeys((line, line.split()[0].rstrip(","))):
        if pictures.named(name):
            return name
    return None
