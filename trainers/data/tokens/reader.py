"""Tagged sentences: the rows of any file, one after another in bounded memory, and the splits of a data set.

A split lies on disk, is read a sentence at a time and as often as it is needed (`TokenFile`), or is in memory
(`TokenDataset`). All that reads tagged files reads them here.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import ne
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from trainers.data.labels import label_ids, relabel
from trainers.data.rows import (
    BadRows,
    OnBadRow,
    json_row,
    numbered_lines,
    parquet_batches,
    parquet_columns,
    refuse_lone_surrogates,
    short,
)
from trainers.data.sources import UNSPLIT
from trainers.data.spans.exports import LeftOut
from trainers.data.spans.reader import SpanReader
from trainers.data.splits import DRAWN_SHARES, SPLIT_SEED, stratified_split
from trainers.data.tokens.bio import OUTSIDE, is_tag, open_stray, openings, paired_labels
from trainers.data.tokens.files import TAG_COLUMNS, Format, TaggedFile, find_tagged_source

logger = logging.getLogger(__name__)

Sentence = tuple[list[str], list[int]]
"""Words, and the label id of each."""
ScalarPair = tuple[Any, Any]
"""Words and tags of a parquet file's row, as pyarrow scalars, which become lists when they are asked to."""


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
            names = paired_labels({tag for sentence in tags for tag in sentence if isinstance(tag, str)})
        tag_ids, ids = TagIds(tuple(names)), []
        for index, (sentence, own) in enumerate(zip(words, tags, strict=True)):
            try:
                _check_row(sentence, own)
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
    rows: np.ndarray | None = None
    """(rows,) bool: which rows of the one file belong to this split. None: all."""

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
        tag_ids = TagIds(self.names)
        opening = openings(self.names) if self.to_iob2 else {}
        if self.rows is not None:  # all that there is to say was said when they were drawn
            bad_rows = BadRows(bad_rows.on_bad_row)
        own = self.names
        new = label_ids(own, self.labels).tolist()
        same = new == list(range(len(own)))
        for file in self.files:
            empty = True
            for _, words, tags in tagged_rows(file, tag_ids, bad_rows, wanted=self.rows):
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

    def content_key(self) -> dict[str, Any]:
        """What the sentences depend on: equal keys give equal sentences."""
        return {
            "files": [(file.sha256(), file.member, file.format) for file in self.files],
            "names": self.names,
            "labels": self.labels,
            "on_bad_row": self.on_bad_row,
            "to_iob2": self.to_iob2,
            "rows": None if self.rows is None else hashlib.sha256(self.rows.tobytes()).hexdigest(),
        }


def load_token_datasets(source: str | Path, *, on_bad_row: OnBadRow = "error") -> dict[str, TokenDataset]:
    """Read the splits "train", "validation" and "test" of a data set into memory, those that exist.

    `source` is that of `token_files`. A bad row is reported once, whatever its file.
    """
    bad_rows = BadRows(on_bad_row)
    files = token_files(source, on_bad_row=on_bad_row)
    datasets = {split: file.read(bad_rows) for split, file in files.items()}
    bad_rows.report()
    return datasets


