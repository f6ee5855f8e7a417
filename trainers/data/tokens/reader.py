"""Tagged sentences: the rows of any file, one after another in bounded memory, and the splits of a data set.

A split lies on disk, is read a sentence at a time and as often as it is needed (`TokenFile`), or is in memory
(`TokenDataset`). All that reads tagged files reads them here.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from operator import itemgetter, ne
from pathlib import Path
from typing import Any

import numpy as np

from trainers.data.labels import label_ids, relabel, say_alike
from trainers.data.reading import Reading
from trainers.data.rows import BadRows, OnBadRow, short
from trainers.data.sources import SPLIT_NAMES, UNSPLIT
from trainers.data.splits import HELD_OUT, SPLIT_SEED, stratified_split
from trainers.data.tokens.bio import entity_types, is_tag, open_stray, openings, paired_labels
from trainers.data.tokens.files import TaggedSource, find_tagged_source
from trainers.data.tokens.forms import check_row, tagged_rows
from trainers.data.tokens.head import TaggedFile
from trainers.data.tokens.scan import scan
from trainers.data.tokens.schemes import Notation
from trainers.data.tokens.tag_ids import TagIds

logger = logging.getLogger(__name__)

Sentence = tuple[list[str], list[int]]
"""Words, and the label id of each."""


@dataclass(frozen=True)
class TokenDataset:
    """One split of a token classification data set, in memory."""

    words: list[list[str]]
    """Sentences of words."""
    tags: list[list[int]]
    """One label id per word."""
    labels: tuple[str, ...]
    """Label names; the index is the id."""
    source: str
    """The file that the split was read from."""

    @classmethod
    def from_lists(
        cls,
        words: Iterable[Sequence[str]],
        tags: Iterable[Sequence[str | int]],
        *,
        names: Sequence[str] | None = None,
        source: str = "sentences in memory",
    ) -> "TokenDataset":
        """A split of your own sentences.

        Args:
            words: N lists of words.
            tags: N lists with a tag in BIO for each word: its name, or its id among ``names``.
            names: the tags in order of their ids; None: O, then B-X and I-X for every type X that occurs, sorted.
            source: what messages call these sentences.

        Raises:
            ValueError: there is not one tag for each word, or no sentence; a word is no string; or a tag is not in BIO,
                or not among ``names``.
        """
        words, tags = [list(sentence) for sentence in words], [list(sentence) for sentence in tags]
        if len(words) != len(tags) or not words:
            raise ValueError(f"{source}: {len(words)} sentences and {len(tags)} lists of tags, expected one for each.")
        if names is None:
            ids_met = [tag for sentence in tags for tag in sentence if isinstance(tag, int)]
            if ids_met:
                raise ValueError(
                    f"{source}: tags are ids, such as {ids_met[0]}, but nothing names them. Write the names in their "
                    "place (B-X, I-X, O), give them in order (names=[...]), or give a datasets.Dataset that has them."
                )
            occurring = {tag for sentence in tags for tag in sentence if isinstance(tag, str)}
            if wrong := sorted(tag for tag in occurring if not is_tag(tag)):
                raise ValueError(
                    f"{source}: the tag {short(wrong[0])} is not in BIO. Write B-{wrong[0]} for the first word of an "
                    f"entity, I-{wrong[0]} for its other words and O for all others."
                )
            names = paired_labels(occurring)
        if wrong := [name for name in names if not is_tag(name)]:
            raise ValueError(f"{source}: the tag name {short(wrong[0])} is not in the IOB scheme: O, B-TYPE or I-TYPE.")
        tag_ids, ids = TagIds(tuple(names)), []
        for index, (sentence, own) in enumerate(zip(words, tags, strict=True)):
            try:
                check_row(sentence, own)
                ids.append(tag_ids.ids(own))
            except ValueError as problem:
                raise ValueError(f"{source}, sentence {index}: {problem}.") from problem
        if len(tag_ids.names) > len(names):
            raise ValueError(f"{source}: {short(tag_ids.names[len(names) :])} are not among the names {list(names)}.")
        return cls(words, ids, tuple(names), source)

    def __len__(self) -> int:
        return len(self.words)

    @property
    def on_bad_row(self) -> OnBadRow:
        """There are no bad rows left."""
        return "error"

    def sentences(self, bad_rows: BadRows) -> Iterator[Sentence]:
        """Words and label ids of every sentence, as a `TokenFile` gives them."""
        return zip(self.words, self.tags, strict=True)

    def content_key(self) -> dict[str, Any]:
        """What names these sentences in the cache."""
        digest = hashlib.sha256()
        for sentence in zip(self.words, self.tags, strict=True):
            digest.update(json.dumps(sentence).encode())
        return {"sha256": digest.hexdigest(), "layout": "memory"}

    def with_labels(self, labels: tuple[str, ...]) -> "TokenDataset":
        """The same sentences with the ids of ``labels``.

        Raises:
            ValueError: a word's label is not among them.
        """
        flat = np.fromiter(chain.from_iterable(self.tags), dtype=np.int64)
        ids = iter(relabel(flat, self.labels, labels, self.source).tolist())
        tags = [[next(ids) for _ in sentence] for sentence in self.tags]
        return replace(self, tags=tags, labels=labels)

    def in_memory(self) -> "TokenDataset":
        """Itself: the sentences are here already."""
        return self


@dataclass(frozen=True)
class TokenFile:
    """One split of a token classification data set on disk, which need not fit into memory."""

    files: tuple[TaggedFile, ...]
    """The file, or the shards in their order."""
    names: tuple[str, ...]
    """Label names in the order of the ids that stand in the files. Where names stand there: all that occur."""
    labels: tuple[str, ...]
    """Label names in the order of the ids that `sentences` gives."""
    on_bad_row: OnBadRow
    """What becomes of a row that cannot be used."""
    to_iob2: bool = False
    """Whether an I- that continues no entity of its type becomes B-."""
    notation: Notation | None = None
    """How the tags are written, where they are names that stand in the files."""
    chosen: tuple[bytes, ...] | None = None
    """For each file a byte for each of its rows, 1 for those of this split; None: all."""

    @property
    def source(self) -> str:
        """The files' names, for messages."""
        return ", ".join(map(str, self.files))

    def with_labels(self, labels: tuple[str, ...]) -> "TokenFile":
        """The same sentences with the ids of ``labels``; reading refuses a word whose label is not among them."""
        return replace(self, labels=labels)

    def sentences(self, bad_rows: BadRows) -> Iterator[Sentence]:
        """Words and label ids of every usable sentence.

        Raises:
            ValueError: a row cannot be used and `bad_rows` does not skip such rows; a file has none that can; or a
                word's label is not among the labels.
        """
        if self.chosen is not None:  # all that there is to say was said when they were drawn
            bad_rows = BadRows(bad_rows.on_bad_row)
        tag_ids = TagIds(self.names, self.notation)
        own = tag_ids.names
        opening = openings(own) if self.to_iob2 else {}
        new = label_ids(own, self.labels).tolist()
        same = new == list(range(len(own)))
        for number, file in enumerate(self.files):
            wanted = None if self.chosen is None else np.frombuffer(self.chosen[number], dtype=bool)
            empty = wanted is None or wanted.any()
            for _, words, tags in tagged_rows(file, tag_ids, bad_rows, wanted=wanted):
                empty = False
                if opening:
                    tags = open_stray(tags, opening)
                if not same or len(tag_ids.names) > len(own):
                    tags = self._relabelled(tags, new, tag_ids.names, file)
                yield words, tags
            if empty:
                raise ValueError(f"{file} holds no usable sentence. Fill the file or remove it.")

    def _relabelled(self, tags: list[int], new: list[int], names: tuple[str, ...], file: TaggedFile) -> list[int]:
        chosen = [new[tag] if tag < len(new) else -1 for tag in tags]
        return chosen if min(chosen) >= 0 else relabel(np.array(tags), names, self.labels, file).tolist()

    def read(self, bad_rows: BadRows) -> TokenDataset:
        """All usable sentences, in memory."""
        sentences = list(self.sentences(bad_rows))
        words, tags = [words for words, _ in sentences], [tags for _, tags in sentences]
        return TokenDataset(words, tags, self.labels, self.source)

    def in_memory(self) -> TokenDataset:
        """All usable sentences, in memory; the bad rows are reported."""
        bad_rows = BadRows(self.on_bad_row)
        dataset = self.read(bad_rows)
        bad_rows.report()
        return dataset

    def __len__(self) -> int:
        """Usable sentences; the files are read to count them."""
        return sum(1 for _ in self.sentences(BadRows("skip")))

    def drawn(self, limit: int, seed: int) -> TokenDataset:
        """At most ``limit`` usable sentences in memory, drawn at random and left in order.

        Each that is read takes the place of a random one with the probability that keeps all equally likely, so that
        the others need no memory (reservoir sampling: Vitter 1985, algorithm R).

        Raises:
            ValueError: the limit is below 1, or as `sentences`.
        """
        if limit < 1:
            raise ValueError(f"limit={limit}: expected at least 1 example.")
        bad_rows, generator = BadRows(self.on_bad_row), np.random.default_rng(seed)
        kept: dict[int, tuple[int, Sentence]] = {}
        for number, sentence in enumerate(self.sentences(bad_rows)):
            place = number if number < limit else int(generator.integers(number + 1))
            if place < limit:
                kept[place] = (number, sentence)
        bad_rows.report()
        sentences = [sentence for _, sentence in sorted(kept.values(), key=itemgetter(0))]
        words, tags = [words for words, _ in sentences], [tags for _, tags in sentences]
        return TokenDataset(words, tags, self.labels, self.source)

    def content_key(self) -> dict[str, Any]:
        """What the sentences depend on: equal keys give equal sentences."""
        return {
            "files": [_file_key(file) for file in self.files],
            "names": self.names,
            "labels": self.labels,
            "on_bad_row": self.on_bad_row,
            "to_iob2": self.to_iob2,
            "notation": self.notation,
            "chosen": None if self.chosen is None else hashlib.sha256(b"".join(self.chosen)).hexdigest(),
        }


