"""One pass over a corpus: what preparation and statistics must know of every sentence, without its words.

About 28 bytes a sentence and 2 an entity, so that a million sentences need little memory. Legend: N sentences,
E entities, L labels.
"""

from array import array
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from zlib import crc32

import numpy as np

from trainers.data.rows import BadRows
from trainers.data.tokens.bio import entity_type, entity_types
from trainers.data.tokens.files import TaggedSource
from trainers.data.tokens.forms import tagged_rows
from trainers.data.tokens.head import TaggedFile
from trainers.data.tokens.tag_ids import TagIds
from trainers.show import progress_bar


@dataclass(frozen=True)
class Scan:
    """Every sentence of a corpus in numbers."""

    files: tuple[TaggedFile, ...]
    """The files, training files first."""
    labels: tuple[str, ...]
    """Label names by id: the declared ones, then others in the order in which they were met."""
    types: tuple[str, ...]
    """Names of the entity types, in alphabetical order."""
    file_offsets: np.ndarray
    """(files + 1,) int64: file n holds the rows from file_offsets[n] to file_offsets[n + 1]."""
    lengths: np.ndarray
    """(N,) int32: words of each sentence; 0 for a row that cannot be used."""
    fingerprints: np.ndarray
    """(N,) uint64: equal for sentences of the same words."""
    taggings: np.ndarray
    """(N,) uint32: for sentences of the same words, equal when their tags are."""
    entity_types: np.ndarray
    """(E,) uint16: type of each entity, one sentence after another."""
    entity_offsets: np.ndarray
    """(N + 1,) int64: where each sentence's entities begin."""
    label_counts: np.ndarray
    """(files, L) int64: words with each label."""
    stray: int
    """Tags I-X that continue no X; each is read as the beginning of an entity."""
    unusable: int
    """Rows that were left out."""
    tag_ids: TagIds
    """The ids of the labels, for another pass over the files."""

    def split_of_rows(self) -> np.ndarray:
        """(N,) int64: index of each row's split among `splits`."""
        splits = self.splits
        own = [splits.index(file.split) for file in self.files]
        return np.repeat(own, np.diff(self.file_offsets))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that the files belong to, in order."""
        return tuple(dict.fromkeys(file.split for file in self.files))


def scan(source: TaggedSource, bad_rows: BadRows) -> Scan:
    """Read all files once.

    Raises:
        ValueError: a row cannot be used and `bad_rows` does not skip such rows, or a file has none that can.
    """
    tag_ids = TagIds(source.names, source.notation)
    rows = _Rows(tag_ids)
    offsets, counts = [0], []
    size = sum(file.path.stat().st_size for file in source.files)
    with closing(progress_bar("reading", size, unit="B", unit_scale=True)) as progress:
        for file in source.files:
            rows.label_counts = Counter()
            for place, words, tags in tagged_rows(file, tag_ids, bad_rows, progress):
                rows.add(offsets[-1] + place, words, tags)
            if len(rows.lengths) == offsets[-1]:
                raise ValueError(f"{file} holds no usable sentence. Fill the file or remove it.")
            offsets.append(len(rows.lengths))
            counts.append(rows.label_counts)
    labels = tag_ids.names
    types = tuple(sorted(entity_types(labels)))
    kinds = np.array([types.index(name) for name in rows.types], dtype=np.uint16)
    return Scan(
        source.files,
        labels,
        types,
        np.array(offsets),
        np.frombuffer(rows.lengths, dtype=np.int32),
        np.frombuffer(rows.fingerprints, dtype=np.uint64),
        np.frombuffer(rows.taggings, dtype=np.uint32),
        kinds[np.frombuffer(rows.entities, dtype=np.uint16)],
        np.concatenate([[0], np.cumsum(np.frombuffer(rows.entity_counts, dtype=np.uint32), dtype=np.int64)]),
        np.array([[count[label] for label in range(len(labels))] for count in counts]),
        rows.stray,
        bad_rows.count,
        tag_ids,
    )


class _Rows:
    """Grows by a row at a time, in arrays of machine numbers."""

    def __init__(self, tag_ids: TagIds) -> None:
        self._tag_ids = tag_ids
        self.types: dict[str, int] = {}
        self._type_of_tag: list[int] = []
        self._begins: list[bool] = []
        self.lengths, self.fingerprints, self.taggings = array("i"), array("Q"), array("I")
        self.entities, self.entity_counts = array("H"), array("I")
        self.label_counts: Counter[int] = Counter()
        self.stray = 0

    def add(self, place: int, words: list[str], tags: list[int]) -> None:
        """Note a sentence; ``place`` is its row, and rows that were passed over before it count as empty."""
        for column in (self.lengths, self.fingerprints, self.taggings, self.entity_counts):
            column.extend([0] * (place - len(column)))
        self.lengths.append(len(words))
        text = "\0".join(words).encode("utf-8")
        self.fingerprints.append(int.from_bytes(blake2b(text, digest_size=8).digest(), "little"))
        outside = tags.count(self._tag_ids.outside)
        self.label_counts[self._tag_ids.outside] += outside
        if outside == len(tags):
            self.taggings.append(0)
            self.entity_counts.append(0)
            return
        self.label_counts.update(tag for tag in tags if tag != self._tag_ids.outside)
        self.taggings.append(crc32(array("H", tags)))
        self.entity_counts.append(self._add_entities(tags))

    def _add_entities(self, tags: list[int]) -> int:
        if max(tags) >= len(self._begins):
            self._learn_tags()
        before, previous = len(self.entities), -1
        for tag in tags:
            kind = self._type_of_tag[tag]
            if kind >= 0 and (self._begins[tag] or kind != previous):
                self.entities.append(kind)
                self.stray += not self._begins[tag]
            previous = kind
        return len(self.entities) - before

    def _learn_tags(self) -> None:
        for name in self._tag_ids.names[len(self._begins) :]:
            kind = entity_type(name)
            self._begins.append(name.startswith("B"))
            self._type_of_tag.append(-1 if kind is None else self.types.setdefault(kind, len(self.types)))
