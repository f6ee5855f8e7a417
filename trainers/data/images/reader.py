"""Labelled pictures from disk: finds them, recognises their layout, reads the splits."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from trainers.data.images.batches import ImageDataset
from trainers.data.images.files import class_folders, read_class_folders, read_csv_files
from trainers.data.images.npz import read_npz
from trainers.data.rows import BadRows, OnBadRow
from trainers.data.sources import SPLIT_NAMES, SPLIT_OF_NAME, find_source

logger = logging.getLogger(__name__)

HELD_OUT = 0.1
"""Share of the pictures that becomes the validation split, and likewise the test split, where the data has none."""
SPLIT_SEED = 0
"""Seed of that choice. It is not the run's, so that runs with other seeds are scored on the same pictures."""


def load_image_datasets(source: str | Path, *, on_bad_row: OnBadRow = "error") -> dict[str, ImageDataset]:
    """Read the splits "train", "validation" and "test" of a data set, those that exist.

    `source` is a path, or a name under the folder in the environment variable LORA_DATA_DIR. It is one of

    - an .npz file in the MedMNIST layout, or a folder that holds one;
    - a folder with train, val (valid, validation, dev) and test, each with a folder of pictures for each class;
    - a folder with a folder of pictures for each class: of each class 80 % become train, 10 % validation, 10 % test;
    - a CSV file with the columns image (or path, file, filename) and label, and perhaps split, or a folder that
      holds one such file, or train.csv, val.csv and test.csv. Without splits they are made in the same way.

    Data with a training split but no validation split loses 10 % of the former to the latter, which is logged.

    Raises ValueError for anything else, and for a picture or a line that cannot be used, naming it.
    `on_bad_row="skip"` leaves such pictures out, for which each is decoded once, and reports them through logging.
    """
    if on_bad_row not in ("error", "skip"):
        raise ValueError(f"on_bad_row={on_bad_row!r}: expected 'error' or 'skip'.")
    bad_rows = BadRows(on_bad_row)
    datasets = _read(find_source(source, ["*"], "a folder, an .npz or CSV file"), bad_rows)
    bad_rows.report()
    for dataset in datasets.values():
        if not len(dataset):
            raise ValueError(f"{dataset.source} holds no usable picture. Fill it or remove it.")
    if "train" in datasets and "validation" not in datasets:
        datasets = _with_validation(datasets)
    if "train" in datasets:
        _report_unknown(datasets)
    return {split: datasets[split] for split in SPLIT_NAMES if split in datasets}


def _read(path: Path, bad_rows: BadRows) -> dict[str, ImageDataset]:
    if path.suffix == ".npz":
        return read_npz(path)
    if path.suffix == ".csv":
        return _read_csv({"all": path}, bad_rows)
    if path.is_file():
        raise ValueError(f"{path} is neither .npz nor .csv, and no folder.")
    if folders := _by_split(path, ""):
        return read_class_folders(folders, bad_rows)
    if files := _by_split(path, ".csv"):
        return _read_csv(files, bad_rows)
    for suffix in (".csv", ".npz"):
        found = sorted(path.glob(f"*{suffix}"))
        if len(found) > 1:
            raise ValueError(
                f"{path} holds several {suffix} files: {', '.join(file.name for file in found)}. Name one."
            )
        if found:
            return _read(found[0], bad_rows)
    if class_folders(path):
        return _split(read_class_folders({"all": path}, bad_rows)["all"])
    raise ValueError(
        f"{path} holds no pictures: expected folders train, val and test with a folder for each class, a folder for "
        "each class, an .npz file in the MedMNIST layout, or a CSV file with the columns image and label."
    )


def _read_csv(files: dict[str, Path], bad_rows: BadRows) -> dict[str, ImageDataset]:
    datasets = read_csv_files(files, SPLIT_OF_NAME, bad_rows)
    if "all" not in datasets:
        return datasets
    if len(datasets) > 1:
        raise ValueError(f"{files['all']} names a split in some lines and none in others. Fill the column or drop it.")
    return _split(datasets["all"])


def _by_split(folder: Path, suffix: str) -> dict[str, Path]:
    """The folder or file of each split; two for one split are an error."""
    found = {}
    for split, names in SPLIT_NAMES.items():
        paths = [folder / f"{name}{suffix}" for name in names]
        paths = [path for path in paths if (path.is_file() if suffix else path.is_dir())]
        if len(paths) > 1:
            listed = ", ".join(path.name for path in paths)
            raise ValueError(f"{folder} holds {listed} for the {split} split. Keep one of them.")
        if paths:
            found[split] = paths[0]
    return found


def _split(dataset: ImageDataset) -> dict[str, ImageDataset]:
    """80 % train, 10 % validation and 10 % test of each class."""
    rest, test = _hold_out(dataset)
    train, validation = _hold_out(rest, len(dataset))
    return {"train": train, "validation": validation, "test": test}


def _with_validation(datasets: dict[str, ImageDataset]) -> dict[str, ImageDataset]:
    train, validation = _hold_out(datasets["train"])
    logger.warning("%s: no validation split; %d of %d training pictures became one", train.source, len(validation),
                   len(datasets["train"]))  # fmt: skip
    return {**datasets, "train": train, "validation": validation}


def _hold_out(dataset: ImageDataset, of: int | None = None) -> tuple[ImageDataset, ImageDataset]:
    """(The rest, about 10 % of each class); with `of`, 10 % of a whole that had so many pictures."""
    random = np.random.default_rng(SPLIT_SEED)
    share = HELD_OUT * (of or len(dataset)) / len(dataset)
    chosen = np.zeros(len(dataset), dtype=bool)
    for label in range(len(dataset.labels)):
        members = np.flatnonzero(dataset.targets == label)
        chosen[random.permutation(members)[: round(share * len(members))]] = True
    if not chosen.any() or chosen.all():
        raise ValueError(f"{dataset.source} holds {len(dataset)} pictures, too few to set some aside for scoring.")
    return _take(dataset, np.flatnonzero(~chosen)), _take(dataset, np.flatnonzero(chosen))


def _take(dataset: ImageDataset, indices: np.ndarray) -> ImageDataset:
    images = dataset.images
    chosen = images[indices] if isinstance(images, np.ndarray) else [images[index] for index in indices]
    return replace(dataset, images=chosen, targets=dataset.targets[indices])


def _report_unknown(datasets: dict[str, ImageDataset]) -> None:
    known = set(np.unique(datasets["train"].targets))
    for split, dataset in datasets.items():
        unknown = [dataset.labels[target] for target in sorted(set(np.unique(dataset.targets)) - known)]
        if unknown:
            logger.warning("the %s split has labels that the training split lacks: %s", split, ", ".join(unknown))