def _file_key(file: TaggedFile) -> list[Any]:
    how = file.columns if file.format == "conll" else file.keys
    return [file.sha256(), file.member, file.format, repr(how), file.encoding]


def load_token_datasets(
    source: str | Path, *, on_bad_row: OnBadRow = "error", reading: Reading | None = None
) -> dict[str, TokenDataset]:
    """Read the splits "train", "validation" and "test" of a data set into memory, those that exist.

    The arguments are those of `token_files`. A bad row is reported once, whatever its file.
    """
    files = token_files(source, on_bad_row=on_bad_row, reading=reading)
    bad_rows = BadRows(reading.on_bad_row if reading else on_bad_row)
    datasets = {split: file.read(bad_rows) for split, file in files.items()}
    bad_rows.report()
    return datasets


def token_files(
    source: str | Path, *, on_bad_row: OnBadRow = "error", reading: Reading | None = None
) -> dict[str, TokenFile]:
    """The files of the splits "train", "validation" and "test" of a data set, those that exist, not yet read.

    Names that the data declares (`find_tagged_source`) are the labels, in their order, and tags are taken as they are,
    but for other schemes, which are converted to BIO. Without them, and in files of columns, all files are read once:
    the labels are O, then B-X and I-X for every type X of any split, sorted by type, and IOB1 becomes IOB2: an I- that
    continues nothing becomes B-. One file alone is the split "all", for `completed` to cut.

    Args:
        source: a folder, a file, or a zip; a name under the folder in the environment variable LORA_DATA_DIR; or a hub
            data set such as "tner/bionlp2004", for which LORA_DATA_DIR is searched first (also by its last part,
            "bionlp2004").
        on_bad_row: "skip" leaves out rows that cannot be used, and reports them through logging.
        reading: what a user says about the files, and what becomes of bad rows; None: ``on_bad_row`` alone.

    Raises:
        ValueError: there is no data set. A row that cannot be used raises ValueError, naming file, line and value, when
            it is read.
    """
    reading = reading or Reading(on_bad_row=on_bad_row)
    on_bad_row = reading.on_bad_row
    BadRows(on_bad_row)  # refuses another word at once
    found = find_tagged_source(source, reading=reading)
    splits: dict[str, list[TaggedFile]] = {}
    for file in found.files:
        splits.setdefault(file.split, []).append(file)
    is_columns = found.files[0].format == "conll"
    if found.names is not None and not is_columns:
        tag_ids = TagIds(found.names, found.notation)
        made = tag_ids.scheme is not None
        _say_scheme(tag_ids, source)
        files = {
            split: TokenFile(tuple(own), found.names, tag_ids.names, on_bad_row, made, found.notation)
            for split, own in splits.items()
        }
        return files
    tag_ids = TagIds(None, found.notation)  # tags of columns are names, which tell themselves
    occurring = {split: _occurring_labels(own, on_bad_row, tag_ids) for split, own in splits.items()}
    _say_scheme(tag_ids, source)
    for split, own in occurring.items():
        unknown = sorted(set(own) - set(occurring.get("train", own)))
        if unknown:
            listed = ", ".join(map(str, splits[split]))
            logger.warning("%s has labels that the training split lacks: %s", listed, ", ".join(unknown))
    labels = paired_labels(chain.from_iterable(occurring.values()))
    say_alike(entity_types(labels), "types")
    files = {
        split: TokenFile(tuple(own), labels, labels, on_bad_row, True, found.notation) for split, own in splits.items()
    }
    return files


