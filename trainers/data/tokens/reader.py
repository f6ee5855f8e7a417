"""A split of tagged sentences: on disk, read a sentence at a time and as often as it is needed, or in memory."""

import gzip
import hashlib
import json
import logging
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from operator import ne
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from tqdm import tqdm

from trainers.data.cache import file_digest
from trainers.data.rows import (
    TAG_COLUMNS,
    BadRows,
    OnBadRow,
    ParquetRow,
    numbered_lines,
    parquet_rows,
    refuse_lone_surrogates,
    short,
)

# DOC """CoNLL files: a word a line, first column the word, last its tag; blank lines between sentences."""

# DOC """The tner layout: JSON lines {"tokens": [...], "tags": [...]}, and label.json that names the tags."""

# DOC """The sentences of tagged files one after another, in bounded memory, however large the files."""

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


TAG = re.compile(r"O|[BI]-.+")


def read_conll_file(path: Path, bad_rows: BadRows) -> Iterator[tuple[list[str], list[str]]]:
    """Words and tag names of every usable sentence, one after another; a bad line makes its whole sentence unusable."""
    sentence: list[tuple[str, str]] = []
    usable = True
    # One more blank line closes a file that does not end in one.
    for number, line in chain(numbered_lines(path), [(0, b"")]):
        if not line.strip() or line.startswith(b"-DOCSTART-"):
            if sentence and usable:
                yield [word for word, _ in sentence], [tag for _, tag in sentence]
            sentence, usable = [], True
        elif usable:
            try:
                sentence.append(parse_conll_line(line))
            except ValueError as problem:
                bad_rows.add(path, number, str(problem))
                usable = False


def conll_labels(sentences: Iterable[list[str]]) -> tuple[str, ...]:
    """O, then B-X and I-X for every type X that occurs, sorted by type."""
    types = sorted({tag[2:] for sentence in sentences for tag in sentence if tag != "O"})
    return ("O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI"))


def as_iob2(tags: list[str]) -> list[str]:
    """Tags in IOB2: an I- that continues no entity of its type opens one, as it does in IOB1."""
    repaired = []
    previous = "O"
    for tag in tags:
        opens = tag.startswith("I-") and previous[2:] != tag[2:]
        repaired.append(f"B-{tag[2:]}" if opens else tag)
        previous = tag
    return repaired


def parse_conll_line(line: bytes) -> tuple[str, str]:
    """Word and tag of one line; ValueError says what is wrong with it."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error})") from error
    # Only tabs or plain spaces part columns: words may hold other white space, such as a no-break space.
    columns = text.split("\t") if "\t" in text else text.strip(" ").split(" ")
    word, tag = columns[0].strip(" "), columns[-1].strip(" ")
    if len(columns) < 2 or not word or not tag:
        raise ValueError(f"expected a word and a tag, parted by a tab or a space, got {short(text)}")
    if not TAG.fullmatch(tag):
        raise ValueError(f"tag {short(tag)} of {short(word)} is not in the IOB scheme: expected O, B-TYPE or I-TYPE")
    return word, tag


IOB_LABEL = re.compile(r"O|[BI](-.+)?")


def read_label_file(path: Path) -> tuple[str, ...]:
    """Names of tags in order of their ids."""
    names = read_label_names(path)
    foreign = [name for name in names if not IOB_LABEL.fullmatch(name)]
    if foreign:
        raise ValueError(
            f"{path} has labels outside the IOB scheme: {short(foreign)}; expected O, B-TYPE and I-TYPE. Tags of "
            f"IOBES and BILOU (S-, E-, U-, L-) must be rewritten first: S- and U- as B-, E- and L- as I-."
        )
    return names


def read_label_names(path: Path) -> tuple[str, ...]:
    """Label names of any kind in order of their ids."""
    if not path.is_file():
        raise ValueError(f'{path} is missing: the tner layout names its label ids there, as {{"O": 0, "B-X": 1, ...}}.')
    try:
        ids = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON in UTF-8: {error}.") from error
    if not isinstance(ids, dict) or not ids or any(type(index) is not int for index in ids.values()):
        raise ValueError(f'{path} holds {short(ids)}, expected label names with their ids: {{"O": 0, "B-X": 1, ...}}.')
    if sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(
            f"{path} gives the ids {short(sorted(ids.values()))}, expected 0 to {len(ids) - 1}, each once."
        )
    return tuple(sorted(ids, key=ids.__getitem__))


def read_tner_file(path: Path, num_labels: int, bad_rows: BadRows) -> Iterator[tuple[list[str], list[int]]]:
    """Words and label ids of every usable row, one after another."""
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            row = _parse_row(line, num_labels)
        except ValueError as problem:
            bad_rows.add(path, number, str(problem))
            continue
        yield row


def _parse_row(line: bytes, num_labels: int) -> tuple[list[str], list[int]]:
    """Words and tags of one line; ValueError says what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}): {short(line)}") from error
    if not isinstance(row, dict) or "tokens" not in row or "tags" not in row:
        raise ValueError(f'expected an object {{"tokens": [...], "tags": [...]}} on one line, got {short(row)}')
    words, tags = row["tokens"], row["tags"]
    for key in ("tokens", "tags"):
        if not isinstance(row[key], list):
            raise ValueError(f"{key} is {short(row[key])}, expected a list")
    if len(words) != len(tags):
        raise ValueError(f"{len(words)} tokens but {len(tags)} tags: {short(words)}")
    if not words:
        raise ValueError("an empty sentence (no tokens)")
    if set(map(type, words)) != {str}:
        index, word = next((index, word) for index, word in enumerate(words) if type(word) is not str)
        raise ValueError(f"token {index} is {short(word)}, expected a string")
    if set(map(type, tags)) != {int} or min(tags) < 0 or max(tags) >= num_labels:
        known = range(num_labels)
        index, tag = next((index, tag) for index, tag in enumerate(tags) if type(tag) is not int or tag not in known)
        raise ValueError(f"tag {index} is {short(tag)}, expected a label id of label.json (0 to {num_labels - 1})")
    refuse_lone_surrogates("".join(words))
    return words, tags


