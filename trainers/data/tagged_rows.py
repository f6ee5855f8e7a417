"""The sentences of tagged files one after another, in bounded memory, however large the files."""

import gzip
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from trainers.data.conll import TAG, parse_conll_line
from trainers.data.finer import TAG_COLUMNS, TaggedFile
from trainers.data.parquet import ParquetRow, parquet_rows
from trainers.data.rows import BadRows, refuse_lone_surrogates, short

SHOW_EVERY = 2000
"""Rows between two movements of the progress bar."""

Raw = bytes | list[bytes] | ParquetRow


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
