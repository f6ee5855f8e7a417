"""Pictures as files: a folder for each class, or a CSV of paths and labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainers.data.images.batches import ImageDataset
from trainers.data.images.decode import IMAGE_SUFFIXES, decode, open_image
from trainers.data.rows import BadRows, short
from trainers.data.sources import DATA_DIR_VARIABLE, SPLIT_OF_NAME

if TYPE_CHECKING:
    from PIL.Image import Image

PATH_COLUMNS = ("image", "path", "file", "file_name", "filename", "image_path")
LABEL_COLUMNS = ("label", "class", "label_name")
SPLIT_COLUMN = "split"
THREADS = 8
"""Pictures that are checked at once; Pillow decodes outside Python's lock."""

Row = tuple[Path, str, Path, int | None]
"""A picture's file, its label, and where a complaint about it belongs: file and line, or the picture itself."""


def read_class_folders(folders: dict[str, Path], bad_rows: BadRows) -> dict[str, ImageDataset]:
    """Splits from folders that hold a folder for each class; its pictures may lie deeper in it."""
    rows = {split: list(_pictures(folder)) for split, folder in folders.items()}
    return _datasets(rows, {split: str(folder) for split, folder in folders.items()}, bad_rows)


def class_folders(folder: Path) -> list[Path]:
    """Folders directly in ``folder`` that hold a picture, sorted by name."""
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and next(_image_files(path), None)]


def read_csv_files(files: dict[str, Path], bad_rows: BadRows) -> dict[str, ImageDataset]:
    """Splits from CSV files with a header and the columns image (or path, file, filename), label, and perhaps split.

    Paths are relative to the CSV file's folder. A path that leads out of it (absolute, or by ..) must lie below
    $LORA_DATA_DIR: a table from elsewhere shall not choose which of your files are opened. Links that lie inside
    may point anywhere.

    Args:
        files: the file of each split, or under UNSPLIT the only one. A column split goes before that.
        bad_rows: takes lines that cannot be used, and pictures.

    Raises:
        ValueError: a file is no CSV in UTF-8, or lacks a column.
    """
    rows: dict[str, list[Row]] = {}
    for split, path in files.items():
        for word, row in _csv_rows(path, bad_rows):
            own = split if word is None else SPLIT_OF_NAME.get(word.strip().lower())
            if own is None:
                bad_rows.add(path, row[3], f"split is {short(word)}, expected one of {', '.join(SPLIT_OF_NAME)}")
                continue
            rows.setdefault(own, []).append(row)
    sources = {split: str(files.get(split, next(iter(files.values())))) for split in rows}
    return _datasets(rows, sources, bad_rows)


def _datasets(rows: dict[str, list[Row]], sources: dict[str, str], bad_rows: BadRows) -> dict[str, ImageDataset]:
    """Checked pictures, with one set of labels for all splits: every label of any of them, sorted."""
    rows = {split: list(_sound(found, bad_rows)) for split, found in rows.items()}
    labels = tuple(sorted({label for _, label, _, _ in chain.from_iterable(rows.values())}))
    ids = {label: index for index, label in enumerate(labels)}
    return {
        split: ImageDataset(
            [path for path, _, _, _ in found],
            np.array([ids[label] for _, label, _, _ in found], dtype=np.int64),
            labels,
            sources[split],
        )
        for split, found in rows.items()
    }


def _sound(rows: Iterable[Row], bad_rows: BadRows) -> Iterator[Row]:
    """The rows whose picture can be read.

    Where bad pictures are to be left out, each is decoded once, since only then it is known which ones are. Else
    only headers are read, and a picture that is damaged further on is named when it is decoded in training.
    """
    rows = list(rows)
    check = partial(_problem, read=decode if bad_rows.on_bad_row == "skip" else open_image)
    with ThreadPoolExecutor(THREADS) as threads:
        problems = threads.map(check, [path for path, _, _, _ in rows])
        for row, problem in zip(rows, problems, strict=True):
            if problem is None:
                yield row
            else:
                path, _, file, line = row
                bad_rows.add(file, line, problem if line is None else f"{path}: {problem}")


def _problem(path: Path, read: Callable[[Path], Image]) -> str | None:
    """What is wrong with a picture; None: nothing that ``read`` meets."""
    try:
        read(path).close()
    except ValueError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def _pictures(folder: Path) -> Iterator[Row]:
    for class_folder in class_folders(folder):
        for path in _image_files(class_folder):
            yield path, class_folder.name, path, None


def _image_files(folder: Path) -> Iterator[Path]:
    """Pictures in a folder and below, in a fixed order; hidden ones are no data (as ._1.jpg beside 1.jpg)."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield Path(parent, name)


def _csv_rows(path: Path, bad_rows: BadRows) -> Iterator[tuple[str | None, Row]]:
    """(Word in the column split, row) of each usable line."""
    data_dir = os.environ.get(DATA_DIR_VARIABLE)
    allowed = [path.parent, *([Path(data_dir)] if data_dir else [])]
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="", strict=True)
            image_column, label_column = _columns(path, reader.fieldnames or ())
            for values in reader:
                line = reader.line_num
                image, label = values[image_column], values[label_column]
                if not image or not label or "" in values:
                    expected = f"{len(reader.fieldnames or ())} fields with {image_column} and {label_column} filled"
                    bad_rows.add(path, line, f"expected {expected}, got {short(list(values.values()))}")
                    continue
                picture = Path(os.path.normpath(path.parent / image))
                if not any(picture.is_relative_to(os.path.normpath(folder)) for folder in allowed):
                    remedy = f"Use paths below it, or set {DATA_DIR_VARIABLE} to the pictures' folder"
                    bad_rows.add(path, line, f"{image_column} is {short(image)}, outside of {path.parent}. {remedy}")
                    continue
                yield values.get(SPLIT_COLUMN), (picture, label, path, line)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not CSV in UTF-8: {error}.") from error


def _columns(path: Path, header: Iterable[str]) -> tuple[str, str]:
    """The columns of the picture's path and of its label."""
    paths = [name for name in header if name in PATH_COLUMNS]
    labels = [name for name in header if name in LABEL_COLUMNS]
    if len(paths) != 1 or len(labels) != 1:
        raise ValueError(
            f"{path} has the columns {short(list(header))}: expected one of {', '.join(PATH_COLUMNS)}, one of "
            f"{', '.join(LABEL_COLUMNS)}, and perhaps {SPLIT_COLUMN}."
        )
    return paths[0], labels[0]