def token_files(source: str | Path, *, on_bad_row: OnBadRow = "error") -> dict[str, TokenFile]:
    """The files of the splits "train", "validation" and "test" of a data set, those that exist, not yet read.

    Names that the data declares (`find_tagged_source`) are the labels, in their order, and tags are taken as they are.
    Without them, and in CoNLL, all files are read once: the labels are O, then B-X and I-X for every type X of any
    split, sorted by type, and IOB1 becomes IOB2: an I- that continues nothing becomes B-.

    Args:
        source: a folder, or a zip; a name under the folder in the environment variable LORA_DATA_DIR; or a hub data
            set such as "tner/bionlp2004", for which LORA_DATA_DIR is searched first (also by its last part,
            "bionlp2004").
        on_bad_row: "skip" leaves out rows that cannot be used, and reports them through logging.

    Raises:
        ValueError: there is no data set, or it has no splits (those of one file of texts with spans are drawn). A
            row that cannot be used raises ValueError, naming file, line and value, when it is read.
    """
    BadRows(on_bad_row)  # refuses another word at once
    found = find_tagged_source(source)
    splits: dict[str, list[TaggedFile]] = {}
    for file in found.files:
        splits.setdefault(file.split, []).append(file)
    if UNSPLIT in splits and found.files[0].format == "spans":
        return _drawn(found.files[0], found.names, on_bad_row)
    if UNSPLIT in splits:
        raise ValueError(
            f"{found.files[0]} is one file, without splits: draw them with `lora-core prepare`, or give a folder with "
            "files such as train.json, valid.json and test.json."
        )
    names = None if found.files[0].format == "conll" else found.names  # tags of CoNLL are names, which tell themselves
    if names is not None:
        return {split: TokenFile(tuple(files), names, names, on_bad_row) for split, files in splits.items()}
    occurring = {split: _occurring_labels(files, on_bad_row) for split, files in splits.items()}
    for split, own in occurring.items():
        unknown = sorted(set(own) - set(occurring.get("train", own)))
        if unknown:
            listed = ", ".join(map(str, splits[split]))
            logger.warning("%s has labels that the training split lacks: %s", listed, ", ".join(unknown))
    labels = paired_labels(chain.from_iterable(occurring.values()))
    return {split: TokenFile(tuple(files), labels, labels, on_bad_row, True) for split, files in splits.items()}


def _drawn(file: TaggedFile, names: tuple[str, ...] | None, on_bad_row: OnBadRow) -> dict[str, TokenFile]:
    """Splits of a file that has none: `DRAWN_SHARES` of each entity type and of the rows; equal rows stay together."""
    tag_ids, bad_rows = TagIds(names), BadRows(on_bad_row)
    places, texts, entities = [], [], []
    for place, words, ids in tagged_rows(file, tag_ids, bad_rows):
        entities += [(len(places), index) for index in ids if tag_ids.names[index][0] == "B"]
        places.append(place)
        texts.append(hashlib.blake2b("\0".join(words).encode(), digest_size=8).digest())
    groups = np.unique(np.array(texts, dtype="S8"), return_inverse=True)[1]
    rows, types = np.array(entities, dtype=np.int64).reshape(-1, 2).T
    split_of_row = stratified_split(groups, (rows, types), list(DRAWN_SHARES.values()), SPLIT_SEED)
    sizes = np.bincount(split_of_row, minlength=len(DRAWN_SHARES)).tolist()
    if min(sizes) == 0:
        raise ValueError(
            f"{file} holds {len(places)} usable texts, too few to draw a training, a validation and a test split from "
            "them. Give files of the splits, such as train.jsonl, valid.jsonl and test.jsonl."
        )
    bad_rows.report()
    listed = ", ".join(f"{size} for {split}" for size, split in zip(sizes, DRAWN_SHARES, strict=True))
    logger.warning("%s is one file, without splits: drawn from it were %s", file, listed)
    labels = paired_labels(tag_ids.names) if names is None else names
    splits = {}
    for number, split in enumerate(DRAWN_SHARES):
        chosen = np.zeros(places[-1] + 1, dtype=bool)
        chosen[np.array(places)[split_of_row == number]] = True
        splits[split] = TokenFile((file,), labels, labels, on_bad_row, rows=chosen)
    return splits


def _occurring_labels(files: Sequence[TaggedFile], on_bad_row: OnBadRow) -> tuple[str, ...]:
    """O, and B-X and I-X for every type X of some files' tags. What `TokenFile` will have to repair is logged."""
    tag_ids = TagIds(None)
    for file in files:
        changed = 0
        opening: dict[str, str] = {}
        for _, _, ids in tagged_rows(file, tag_ids, BadRows(on_bad_row)):
            tags = [tag_ids.names[index] for index in ids]
            opening.update({tag: f"B{tag[1:]}" for tag in tags if tag[0] == "I"})
            changed += sum(map(ne, tags, open_stray(tags, opening)))
        if changed:
            logger.warning("%s: %d tags I- that continue nothing became B- (IOB2)", file, changed)
    return paired_labels(tag_ids.names)


