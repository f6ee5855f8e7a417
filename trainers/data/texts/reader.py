"""Labelled texts from disk or the hub: finds the folder, recognises its layout, reads the splits."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trainers.data.rows import BadRows, OnBadRow
from trainers.data.sources import SPLIT_NAMES, SPLIT_OF_NAME, find_source, split_of
from trainers.data.splits import stratified_split, take
from trainers.data.texts.forms import (
    IGNORED_CLASSES,
    LabelNames,
    Row,
    class_folder_rows,
    class_folders,
    csv_rows,
    declared_names,
    json_rows,
    parquet_rows,
    sorted_names,
)

logger = logging.getLogger(__name__)

READERS: dict[str, Callable[[Path, LabelNames, BadRows], Iterator[Row]]] = {
    ".csv": csv_rows, ".jsonl": json_rows, ".json": json_rows, ".jsonl.gz": json_rows, ".json.gz": json_rows,
    ".parquet": parquet_rows, "": class_folder_rows,
}  # fmt: skip
"""By the end of the file name; a folder has none."""
HELD_OUT = 0.1
"""Share of the training texts that becomes the validation split, where the data has none."""
SPLIT_SEED = 0
"""Seed of that choice. It is not the run's, so that runs with other seeds are scored on the same texts."""


@dataclass(frozen=True)
class TextDataset:
    """One split of a text classification data set: N texts."""

    texts: list[str]
    """The texts."""
    targets: np.ndarray
    """(N,) int64 label ids."""
    labels: tuple[str, ...]
    """Label names; the index is the id."""
    source: str
    """The file or folder that the split was read from."""

    def __len__(self) -> int:
        return len(self.texts)

    def in_memory(self) -> "TextDataset":
        """Itself: the texts are here already."""
        return self

    def with_labels(self, labels: tuple[str, ...]) -> "TextDataset":
        """The same texts with the ids of ``labels``. Raises ValueError for a label that is not among them."""
        unknown = sorted({self.labels[target] for target in np.unique(self.targets)} - set(labels))
        if unknown:
            raise ValueError(f"{self.source} has labels that are not among {list(labels)}: {unknown}.")
        ids = np.array([labels.index(name) if name in labels else -1 for name in self.labels])
        return replace(self, targets=ids[self.targets], labels=labels)