SHOW_EVERY = 2000
"""Rows between two movements of the progress bar."""

Raw = bytes | list[bytes] | ParquetRow
Format = Literal["json", "conll", "parquet"]


@dataclass(frozen=True)
class TaggedFile:
    """One file of sentences, or one file inside a zip."""

    path: Path
    member: str
    """Name inside the zip; empty for a file of its own."""
    split: str
    """train, validation or test; or all, when the source is one file."""
    format: Format

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)


@dataclass(frozen=True)
class TaggedSource:
    """The files of a corpus, and the names of its tags."""

    files: tuple[TaggedFile, ...]
    """Training files first."""
    names: tuple[str, ...] | None
    """Name of each tag id, where the corpus says so. None: the tags must be names themselves."""


class UnnamedTags(ValueError):
    """The tags are ids that nothing names: not one row is at fault but the corpus."""


class TagIds:
    """The ids of tags: those of the declared names, and behind them names that only the sentences have."""

    def __init__(self, declared: tuple[str, ...] | None) -> None:
        self._declared = declared
        self._ids = {name: index for index, name in enumerate(declared or ("O",))}
        for name in self._ids:
            if not TAG.fullmatch(name):
                raise ValueError(f"the tag name {short(name)} is not in the IOB scheme: expected O, B-TYPE or I-TYPE.")
        if declared and len(self._ids) < len(declared):
            twice = next(name for name in declared if declared.count(name) > 1)
            raise ValueError(f"the tag names have {twice!r} twice: every id needs a name of its own.")
        if "O" not in self._ids:
            raise ValueError(f"the tag names {short(declared)} lack 'O', the tag of words outside all entities.")
        self.outside = self._ids["O"]

    @property
    def names(self) -> tuple[str, ...]:
        """All names met so far; the index is the id."""
        return tuple(self._ids)

    def ids(self, tags: list[Any]) -> list[int]:
        """One id per tag; ValueError says which tag is wrong."""
        kinds = set(map(type, tags))
        if kinds == {int}:
            if self._declared is None:
                raise UnnamedTags(
                    'the tags are ids, but nothing names them: put label.json ({"O": 0, "B-X": 1, ...}) into the '
                    "folder of the data, or give a label file."
                )
            if min(tags) < 0 or max(tags) >= len(self._declared):
                wrong = next(tag for tag in tags if not 0 <= tag < len(self._declared))
                raise ValueError(f"tag {wrong} is not an id of the {len(self._declared)} names")
            return tags
        if kinds != {str}:
            raise ValueError(f"the tags are {short(tags)}, expected names, or ids")
        known = self._ids
        try:
            return [known[tag] for tag in tags]
        except KeyError:
            for tag in tags:
                if not TAG.fullmatch(tag):
                    raise ValueError(
                        f"tag {short(tag)} is not in the IOB scheme: expected O, B-TYPE or I-TYPE"
                    ) from None
                known.setdefault(tag, len(known))
            return [known[tag] for tag in tags]


