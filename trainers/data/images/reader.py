"""Labelled pictures from disk: finds them, recognises their layout, reads the splits."""

import logging
from itertools import chain
from pathlib import Path

from trainers.data.images.batches import ImageDataset
from trainers.data.images.decode import IMAGE_SUFFIXES
from trainers.data.images.files import image_files
from trainers.data.images.folders import (
    EXPECTED,
    class_folders,
    has_labelled_splits,
    outer_folder,
    read_class_folders,
    split_folders,
)
from trainers.data.images.lists import by_lists
from trainers.data.images.npz import read_npz
from trainers.data.images.table_files import PictureTable, find_tables, folder_of_tables, read_table, read_tables
from trainers.data.images.tables import TABLE_SUFFIXES, is_table
from trainers.data.labels import separator_of, spelled_list
from trainers.data.reading import Reading
from trainers.data.rows import BadRows, OnBadRow
from trainers.data.sources import UNSPLIT, find_source
from trainers.data.splits import completed, cut_in_three

logger = logging.getLogger(__name__)

PATTERNS = [f"*{end}" for end in (".npz", *TABLE_SUFFIXES, *IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES))]
"""Names of the files that are fetched of a data set on the hub."""


def load_image_datasets(
    source: str | Path, *, on_bad_row: OnBadRow = "error", reading: Reading | None = None
) -> dict[str, ImageDataset]:
    """Read the splits "train", "validation" and "test" of a data set, those that exist.

    A data set is one of

    - an .npz file in the MedMNIST layout, or a folder that holds one;
    - a folder with train, val and test, each with a folder of pictures for each class;
    - a folder with a folder of pictures for each class: of each class 80 % become train, 10 % validation, 10 % test;
    - a table, or a folder that holds one, or one for each split: CSV, JSON lines or parquet with a column of pictures
      (image, path, file_name, image_id, ...; in parquet also their content) and one of labels, or with a column of 0
      and 1 for each class, and perhaps split. Without splits they are made in the same way.

    Any of these may lie in an outer folder, which is logged. Splits may also be called training, valid, validation, dev
    and testing, in any case and with words that tell nothing (TEST_SET, seg_train). Splits without labels are left
    out, which is logged. Data with a training split but no validation split loses 10 % of the former to the latter,
    which is logged.

    Args:
        source: a path; a name under the folder in the environment variable LORA_DATA_DIR; or a hub id, for which
            LORA_DATA_DIR is searched first.
        on_bad_row: "skip" leaves out pictures that cannot be used, for which each is decoded once, and reports them
            through logging.
        reading: which column holds the label, and the delimiter and encoding of tables; its own ``on_bad_row`` does
            not count.

    Raises:
        ValueError: there is no such data set, it is in another form, or with ``on_bad_row="error"`` a picture or a
            line cannot be used; the message names it. Or there is only one class.
    """
    bad_rows = BadRows(on_bad_row)
    datasets = read_image_splits(source, bad_rows, reading)
    bad_rows.report()
    learnt = datasets.get(UNSPLIT) or datasets.get("train")
    if learnt is not None and len(set(learnt.targets.tolist())) == 1:
        raise ValueError(
            f"{learnt.source}: {learnt.labels[learnt.targets[0]]} is the only class: there is nothing to tell apart. "
            f"Expected {EXPECTED}, or a table of pictures and labels."
        )
    return completed(cut_in_three(datasets[UNSPLIT]) if UNSPLIT in datasets else datasets)


def read_image_splits(source: str | Path, bad_rows: BadRows, reading: Reading | None = None) -> dict[str, ImageDataset]:
    """The splits as they lie there, under UNSPLIT what has none: nothing is cut, and a single class will do.

    Splits are also those that lists of names beside the pictures tell.

    Raises:
        ValueError: as `load_image_datasets`.
    """
    reading = reading or Reading()
    place = find_source(source, PATTERNS, "a folder, an .npz file or a table")
    datasets = _read_file(place, reading, bad_rows) if place.is_file() else _read_folder(place, reading, bad_rows)
    for dataset in datasets.values():
        if not len(dataset):
            raise ValueError(f"{dataset.source} holds no usable picture. Fill it or remove it.")
    _refuse_several_labels(datasets.get(UNSPLIT) or next(iter(datasets.values())))
    return by_lists(place, datasets[UNSPLIT]) if UNSPLIT in datasets else datasets


