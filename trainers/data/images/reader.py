"""Labelled pictures from disk: finds them, recognises their layout, reads the splits."""

from pathlib import Path

from trainers.data.images.batches import ImageDataset
from trainers.data.images.decode import IMAGE_SUFFIXES
from trainers.data.images.files import class_folders, read_class_folders, read_csv_files
from trainers.data.images.npz import read_npz
from trainers.data.rows import BadRows, OnBadRow
from trainers.data.sources import SPLIT_NAMES, SPLIT_OF_NAME, UNSPLIT, check_one_form, find_source
from trainers.data.splits import completed, hold_out

PATTERNS = [f"*{end}" for end in (".npz", ".csv", *IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES))]
"""Names of the files that are fetched of a data set on the hub."""


def load_image_datasets(source: str | Path, *, on_bad_row: OnBadRow = "error") -> dict[str, ImageDataset]:
    """Read the splits "train", "validation" and "test" of a data set, those that exist.

    A data set is one of

    - an .npz file in the MedMNIST layout, or a folder that holds one;
    - a folder with train, val and test, each with a folder of pictures for each class;
    - a folder with a folder of pictures for each class: of each class 80 % become train, 10 % validation, 10 % test;
    - a CSV file with the columns image (or path, file, filename) and label, and perhaps split, or a folder that
      holds one such file, or train.csv, val.csv and test.csv. Without splits they are made in the same way.

    Splits may also be called training, valid, validation, dev and testing, in any case. Data with a training split but
    no validation split loses 10 % of the former to the latter, which is logged.

    Args:
        source: a path; a name under the folder in the environment variable LORA_DATA_DIR; or a hub id, for which
            LORA_DATA_DIR is searched first.
        on_bad_row: "skip" leaves out pictures that cannot be used, for which each is decoded once, and reports them
            through logging.

    Raises:
        ValueError: there is no such data set, it is in another form, or with ``on_bad_row="error"`` a picture or a
            line cannot be used; the message names it.
    """
    bad_rows = BadRows(on_bad_row)
    datasets = _read(find_source(source, PATTERNS, "a folder, an .npz or CSV file"), bad_rows)
    bad_rows.report()
    for dataset in datasets.values():
        if not len(dataset):
            raise ValueError(f"{dataset.source} holds no usable picture. Fill it or remove it.")
    return completed(datasets)


def _read(path: Path, bad_rows: BadRows) -> dict[str, ImageDataset]:
    if path.suffix == ".npz":
        return read_npz(path)
    if path.suffix == ".csv":
        return _read_csv({UNSPLIT: path}, bad_rows)
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
        return _in_three(read_class_folders({UNSPLIT: path}, bad_rows)[UNSPLIT])
    raise ValueError(
        f"{path} holds no pictures: expected folders train, val and test with a folder for each class, a folder for "
        "each class, an .npz file in the MedMNIST layout, or a CSV file with the columns image and label."
    )


def _read_csv(files: dict[str, Path], bad_rows: BadRows) -> dict[str, ImageDataset]:
    datasets = read_csv_files(files, bad_rows)
    if UNSPLIT not in datasets:
        return datasets
    if len(datasets) > 1:
        raise ValueError(
            f"{files[UNSPLIT]} names a split in some lines and none in others. Fill the column or drop it."
        )
    return _in_three(datasets[UNSPLIT])


def _by_split(folder: Path, suffix: str) -> dict[str, Path]:
    """The folder of each split, or with a suffix its file."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        split = SPLIT_OF_NAME.get(path.name.lower().removesuffix(suffix))
        if split and (path.is_file() and path.suffix.lower() == suffix if suffix else path.is_dir()):
            found.setdefault(split, []).append(path)
    for split, paths in found.items():
        check_one_form(split, paths, folder)
    return {split: found[split][0] for split in SPLIT_NAMES if split in found}


def _in_three(dataset: ImageDataset) -> dict[str, ImageDataset]:
    """80 % train, 10 % validation and 10 % test of each class."""
    rest, test = hold_out(dataset)
    train, validation = hold_out(rest, of=len(dataset))
    return {"train": train, "validation": validation, "test": test}
