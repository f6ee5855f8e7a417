"""The tables of a data set of pictures: which files they are, and the splits that their rows make."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from trainers.data.images.batches import ImageDataset
from trainers.data.images.columns import Columns, choose_columns, picture_of, say_columns
from trainers.data.images.files import Row, datasets_of_rows, image_files, inner_folders
from trainers.data.images.folders import class_folders, split_folders
from trainers.data.images.paths import Pictures, split_of_place
from trainers.data.images.tables import is_table, open_table
from trainers.data.reading import Reading
from trainers.data.rows import BadRows, short
from trainers.data.sources import (
    HUB_FILES,
    SPLIT_NAMES,
    SPLIT_OF_NAME,
    UNSPLIT,
    are_shards,
    by_split,
    check_one_form,
    names_no_split,
)
from trainers.data.tabular import Table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PictureTable:
    """A table of pictures and labels."""

    table: Table
    columns: Columns
    pictures: Pictures
    """Where its pictures lie."""

    @property
    def path(self) -> Path:
        """Its file."""
        return self.table.path

    @classmethod
    def open(
        cls, path: Path, reading: Reading, pictures: Pictures | None = None, labels: Sequence[str] = ()
    ) -> PictureTable:
        """Find out what the columns of a file are; ``labels`` are those of the training split's table.

        Raises:
            ValueError: it is no table of pictures and labels.
        """
        table, pictures = open_table(path, reading), pictures or Pictures(path.parent)
        return cls(table, choose_columns(table, reading, pictures, labels), pictures)


def read_table(path: Path, reading: Reading, bad_rows: BadRows) -> dict[str, ImageDataset]:
    """The splits of one table, or under UNSPLIT its rows where it tells none.

    Raises:
        ValueError: it is no table of pictures and labels.
    """
    return _read({UNSPLIT: [PictureTable.open(path, reading)]}, bad_rows)


def read_tables(
    folder: Path, tables: dict[str, list[PictureTable]], problems: dict[Path, ValueError], bad_rows: BadRows
) -> dict[str, ImageDataset]:
    """The splits of the tables that `find_tables` found in a folder.

    Raises:
        ValueError: it cannot be told which one is meant.
    """
    chosen = _meant(folder, tables)
    for path, problem in problems.items():
        logger.warning("not read: %s", str(problem) if str(path) in str(problem) else f"{path}: {problem}")
    found = _read(chosen, bad_rows)
    _say_pictures_left(folder, found.values())
    return found


def _say_pictures_left(folder: Path, datasets: Iterable[ImageDataset]) -> None:
    """Log how many pictures below a folder no row of its tables names, by their folders."""
    read = {os.path.normpath(image) for dataset in datasets for image in dataset.images if isinstance(image, Path)}
    if not read:
        return
    left = Counter(path.parent for path in image_files(folder) if os.path.normpath(path) not in read)
    for place, count in left.items():
        logger.warning("%s: %d of its pictures stand in no row of the table, and are left out. `lora-core predict RUN "
                       "%s` reads such.", place, count, place)  # fmt: skip


def find_tables(folder: Path, reading: Reading) -> tuple[dict[str, list[PictureTable]], dict[Path, ValueError]]:
    """The tables of pictures and labels in a folder, by split, and what is wrong with the others.

    The tables of other splits than the training split must have its column of labels: else they have no labels.
    """
    usable: dict[str, list[PictureTable]] = {}
    problems: dict[Path, ValueError] = {}
    labels: Sequence[str] = ()
    shared: dict[Path, Pictures] = {}
    files = table_files(folder)
    for split in (*SPLIT_NAMES, UNSPLIT):
        for path in files.get(split, []):
            pictures = shared.setdefault(path.parent, Pictures(path.parent))
            try:
                found = PictureTable.open(path, reading, pictures, () if split == UNSPLIT else labels)
            except ValueError as problem:
                problems[path] = problem
                continue
            usable.setdefault(split, []).append(found)
            labels = found.columns.labels if split == "train" else labels
    return usable, problems


def table_files(folder: Path) -> dict[str, list[Path]]:
    """The tables in a folder by their splits, and in the folders of splits those called metadata,
    or by a number, or alone among loose pictures."""
    inside = [path for path in sorted(folder.iterdir()) if path.name not in HUB_FILES]
    tables = [path for path in inside if path.is_file() and is_table(path)]
    files, others = by_split((path, path) for path in tables if "submission" not in path.name.lower())
    if others:
        files[UNSPLIT] = others
    for split, inner in split_folders(folder).items():
        own = [path for path in sorted(inner.iterdir()) if path.is_file() and is_table(path)]
        told = [path for path in own if path.name.lower().startswith("metadata.") or names_no_split(path.name)]
        if not told and len(own) == 1 and not class_folders(inner):
            told = own  # Roboflow's _classes.csv
        files.setdefault(split, []).extend(told)
    return {split: paths for split, paths in files.items() if paths}


def folder_of_tables(folder: Path) -> Path | None:
    """The only folder with tables in a folder, such as data in a data set of the hub."""
    found = [path for path in inner_folders(folder) if any(map(is_table, path.iterdir()))]
    return found[0] if len(found) == 1 else None


def _meant(folder: Path, usable: dict[str, list[PictureTable]]) -> dict[str, list[PictureTable]]:
    """Those of the tables that make up the data set."""
    of_splits = {split: found for split, found in usable.items() if split != UNSPLIT}
    others = [table.path.name for table in usable.get(UNSPLIT, [])]
    for split, found in of_splits.items():
        check_one_form(split, [table.path for table in found], folder)
    if "train" in of_splits or not others:
        if others:
            logger.warning("%s: %s is not read beside the tables of splits", folder, ", ".join(others))
        return of_splits
    names = [*others, *(table.path.name for found in of_splits.values() for table in found)]
    if not are_shards(names):
        suffixes = {Path(name).suffix for name in names}
        kind = f"{suffixes.pop()} files" if len(suffixes) == 1 else "tables"
        raise ValueError(f"{folder} holds several {kind}: {', '.join(names)}. Name one.")
    return usable


def _read(tables: dict[str, list[PictureTable]], bad_rows: BadRows) -> dict[str, ImageDataset]:
    rows: dict[str, list[Row]] = {}
    sources: dict[str, str] = {}
    for split, found in tables.items():
        for table in found:
            say_columns(table.table, table.columns)
            for own, row in _rows(split, table, bad_rows):
                rows.setdefault(own, []).append(row)
                sources.setdefault(own, str(table.path))
    if list(rows) == [UNSPLIT]:
        rows = _by_place(rows[UNSPLIT], next(iter(tables.values()))[0])
        sources = dict.fromkeys(rows, sources[UNSPLIT])
    if not rows:
        raise ValueError(f"{next(iter(tables.values()))[0].path} holds no usable picture. Fill it or remove it.")
    return datasets_of_rows(rows, sources, bad_rows)


def _rows(split: str, table: PictureTable, bad_rows: BadRows) -> Iterator[tuple[str, Row]]:
    """(Split, row) of each usable line."""
    columns = table.columns
    used = {columns.picture, *columns.labels, *([columns.split] if columns.split else [])}
    for number, values in table.table.read(used, bad_rows):
        try:
            own = split if columns.split is None else _split_of(values.get(columns.split), columns)
            row = _picture(values, own, table), columns.label_of(values), table.path, number
        except ValueError as problem:
            bad_rows.add(table.path, number, str(problem))
            continue
        yield own, row


def _split_of(word: Any, columns: Columns) -> str:
    split = SPLIT_OF_NAME.get(str(word).strip().lower())
    if split is None:
        raise ValueError(f"{columns.split} is {short(word)}, expected one of {', '.join(SPLIT_OF_NAME)}")
    return split


def _picture(values: dict[str, Any], split: str, table: PictureTable) -> Path | bytes:
    column = table.columns.picture
    picture = picture_of(values.get(column))
    if picture is None:
        raise ValueError(f"{column} is empty: a label without a picture")
    if isinstance(picture, bytes):
        return picture
    try:
        return table.pictures.find(picture, split)
    except ValueError as problem:
        raise ValueError(f"{column} is {problem}") from problem


def _lies_in(picture: Path | bytes, folder: Path) -> TypeGuard[Path]:
    return isinstance(picture, Path) and picture.is_relative_to(folder)


def _by_place(rows: list[Row], table: PictureTable) -> dict[str, list[Row]]:
    """The rows by the splits whose folders their pictures lie in, if all do and there are several."""
    folder = table.pictures.folder
    inside = [row[0].relative_to(folder) if _lies_in(row[0], folder) else Path() for row in rows]
    places = [split_of_place(path) for path in inside]
    told = {place for place in places if place}
    if len(told) < 2:
        return {UNSPLIT: rows}
    if None in places:
        raise ValueError(
            f"{table.path}: {places.count(None)} of {len(places)} pictures lie outside of the folders of splits that "
            "the others lie in. Add a column split, or move the pictures."
        )
    logger.info("%s: the pictures' folders tell the splits", table.path)
    return {split: [row for row, place in zip(rows, places, strict=True) if place == split] for split in told}