def tagged_rows(
    file: TaggedFile, tag_ids: TagIds, bad_rows: BadRows, progress: tqdm, wanted: np.ndarray | None = None
) -> Iterator[tuple[int, list[str], list[int]]]:
    """Place among all rows of the file, words, and tag ids of every usable row.

    `wanted` (rows,) bool: other rows, and those behind its end, are passed over without being parsed. `progress`
    counts bytes of the file.

    Raises ValueError for a row that cannot be used, if `bad_rows` does not skip such rows, and for ids without names.
    """
    size, shown = file.path.stat().st_size, 0
    for place, (line, raw, done) in enumerate(_raw_rows(file)):
        if place % SHOW_EVERY == 0:
            progress.update(int(done * size) - shown)
            shown = int(done * size)
        if wanted is not None and (place >= len(wanted) or not wanted[place]):
            continue
        try:
            words, tags = _parse(raw)
            yield place, words, tag_ids.ids(tags)
        except UnnamedTags as problem:
            raise ValueError(f"{file}:{line}: {problem}") from problem
        except ValueError as problem:
            bad_rows.add(str(file), line, str(problem))
    progress.update(size - shown)


def _parse(raw: Raw) -> tuple[list[str], list[Any]]:
    """Words and tags; ValueError says what is wrong with the row."""
    if isinstance(raw, bytes):
        words, tags = _json_lists(raw)
    elif isinstance(raw, ParquetRow):
        words, tags = raw.lists()
    else:
        words, tags = _conll_lists(raw)
    for name, value in (("tokens", words), ("tags", tags)):
        if not isinstance(value, list):
            raise ValueError(f"{name} is {short(value)}, expected a list")
    if len(words) != len(tags):
        raise ValueError(f"{len(words)} tokens but {len(tags)} tags: {short(words)}")
    if not words:
        raise ValueError("an empty sentence (no tokens)")
    if set(map(type, words)) != {str}:
        wrong = next(word for word in words if type(word) is not str)
        raise ValueError(f"token {words.index(wrong)} is {short(wrong)}, expected a string")
    refuse_lone_surrogates("".join(words))
    return words, tags


def _json_lists(line: bytes) -> tuple[Any, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error})") from error
    except (ValueError, RecursionError) as error:
        array = "; expected an object a line, not an array of them" if line.lstrip().startswith(b"[") else ""
        raise ValueError(f"not JSON ({error}): {short(line)}{array}") from error
    column = next((name for name in TAG_COLUMNS if name in row), None) if isinstance(row, dict) else None
    if column is None or "tokens" not in row:
        raise ValueError(
            f'expected an object {{"tokens": [...], "{TAG_COLUMNS[0]}": [...]}} on one line, got {short(row)}'
        )
    return row["tokens"], row[column]


def _conll_lists(lines: list[bytes]) -> tuple[list[str], list[str]]:
    words, tags = [], []
    for number, line in enumerate(lines, start=1):
        try:
            word, tag = parse_conll_line(line)
        except ValueError as problem:
            raise ValueError(f"in line {number} of the sentence that begins here: {problem}") from problem
        words.append(word)
        tags.append(tag)
    return words, tags


def _raw_rows(file: TaggedFile) -> Iterator[tuple[int, Raw, float]]:
    """Line number, row, and the share of the file that has been read."""
    if file.format == "parquet":
        yield from parquet_rows(file.path)
        return
    with ExitStack() as stack:
        stored = stack.enter_context(file.path.open("rb"))
        lines: IO[bytes] | gzip.GzipFile = stored
        size = max(file.path.stat().st_size, 1)
        try:
            if file.member:
                lines = stack.enter_context(stack.enter_context(zipfile.ZipFile(stored)).open(file.member))
            if (file.member or file.path.name).endswith(".gz"):
                lines = stack.enter_context(gzip.GzipFile(fileobj=lines))
            rows = _json_lines(lines) if file.format == "json" else _conll_blocks(lines)
            for number, raw in rows:
                yield number, raw, stored.tell() / size
        except (EOFError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"{file} cannot be unpacked ({error}): it is cut short or damaged. Fetch it again."
            ) from error


def _json_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(lines, start=1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if line.strip():
            yield number, line


def _conll_blocks(lines: Iterable[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """The lines of each sentence, and the number of the first."""
    block: list[bytes] = []
    number = 0
    for number, line in enumerate(lines, start=1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if line.strip() and not line.startswith(b"-DOCSTART-"):
            block.append(line.rstrip(b"\r\n"))
        elif block:
            yield number - len(block), block
            block = []
    if block:
        yield number - len(block) + 1, block
