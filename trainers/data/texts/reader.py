"""Labelled texts from disk or the hub: finds the folder, recognises its layout, reads the splits."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np

from lora_core.models.task_model import ProblemType
from trainers.data.labels import (
    LabelNames,
    as_problem_type,
    problem_type_of,
    relabel,
    sorted_names,
    targets_from_list,
)
from trainers.data.rows import BadRows, OnBadRow, short
from trainers.data.sources import SPLIT_NAMES, SPLIT_OF_NAME, check_one_form, find_source, split_of
from trainers.data.splits import completed
from trainers.data.texts.forms import (
    IGNORED_CLASSES,
    Row,
    class_folder_rows,
    class_folders,
    csv_rows,
    declared_names,
    json_rows,
    parquet_rows,
    text_of,
)

logger = logging.getLogger(__name__)

READERS: dict[str, Callable[[Path, LabelNames, BadRows], Iterator[Row]]] = {
    ".csv": csv_rows,
    ".jsonl": json_rows,
    ".json": json_rows,
    ".jsonl.gz": json_rows,
    ".json.gz": json_rows,
    ".parquet": parquet_rows,
    "": class_folder_rows,
}
"""By the end of the file name; a folder has none."""


@dataclass(frozen=True)
class TextDataset:
    """One split of a text classification data set: N texts. Of your own texts, `from_lists` makes one."""

    texts: list[str]
    """The texts."""
    targets: np.ndarray
    """(N,) int64 label ids; or (N, L) float32, 1 for each label that a text has and 0 for the others; or (N,) float32
    numbers to predict."""
    labels: tuple[str, ...]
    """Label names; the index is the id. Of numbers the name of what they are."""
    source: str
    """The file or folder that the split was read from."""

    @classmethod
    def from_lists(
        cls,
        texts: Iterable[str],
        labels: Iterable[Any],
        *,
        names: Sequence[str] | None = None,
        source: str = "texts in memory",
    ) -> "TextDataset":
        """A split of your own texts, cleaned as those of a file: without white space around them.

        Args:
            texts: N strings.
            labels: N names of labels, or ids from 0; or N lists of these, or an array (N, L) of 0 and 1, where a text
                may have several labels or none; or N floats, numbers to predict.
            names: the names in order of their ids; None: those that occur, sorted as `load_text_datasets` sorts them.
            source: what messages call these texts.

        Raises:
            ValueError: there is not one label for each text, or no text at all; a text is empty or no string; a label
                is neither name nor id, or not among ``names``.
        """
        if isinstance(texts, str):
            raise ValueError(f"{source}: the texts are the string {short(texts)}, expected a list of strings.")
        cleaned = []
        for index, text in enumerate(texts):
            try:
                cleaned.append(text_of([text]))
            except ValueError as problem:
                raise ValueError(f"{source}, example {index}: {problem}.") from problem
        return cls(cleaned, *targets_from_list(labels, names, len(cleaned), source), source)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def problem_type(self) -> ProblemType:
        """What the targets are."""
        return problem_type_of(self.targets)

    @property
    def noun(self) -> str:
        """What messages call the examples."""
        return "texts"

    @property
    def groups(self) -> np.ndarray:
        """(N,) a number for each text, the same for equal ones."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(text, len(numbers)) for text in self.texts], dtype=np.int64)

    def in_memory(self) -> "TextDataset":
        """Itself: the texts are here already."""
        return self

    def with_labels(self, labels: tuple[str, ...]) -> "TextDataset":
        """The same texts with the ids of ``labels``.

        Raises:
            ValueError: a text's label is not among them.
        """
        return replace(self, targets=relabel(self.targets, self.labels, labels, self.source), labels=labels)

    def with_problem_type(self, problem_type: ProblemType) -> "TextDataset":
        """The same texts with their labels read as this.

        Raises:
            ValueError: as `as_problem_type`.
        """
        targets, labels = as_problem_type(self.targets, self.labels, problem_type, self.source)
        return replace(self, targets=targets, labels=labels)


def load_text_datasets(source: str | Path, *, on_bad_row: OnBadRow = "error") -> dict[str, TextDataset]:
    """Read the splits "train", "validation" and "test" of a data set, those that exist.

    In the folder of the data set, or in a folder in it, stand the splits, named train (or training), valid (val,
    validation, dev) and test (testing), in any case, in one of these forms:

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

    Args:
        source: a folder; a name under the folder in the environment variable LORA_DATA_DIR; or a hub id, for which
            LORA_DATA_DIR is searched first.
        on_bad_row: "skip" leaves out rows that cannot be used, and reports them through logging.

    Raises:
        ValueError: there is no such data set, it is in another form, or with ``on_bad_row="error"`` a row cannot be
            used; the message names file, line and value.
    """
    bad_rows = BadRows(on_bad_row)
    folder = find_source(source, _patterns(), "a folder")
    files = _split_files(folder)
    declared = declared_names(next(iter(files.values()))[0], folder)
    rows: dict[str, list[Row]] = {}
    for split, paths in files.items():
        rows[split] = list(chain.from_iterable(READERS[_form(path)](path, declared, bad_rows) for path in paths))
        if not rows[split]:
            raise ValueError(f"{paths[0]} holds no usable text. Fill it or remove it.")
    bad_rows.report()
    labels = declared.names or sorted_names(name for _, name in chain.from_iterable(rows.values()))
    ids = {name: index for index, name in enumerate(labels)}
    datasets = {}
    for split, found in rows.items():
        targets = np.array([ids[name] for _, name in found], dtype=np.int64)
        datasets[split] = TextDataset([text for text, _ in found], targets, labels, str(files[split][0]))
    return completed(datasets)


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split, or the folder that holds its class folders."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file. Give the folder that holds it, with a file or folder for each split.")
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
        check_one_form(split, paths, paths[0].parent)
    files = list(chain.from_iterable(found.values()))
    if len({_form(path).removesuffix(".gz").replace(".jsonl", ".json") for path in files}) > 1:
        listed = ", ".join(path.name for path in files)
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
    for path in sorted(folder.iterdir()):
        split = SPLIT_OF_NAME.get(path.name.lower())
        if split and class_folders(path):
            found.setdefault(split, []).append(path)
            for ignored in IGNORED_CLASSES:
                if (path / ignored).is_dir():
                    logger.warning("%s holds texts without labels, which are left out", path / ignored)
    return found


def _form(path: Path) -> str:
    """The end of the file name that tells its form; empty for a folder, and for a file that is none of these."""
    if path.is_dir():
        return ""
    return next((suffix for suffix in sorted(READERS, key=len, reverse=True) if path.name.endswith(suffix)), "")


def _patterns() -> list[str]:
    """Names of the files that a hub data set can hold."""
    names = (*SPLIT_OF_NAME, *map(str.capitalize, SPLIT_OF_NAME))
    ends = filter(None, READERS)
    return ["*label.json", "*classes.txt", *(f"*{name}*{end}" for name, end in product(names, ends))]