def _say_scheme(tag_ids: TagIds, source: str | Path) -> None:
    if tag_ids.scheme:
        logger.warning("%s: its tags are of the scheme %s; they are read as BIO (IOB2)", source, tag_ids.scheme)


def completed(files: dict[str, TokenFile]) -> dict[str, TokenFile]:
    """The splits of a run: those that are there, and those that are missing drawn from them, which is logged.

    A training split without a validation split loses a tenth to it, and one file alone is cut 80/10/10; sentences of
    the same words stay together.

    Raises:
        ValueError: there are too few sentences.
    """
    if UNSPLIT in files:
        whole, names, shares = files[UNSPLIT], tuple(SPLIT_NAMES), [1 - 2 * HELD_OUT, HELD_OUT, HELD_OUT]
    elif "train" in files and "validation" not in files:
        whole, names, shares = files["train"], ("train", "validation"), [1 - HELD_OUT, HELD_OUT]
    else:
        return files
    bad_rows = BadRows(whole.on_bad_row)
    scanned = scan(TaggedSource(whole.files, whole.names, whole.notation), bad_rows)
    bad_rows.report()
    usable = np.flatnonzero(scanned.lengths > 0)
    entity_rows = np.repeat(np.arange(len(scanned.lengths)), np.diff(scanned.entity_offsets))
    places = (np.searchsorted(usable, entity_rows), scanned.entity_types)
    split_of_row = np.full(len(scanned.lengths), -1)
    split_of_row[usable] = stratified_split(scanned.fingerprints[usable], places, shares, SPLIT_SEED)
    sizes = [int((split_of_row == number).sum()) for number in range(len(names))]
    if min(sizes) == 0:
        raise ValueError(
            f"{whole.source} holds {len(usable)} sentences, too few different ones to set some aside for the "
            f"{names[sizes.index(0)]} split. Add some, or give files for the splits, such as train.txt and dev.txt."
        )
    drawn = {}
    for number, split in enumerate(names):
        chosen = (split_of_row == number).astype(np.uint8)
        parts = tuple(chosen[start:end].tobytes() for start, end in pairwise(scanned.file_offsets))
        drawn[split] = replace(whole, chosen=parts)
    listed = ", ".join(f"{split} {size}" for split, size in zip(names, sizes, strict=True))
    missing = "no splits" if UNSPLIT in files else "no validation split"
    logger.warning("%s: %s; its %d sentences were cut: %s", whole.source, missing, len(usable), listed)
    drawn = {**files, **drawn}
    return {split: drawn[split] for split in SPLIT_NAMES if split in drawn}


def _occurring_labels(files: Sequence[TaggedFile], on_bad_row: OnBadRow, tag_ids: TagIds) -> tuple[str, ...]:
    """O, and B-X and I-X for every type X of some files' tags. What `TokenFile` will have to repair is logged."""
    used: set[str] = set()
    for file in files:
        changed = 0
        opening: dict[str, str] = {}
        for _, _, ids in tagged_rows(file, tag_ids, BadRows(on_bad_row)):
            tags = [tag_ids.names[index] for index in ids]
            used.update(tags)
            opening.update({tag: f"B{tag[1:]}" for tag in tags if tag[0] == "I"})
            changed += sum(map(ne, tags, open_stray(tags, opening)))
        if changed:
            logger.warning("%s: %d tags I- that continue nothing became B- (IOB2)", file, changed)
    return paired_labels(used)