def load_text_datasets(source: str | Path, *, on_bad_row: OnBadRow = "error") -> dict[str, TextDataset]:
    """Read the splits "train", "validation" and "test" of a data set, those that exist.

    `source` is a folder; a name under the folder in the environment variable LORA_DATA_DIR; or a hub id, for which
    LORA_DATA_DIR is searched first. In it, or in a subfolder, stand the splits, named train, valid (or val,
    validation, dev) and test, in one of these forms:

    - CSV with a header that names the columns of the text (text, sentence, review, or title and description) and of
      the label (label, class, category, sentiment); or without a header, as AG News has it: the class, then the
      parts of the text.
    - JSON lines {"text": ..., "label": ...}: .jsonl or .json, also gzipped (.gz).
    - Parquet with such columns. Numbers in the names (train-00000-of-00002.parquet) mark shards of one split.
    - Folders train/pos/*.txt, test/neg/*.txt and so on: a folder for each class, a file for each text.

    A label is a name or an id. Ids are named by label.json ({"Business": 0, ...}); by classes.txt, a name a line,
    whose ids begin at 1 in CSV and at 0 elsewhere; or by the parquet file's metadata. Without these the labels are
    whatever the splits hold, sorted.

    Data with a training split but no validation split loses 10 % of the former to the latter, in which each label
    has its share and no text of the other part stands; this is logged.

    Raises ValueError for anything else. A row that cannot be used raises ValueError, naming file, line and value;
    `on_bad_row="skip"` leaves such rows out and reports them through logging.
    """
    if on_bad_row not in ("error", "skip"):
        raise ValueError(f"on_bad_row={on_bad_row!r}: expected 'error' or 'skip'.")
    folder = find_source(source, _patterns(), "a folder")
    files = _split_files(folder)
    declared = declared_names(next(iter(files.values()))[0], folder)
    bad_rows = BadRows(on_bad_row)
    rows: dict[str, list[Row]] = {}
    for split, paths in files.items():
        rows[split] = [row for path in paths for row in READERS[_form(path)](path, declared, bad_rows)]
        if not rows[split]:
            raise ValueError(f"{paths[0]} holds no usable text. Fill it or remove it.")
    bad_rows.report()
    labels = declared.names or sorted_names({name for split in rows.values() for _, name in split})
    ids = {name: index for index, name in enumerate(labels)}
    datasets = {
        split: TextDataset([text for text, _ in rows[split]], np.array([ids[name] for _, name in rows[split]]),
                           labels, str(files[split][0]))
        for split in files
    }  # fmt: skip
    if "train" in datasets:
        _report_unknown(datasets)
        if "validation" not in datasets:
            datasets = _with_validation(datasets)
    return {split: datasets[split] for split in SPLIT_NAMES if split in datasets}


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split, or the folder that holds its class folders."""
    found = _files_in(folder) or _folders_in(folder)
    if not found:
        inner = {path: files for path in sorted(folder.iterdir()) if path.is_dir() and (files := _files_in(path))}
        if len(inner) > 1:
            raise ValueError(f"several folders hold a data set: {', '.join(map(str, inner))}. Name one of them.")
        found = next(iter(inner.values()), {})
    if not found:
        raise ValueError(
            f"{folder} holds no labelled texts: expected train, valid and test files ending in "
            f"{', '.join(filter(None, READERS))}, or folders train and test with a folder of .txt files for each class."
        )
    for split, paths in found.items():
        is_sharded = all(any(map(str.isdigit, path.name)) for path in paths)
        if len(paths) > 1 and not is_sharded:
            listed = ", ".join(path.name for path in paths)
            raise ValueError(
                f"{paths[0].parent} holds several files for the {split} split: {listed}. Keep one of them."
            )
    forms = {_form(path).removesuffix(".gz").replace(".jsonl", ".json") for paths in found.values() for path in paths}
    if len(forms) > 1:
        listed = ", ".join(path.name for paths in found.values() for path in paths)
        raise ValueError(f"{folder} mixes files of several forms: {listed}. Keep one form.")
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def _files_in(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        split = split_of(path)
        if split and path.is_file() and _form(path):
            found.setdefault(split, []).append(path)
    return found


def _folders_in(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for name, split in SPLIT_OF_NAME.items():
        if class_folders(folder / name):
            found.setdefault(split, []).append(folder / name)
            for ignored in IGNORED_CLASSES:
                if (folder / name / ignored).is_dir():
                    logger.warning("%s holds texts without labels, which are left out", folder / name / ignored)
    return found


def _form(path: Path) -> str:
    """The end of the file name that tells its form; empty for a folder, and for a file that is none of these."""
    if path.is_dir():
        return ""
    return next((suffix for suffix in sorted(READERS, key=len, reverse=True) if path.name.endswith(suffix)), "")


def _with_validation(datasets: dict[str, TextDataset]) -> dict[str, TextDataset]:
    train = datasets["train"]
    numbers: dict[str, int] = {}
    same_text = np.array([numbers.setdefault(text, len(numbers)) for text in train.texts])
    labels = np.arange(len(train)), train.targets
    chosen = stratified_split(same_text, labels, [1 - HELD_OUT, HELD_OUT], SPLIT_SEED)
    rest, validation = take(train, np.flatnonzero(chosen == 0)), take(train, np.flatnonzero(chosen == 1))
    if not len(validation):
        raise ValueError(f"{train.source} holds {len(train)} texts, too few to set some aside for validation. "
                         "Add texts, or a validation split.")  # fmt: skip
    logger.warning("%s: no validation split; %d of %d training texts became one", train.source, len(validation),
                   len(train))  # fmt: skip
    return {**datasets, "train": rest, "validation": validation}


def _report_unknown(datasets: dict[str, TextDataset]) -> None:
    known = set(datasets["train"].targets.tolist())
    for split, dataset in datasets.items():
        unknown = [dataset.labels[target] for target in sorted(set(dataset.targets.tolist()) - known)]
        if unknown:
            logger.warning("the %s split has labels that the training split lacks: %s", split, ", ".join(unknown))


def _patterns() -> list[str]:
    """Names of the files that a hub data set can hold."""
    ends = [suffix for suffix in READERS if suffix]
    return ["*label.json", "*classes.txt", *(f"*{name}*{end}" for name in SPLIT_OF_NAME for end in ends)]