class UnnamedTags(ValueError):
    """The tags are ids that nothing names: not one row is at fault but the corpus."""


class BadLine(ValueError):
    """What is wrong with a row of several lines, and in which of them."""

    def __init__(self, problem: str, place: int) -> None:
        super().__init__(problem)
        self.place = place
        """Lines before it in the row."""


class TagIds:
    """The ids of tags: those of the declared names, and behind them names that only the sentences have."""

    def __init__(self, declared: tuple[str, ...] | None) -> None:
        self._declared = declared
        self._ids = {name: index for index, name in enumerate(declared or (OUTSIDE,))}
        self.names = tuple(self._ids)
        """All names met so far; the index is the id."""
        for name in self.names:
            if not is_tag(name):
                raise ValueError(f"the tag name {short(name)} is not in the IOB scheme: expected O, B-TYPE or I-TYPE.")
        if declared and len(self._ids) < len(declared):
            twice = next(name for name in declared if declared.count(name) > 1)
            raise ValueError(f"the tag names have {twice!r} twice: every id needs a name of its own.")
        if OUTSIDE not in self._ids:
            raise ValueError(f"the tag names {short(declared)} lack 'O', the tag of words outside all entities.")
        self.outside = self._ids[OUTSIDE]

    def ids(self, tags: list[Any]) -> list[int]:
        """One id per tag.

        Raises:
            ValueError: a tag is neither a name in BIO nor an id. The message says which.
        """
        kinds = set(map(type, tags))
        if kinds == {int}:
            if self._declared is None:
                raise UnnamedTags(
                    'the tags are ids, but nothing names them: put label.json ({"O": 0, "B-X": 1, ...}) into the '
                    "folder of the data, or give a label file."
                )
            if min(tags) < 0 or max(tags) >= len(self._declared):
                index, tag = next((index, tag) for index, tag in enumerate(tags) if not 0 <= tag < len(self._declared))
                raise ValueError(f"tag {index} is {tag}, expected a label id from 0 to {len(self._declared) - 1}")
            return tags
        if kinds != {str}:
            for index, tag in enumerate(tags):
                if type(tag) not in (int, str):
                    raise ValueError(f"tag {index} is {short(tag)}, expected a name, or a label id")
            raise ValueError(f"the tags are {short(tags)}, expected names, or ids")
        known = self._ids
        try:
            return [known[tag] for tag in tags]
        except KeyError:
            self._learn(tags)
            return [known[tag] for tag in tags]

    def _learn(self, tags: list[str]) -> None:
        for tag in tags:
            if not is_tag(tag):
                raise ValueError(f"tag {short(tag)} is not in the IOB scheme: expected O, B-TYPE or I-TYPE")
        for tag in tags:
            self._ids.setdefault(tag, len(self._ids))
        self.names = tuple(self._ids)


def tagged_rows(
    file: TaggedFile,
    tag_ids: TagIds,
    bad_rows: BadRows,
    progress: tqdm | None = None,
    wanted: np.ndarray | None = None,
) -> Iterator[tuple[int, list[str], list[int]]]:
    """Place among all rows of the file, words, and tag ids of every usable row.

    Args:
        file: the file.
        tag_ids: the ids of tags, which learn names that are new.
        bad_rows: takes the rows that cannot be used.
        progress: counts bytes of the file.
        wanted: (rows,) bool: other rows, and those behind its end, are passed over without being parsed.

    Raises:
        ValueError: a row cannot be used and `bad_rows` does not skip such rows; tags are ids without names; or the file
            is damaged.
    """
    if file.format == "spans":
        reader = SpanReader(bad_rows)
        rows, parse = reader.rows, reader.words_and_tags
    else:
        rows, parse = _FORMS[file.format]
    for place, (number, raw) in enumerate(rows(file, progress)):
        if wanted is not None and (place >= len(wanted) or not wanted[place]):
            continue
        try:
            words, tags = parse(raw)
            _check_row(words, tags)
            ids = tag_ids.ids(tags)
        except LeftOut:
            continue
        except UnnamedTags as problem:
            raise ValueError(f"{file}:{number}: {problem}") from problem
        except BadLine as problem:
            bad_rows.add(str(file), number + problem.place, str(problem))
        except ValueError as problem:
            bad_rows.add(str(file), number, str(problem))
        else:
            yield place, words, ids