def _refuse_several_labels(dataset: ImageDataset) -> None:
    """Raise ValueError where names of classes are several labels in one; log it where that is not sure."""
    labels = [dataset.labels[target] for target in dataset.targets]
    joined = [name for name in dataset.labels if " " in name]
    words = {word for name in joined for word in name.split()}
    of_classes = len(joined) > 1 and words <= {*dataset.labels}
    lists = [name for name in dataset.labels if len(spelled_list(name) or ()) > 1]
    if (separator := separator_of(labels)) or of_classes or lists:
        several = lists[0] if lists else next(name for name in dataset.labels if (separator or " ") in name)
        raise ValueError(
            f"{dataset.source}: {several!r} is several labels in one. Pictures are learned with one label each: leave "
            "such rows out, or give a column with one label (--label-column)."
            + ("" if separator or lists else " Where it is one name, write _ for its blanks.")
        )
    words |= {word for name in dataset.labels for word in name.split()}
    if joined and len(words) < len(dataset.labels):
        logger.warning(
            "%s: the %d classes are made of %d words, such as %r: if these are several labels for a picture, they "
            "are learned as one class for each combination.",
            dataset.source, len(dataset.labels), len(words), joined[0],
        )  # fmt: skip


def _read_file(path: Path, reading: Reading, bad_rows: BadRows) -> dict[str, ImageDataset]:
    if path.suffix.lower() == ".npz":
        return read_npz(path)
    if is_table(path):
        return read_table(path, reading, bad_rows)
    raise ValueError(f"{path} is no folder, and neither .npz nor a table ({', '.join(TABLE_SUFFIXES)}).")


def _read_folder(folder: Path, reading: Reading, bad_rows: BadRows) -> dict[str, ImageDataset]:
    """What lies in a folder, or in the only folder in it that holds pictures or tables."""
    problems: dict[Path, ValueError] = {}
    while True:
        has_classes = bool(class_folders(folder))
        tables, wrong = find_tables(folder, reading)
        problems |= wrong
        if tables and not _folders_come_first(folder, tables, reading):
            if has_classes:
                logger.info("%s: a table is read; the names of folders do not count as classes", folder)
            return read_tables(folder, tables, problems, bad_rows)
        if problems and reading.label_column:
            raise next(iter(problems.values()))
        arrays = sorted(folder.glob("*.npz"))
        if len(arrays) > 1:
            names = ", ".join(path.name for path in arrays)
            raise ValueError(f"{folder} holds several .npz files: {names}. Name one.")
        if arrays:
            return read_npz(arrays[0])
        inner = outer_folder(folder) or (None if has_classes else folder_of_tables(folder))
        if inner is None or tables:
            break
        logger.info("%s: the data set lies in %s", folder, inner.name)
        folder = inner
    if class_folders(folder) or split_folders(folder):
        for table in chain.from_iterable(tables.values()):
            logger.warning("%s: the folders of classes are read, and not this table. To read it: --data %s", folder,
                           table.path)  # fmt: skip
        for path, problem in problems.items():
            logger.warning("%s: the folders of classes are read, and not %s (%s)", folder, path.name, problem)
        return read_class_folders(folder, bad_rows)
    if problems:
        raise next(iter(problems.values()))
    loose = sum(1 for _ in image_files(folder))
    there = f"{loose} pictures without labels" if loose else "no pictures"
    raise ValueError(
        f"{folder} holds {there}: expected {EXPECTED}, an .npz file in the MedMNIST layout, or a table of pictures and "
        "labels."
    )


def _folders_come_first(folder: Path, tables: dict[str, list[PictureTable]], reading: Reading) -> bool:
    """Whether the folders of splits and classes are read, and not the tables beside them: unless those lie in the
    folders of splits, or have a split that the folders lack, or the user names a column."""
    beside = all(table.path.parent == folder for table in chain.from_iterable(tables.values()))
    with_classes = {split for split, path in split_folders(folder).items() if class_folders(path)}
    if "train" in tables and tables.keys() - with_classes - {UNSPLIT}:
        return False  # as in GTSRB, whose test pictures lie loose
    return beside and has_labelled_splits(folder) and not reading.label_column
