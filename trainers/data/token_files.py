"""A split of tagged sentences: on disk, read a sentence at a time and as often as it is needed, or in memory."""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import ne
from pathlib import Path
from typing import Any, Literal

from trainers.data.cache import file_digest
from trainers.data.conll import as_iob2, conll_labels, read_conll_file
from trainers.data.rows import BadRows, OnBadRow
from trainers.data.tner import read_label_file, read_tner_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenDataset:
    """One split of a token classification data set."""

    words: list[list[str]]
    """Sentences of words."""
    tags: list[list[int]]
    """One label id per word."""
    labels: tuple[str, ...]
    """Label names; the index is the id."""
    source: str
    """The file that the split was read from."""

    def __len__(self) -> int:
        return len(self.words)

    @property
    def on_bad_row(self) -> OnBadRow:
        """There are no bad rows left."""
        return "error"

    def sentences(self, bad_rows: BadRows) -> Iterator[tuple[list[str], list[int]]]:
        """Words and label ids of every sentence, as a `TokenFile` gives them."""
        return zip(self.words, self.tags, strict=True)

    def content_key(self) -> dict[str, Any]:
        """What names these sentences in the cache."""
        digest = hashlib.sha256()
        for sentence in zip(self.words, self.tags, strict=True):
            digest.update(json.dumps(sentence).encode())
        return {"sha256": digest.hexdigest(), "layout": "memory"}

    def with_labels(self, labels: tuple[str, ...]) -> "TokenDataset":
        """The same sentences with the ids of ``labels``. Raises ValueError for a label that is not among them."""
        unknown = sorted(set(self.labels) - set(labels))
        if unknown:
            raise ValueError(f"{self.source} has labels that are not among {list(labels)}: {unknown}.")
        ids = [labels.index(name) for name in self.labels]
        tags = [[ids[tag] for tag in sentence] for sentence in self.tags]
        return replace(self, tags=tags, labels=labels)

    def in_memory(self) -> "TokenDataset":
        """Itself: the sentences are here already."""
        return self


@dataclass(frozen=True)
class TokenFile:
    """One split of a token classification data set, which need not fit into memory."""

    path: Path
    """The file."""
    layout: Literal["tner", "conll"]
    """JSON lines with tag ids, or a word a line with tag names."""
    file_labels: tuple[str, ...]
    """Label names in the order of the ids that stand in the file; of a CoNLL file, the names that do."""
    labels: tuple[str, ...]
    """Label names in the order of the ids that `sentences` gives."""
    on_bad_row: OnBadRow
    """What becomes of a row that cannot be used."""

    def with_labels(self, labels: tuple[str, ...]) -> "TokenFile":
        """The same sentences with the ids of ``labels``. Raises ValueError for a label that is not among them."""
        unknown = sorted(set(self.file_labels) - set(labels))
        if unknown:
            raise ValueError(f"{self.path} has labels that are not among {list(labels)}: {unknown}.")
        return replace(self, labels=labels)

    def sentences(self, bad_rows: BadRows) -> Iterator[tuple[list[str], list[int]]]:
        """Words and label ids of every usable sentence. ValueError for a bad row, or when there is no sentence."""
        rows = self._tner_rows(bad_rows) if self.layout == "tner" else self._conll_rows(bad_rows)
        empty = True
        for row in rows:
            empty = False
            yield row
        if empty:
            raise ValueError(f"{self.path} holds no usable sentence. Fill the file or remove it.")

    def read(self, bad_rows: BadRows) -> TokenDataset:
        """All usable sentences, in memory."""
        sentences = list(self.sentences(bad_rows))
        words, tags = [words for words, _ in sentences], [tags for _, tags in sentences]
        return TokenDataset(words, tags, self.labels, str(self.path))

    def in_memory(self) -> TokenDataset:
        """All usable sentences, in memory; the bad rows are reported."""
        bad_rows = BadRows(self.on_bad_row)
        dataset = self.read(bad_rows)
        bad_rows.report()
        return dataset

    def content_key(self) -> dict[str, Any]:
        """What the sentences depend on: equal keys give equal sentences."""
        return {
            "sha256": file_digest(self.path),
            "layout": self.layout,
            "file_labels": self.file_labels,
            "labels": self.labels,
            "on_bad_row": self.on_bad_row,
        }

    def _tner_rows(self, bad_rows: BadRows) -> Iterator[tuple[list[str], list[int]]]:
        rows = read_tner_file(self.path, len(self.file_labels), bad_rows)
        if self.labels == self.file_labels:
            yield from rows
            return
        ids = [self.labels.index(name) for name in self.file_labels]
        for words, tags in rows:
            yield words, [ids[tag] for tag in tags]

    def _conll_rows(self, bad_rows: BadRows) -> Iterator[tuple[list[str], list[int]]]:
        ids = {name: index for index, name in enumerate(self.labels)}
        for words, tags in read_conll_file(self.path, bad_rows):
            yield words, [ids[tag] for tag in as_iob2(tags)]


def tner_files(files: dict[str, Path], on_bad_row: OnBadRow) -> dict[str, TokenFile]:
    """The splits of a folder in the tner layout, whose labels stand in label.json."""
    labels = read_label_file(next(iter(files.values())).parent / "label.json")
    return {split: TokenFile(path, "tner", labels, labels, on_bad_row) for split, path in files.items()}


def conll_files(files: dict[str, Path], on_bad_row: OnBadRow) -> dict[str, TokenFile]:
    """The splits of a folder in the CoNLL layout; all files are read once to learn the labels."""
    found: dict[str, tuple[str, ...]] = {}
    for split, path in files.items():
        names: set[str] = set()
        changed = 0
        for _, tags in read_conll_file(path, BadRows(on_bad_row)):
            names.update(tags)
            changed += sum(map(ne, tags, as_iob2(tags)))
        found[split] = conll_labels([list(names)])
        if changed:
            logger.warning("%s: %d tags I- that continue nothing became B- (IOB2)", path, changed)
    labels = conll_labels(map(list, found.values()))
    for split, own in found.items():
        unknown = sorted(set(own) - set(found.get("train", labels)))
        if unknown:
            logger.warning("%s has labels that the training split lacks: %s", files[split], ", ".join(unknown))
    return {split: TokenFile(path, "conll", found[split], labels, on_bad_row) for split, path in files.items()}
