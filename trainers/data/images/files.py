"""Pictures as files: which ones lie in a folder, which ones can be used, and the data set that those make."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from trainers.data.images.batches import ImageDataset
from trainers.data.images.decode import IMAGE_SUFFIXES, decode, named, open_image
from trainers.data.labels import say_alike
from trainers.data.rows import NAMED_ROWS, BadRows

logger = logging.getLogger(__name__)

THREADS = 8
"""Pictures that are checked at once; Pillow decodes outside Python's lock."""
OTHER_PICTURES = (
    ".heic",
    ".heif",
    ".avif",
    ".jp2",
    ".svg",
    ".psd",
    ".eps",
    ".dcm",
    ".nii",
    ".raw",
    ".dng",
    ".cr2",
    ".nef",
)
"""Endings of pictures that are not read; what they are would be missed without a word."""
IGNORED_FOLDERS = ("__macosx", "thumbs.db")
"""What operating systems add, beside hidden folders."""
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
"""What a whole file of a format has near its end."""
TAIL = 1024
"""So near, in bytes."""
WITH_PAGES = ("GIF", "TIFF", "WEBP", "PNG")
"""Formats of which a file can hold several pictures."""

Row = tuple[Path | bytes, str, Path, int | None]
"""A picture's file or its content, its label, and where a complaint about it belongs: file and line, or the picture."""


def inner_folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name, without hidden ones and what operating systems add."""
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not is_ignored(path.name)]


def image_files(folder: Path, *, deep: bool = True) -> Iterator[Path]:
    """Pictures in a folder, with ``deep`` also below it, in a fixed order; hidden ones are no data (as ._1.jpg beside
    1.jpg)."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if deep and not is_ignored(name))
        for name in sorted(names):
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield Path(parent, name)


def holds_pictures(folder: Path) -> bool:
    """Whether a picture lies in a folder or below it."""
    return next(image_files(folder), None) is not None


def refuse_pictures(place: str | Path) -> None:
    """Nothing, unless this is a folder of pictures, where something else was expected.

    Raises:
        ValueError: it is one.
    """
    if Path(place).is_dir() and holds_pictures(Path(place)):
        raise ValueError(f"{place} holds pictures: did you forget --task image-classification?")


def is_ignored(name: str) -> bool:
    """Whether a folder is hidden, or what an operating system added."""
    return name.startswith(".") or name.lower() in IGNORED_FOLDERS


def say_what_is_not_read(folder: Path) -> None:
    """Log how many pictures below a folder are of formats that are not read."""
    endings = Counter(
        Path(name).suffix.lower()
        for _, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(OTHER_PICTURES) and not name.startswith(".")
    )
    if endings:
        listed = ", ".join(f"{count} {ending}" for ending, count in sorted(endings.items()))
        logger.warning("%s: not read: %s. Convert them to PNG or JPEG.", folder, listed)


def datasets_of_rows(rows: dict[str, list[Row]], sources: dict[str, str], bad_rows: BadRows) -> dict[str, ImageDataset]:
    """Checked pictures, with one set of labels for all splits: every label of any of them, sorted."""
    rows = {split: list(_sound(found, bad_rows)) for split, found in rows.items()}
    labels = tuple(sorted({label for _, label, _, _ in chain.from_iterable(rows.values())}))
    say_alike(labels, "classes")
    ids = {label: index for index, label in enumerate(labels)}
    return {
        split: ImageDataset(
            [picture for picture, _, _, _ in found],
            np.array([ids[label] for _, label, _, _ in found], dtype=np.int64),
            labels,
            sources[split],
        )
        for split, found in rows.items()
    }


def _sound(rows: Iterable[Row], bad_rows: BadRows) -> Iterator[Row]:
    """The rows whose picture can be read.

    Where bad pictures are to be left out, each is decoded once, since only then it is known which ones are. Else
    headers are read, and only those are decoded whose file does not end as its format does, as when a download was cut
    short; a picture that is damaged in its middle is named when it is decoded in training.
    """
    rows = list(rows)
    check = partial(_problem, thorough=bad_rows.on_bad_row == "skip")
    of_several = []
    with ThreadPoolExecutor(THREADS) as threads:
        problems = threads.map(check, [picture for picture, _, _, _ in rows])
        for row, (problem, several) in zip(rows, problems, strict=True):
            picture, _, file, line = row
            if several:
                of_several.append(f"{file}:{line}" if isinstance(picture, bytes) else str(picture))
            if problem is None:
                yield row
            else:
                is_named = line is None or isinstance(picture, bytes)
                bad_rows.add(file, line, problem if is_named else f"{picture}: {problem}")
    if of_several:
        listed = ", ".join(of_several[:NAMED_ROWS]) + (", ..." if len(of_several) > NAMED_ROWS else "")
        logger.warning("%d files hold several pictures, of which the first is read: %s", len(of_several), listed)


def _problem(picture: Path | bytes, thorough: bool) -> tuple[str | None, bool]:
    """What is wrong with a picture (None: nothing), and whether its file holds several."""
    try:
        with open_image(picture) as image:
            several = image.format in WITH_PAGES and bool(getattr(image, "is_animated", False))
            if image.size == (1, 1):
                return "a single pixel is no picture", several
            ends_well = _ends_well(picture, image.format or "")
        if thorough or not ends_well:
            decode(picture)
    except (ValueError, OSError, SyntaxError, EOFError) as error:
        return str(error).removeprefix(f"{named(picture)}: "), False
    return None, several


def _ends_well(picture: Path | bytes, form: str) -> bool:
    """Whether a file ends as its format does, or that cannot be told; something may follow the end."""
    if form not in ENDS:
        return True
    if isinstance(picture, bytes):
        return ENDS[form] in picture[-TAIL:]
    with picture.open("rb") as file:
        file.seek(max(0, picture.stat().st_size - TAIL))
        return ENDS[form] in file.read()