def _check_row(words: Any, tags: Any) -> None:
    if not isinstance(words, list) or not isinstance(tags, list):
        name, value = ("tags", tags) if isinstance(words, list) else ("tokens", words)
        raise ValueError(f"{name} is {short(value)}, expected a list")
    if len(words) != len(tags):
        raise ValueError(f"{len(words)} tokens but {len(tags)} tags: {short(words)}")
    if not words:
        raise ValueError("an empty sentence (no tokens)")
    if set(map(type, words)) != {str}:
        index, word = next((index, word) for index, word in enumerate(words) if type(word) is not str)
        raise ValueError(f"token {index} is {short(word)}, expected a string")
    refuse_lone_surrogates("".join(words))


def _json_rows(file: TaggedFile, progress: tqdm | None) -> Iterator[tuple[int, bytes]]:
    for number, line in numbered_lines(file.path, file.member, progress):
        if line.strip():
            yield number, line


def _json_lists(line: bytes) -> tuple[Any, Any]:
    row = json_row(line)
    if isinstance(row, dict) and "tokens" in row:
        for column in TAG_COLUMNS:
            if column in row:
                return row["tokens"], row[column]
    raise ValueError(f'expected an object {{"tokens": [...], "{TAG_COLUMNS[0]}": [...]}} on one line, got {short(row)}')


def _conll_rows(file: TaggedFile, progress: tqdm | None) -> Iterator[tuple[int, list[bytes]]]:
    """The lines of each sentence, and the number of the first."""
    block: list[bytes] = []
    number = 0
    for number, line in numbered_lines(file.path, file.member, progress):
        if line.strip() and not line.startswith(b"-DOCSTART-"):
            block.append(line)
        elif block:
            yield number - len(block), block
            block = []
    if block:
        yield number - len(block) + 1, block


def _conll_lists(lines: list[bytes]) -> tuple[list[str], list[str]]:
    """Words and tags of a sentence: a word a line, in the first column, and its tag in the last."""
    words, tags = [], []
    for place, line in enumerate(lines):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadLine(f"not UTF-8 ({error})", place) from error
        # Only tabs or plain spaces part columns: words may hold other white space, such as a no-break space.
        columns = text.split("\t") if "\t" in text else text.strip(" ").split(" ")
        word, tag = columns[0].strip(" "), columns[-1].strip(" ")
        if len(columns) < 2 or not word or not tag:
            raise BadLine(f"expected a word and a tag, parted by a tab or a space, got {short(text)}", place)
        if not is_tag(tag):
            raise BadLine(
                f"tag {short(tag)} of {short(word)} is not in the IOB scheme: expected O, B-TYPE or I-TYPE", place
            )
        words.append(word)
        tags.append(tag)
    return words, tags


def _parquet_rows(file: TaggedFile, progress: tqdm | None) -> Iterator[tuple[int, ScalarPair]]:
    names = parquet_columns(file.path)
    columns = ["tokens", next((name for name in TAG_COLUMNS if name in names), TAG_COLUMNS[0])]
    if missing := [name for name in columns if name not in names]:
        raise ValueError(f"{file} has the columns {names}, but lacks {missing}.")
    number = 0
    for batch in parquet_batches(file.path, columns, progress):
        for row in zip(batch.column(columns[0]), batch.column(columns[1]), strict=True):
            number += 1
            yield number, row


def _parquet_lists(row: ScalarPair) -> tuple[Any, Any]:
    return row[0].as_py(), row[1].as_py()


Rows = Callable[[TaggedFile, tqdm | None], Iterator[tuple[int, Any]]]
_FORMS: dict[Format, tuple[Rows, Callable[[Any], tuple[Any, Any]]]] = {
    "json": (_json_rows, _json_lists),
    "conll": (_conll_rows, _conll_lists),
    "parquet": (_parquet_rows, _parquet_lists),
}
"""For each form what gives the rows with their numbers, and what makes words and tags of a row."""
