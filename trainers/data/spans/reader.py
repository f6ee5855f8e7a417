"""The rows of a file of texts with labelled spans, in whatever form it is.

JSON lines are read a line at a time. A JSON array is kept as a text, and its rows are made one at a time.
"""

import json
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from lora_core.files import sha256_of_file
from trainers.data.rows import BadRows, is_binary, json_row, numbered_lines, short
from trainers.data.spans import blocks, brat, docbin
from trainers.data.spans.align import Document, words_and_tags
from trainers.data.spans.exports import documents, is_span_row, read_row

logger = logging.getLogger(__name__)

SNIFFED_ROWS = 100
"""Rows that are looked at for one with spans."""
LABEL_LISTS = ("labels.json", "label_config.json", "label.json")
"""What a tool's own list of labels can be called, beside a file in which labels are numbers."""
JSON_ENDS = (".json", ".jsonl", ".ndjson")

Raw = tuple[str, Any]
"""Where a row stands, and a line, a value of JSON, a block of lines, the name of brat's pair or spaCy's `Doc`."""


class SpanSource(Protocol):
    """A file, or a file inside a zip, or a folder of brat's pairs."""

    @property
    def path(self) -> Path: ...

    @property
    def member(self) -> str: ...

    @property
    def split(self) -> str: ...

    @property
    def encoding(self) -> str: ...


def is_json(name: str) -> bool:
    """Whether a file is called like JSON."""
    return name.lower().removesuffix(".gz").endswith(JSON_ENDS)


def block_form(path: Path, member: str, encoding: str) -> blocks.Form | None:
    """The form of a file of blocks of lines; None: it is none.

    Raises:
        ValueError: it is of a form that is to be exported otherwise.
    """
    try:
        if not member and is_binary(path):
            return None
        lines = numbered_lines(path, member, encoding=encoding)
        first = next((line for _, line in islice(lines, SNIFFED_ROWS) if line.strip()), b"")
    except ValueError:
        return None
    return blocks.form_of(first.decode("utf-8", "replace"), f"{path}:{member}" if member else path)


def digest(source: SpanSource) -> str:
    """The SHA-256 of what a source of spans is stored in."""
    if not source.path.is_dir() and source.path.suffix != brat.SUFFIX:
        return sha256_of_file(source.path)
    files = brat.pair_files(source.path, _pairs_of(source))
    return " ".join(sha256_of_file(file) for file in files)


class SpanReader:
    """Reads the rows of sources once."""

    def __init__(self, bad_rows: BadRows) -> None:
        self._bad_rows = bad_rows
        self._seen: set[Any] = set()
        self._names: dict[int, str] = {}
        self._source: SpanSource | None = None

    def rows(self, source: SpanSource, progress: tqdm | None = None) -> Iterator[tuple[int, Raw]]:
        """The rows with their numbers: lines of JSON lines, else rows counted from 1.

        Raises:
            ValueError: the file is damaged as a whole.
        """
        path, member = source.path, source.member
        self._source, self._seen = source, set()
        if path.suffix == docbin.SUFFIX:
            values: Iterator[tuple[int, Any]] = enumerate(docbin.docs(path), 1)
        elif not member and (path.is_dir() or path.suffix in (brat.SUFFIX, ".zip")):
            values = enumerate(_pairs_of(source), 1)
        else:
            self._names = _label_names(path.parent)
            form = None if is_json(member or path.name) else block_form(path, member, source.encoding)
            if form:
                where = f"{path}:{member}" if member else path
                values = blocks.blocks(form, _text_lines(source, progress), where)
            else:
                values = json_rows(path, member, source.encoding, progress)
        for number, value in values:
            yield number, (f"{path}:{member}:{number}" if member else f"{path}:{number}", value)

    def words_and_tags(self, raw: Raw) -> tuple[list[Any], list[str]]:
        """The words of a row, and their tags in BIO.

        Raises:
            ValueError: it is damaged.
            LeftOut: it is not to be learned from. What and where has been noted.
        """
        place, value = raw

        def note(what: str, where: str) -> None:
            self._bad_rows.change(what, f"{place}: {where}" if where else place)

        assert self._source is not None
        if isinstance(value, str):
            return words_and_tags(brat.read_pair(self._source.path, value, note, self._source.encoding), note)
        if isinstance(value, blocks.Block):
            return words_and_tags(blocks.read_block(value, note), note)
        if not isinstance(value, (bytes, dict, list)) and self._source.path.suffix == docbin.SUFFIX:
            return docbin.words_and_tags(value)
        row = json_row(value) if isinstance(value, bytes) else value
        found = read_row(row, self._names, note, self._seen)
        return words_and_tags(found, note) if isinstance(found, Document) else found


def _pairs_of(source: SpanSource) -> list[str]:
    splits = brat.splits_of_pairs(brat.pair_names(source.path))
    return [name for name, split in splits.items() if split == source.split]


def _text_lines(source: SpanSource, progress: tqdm | None) -> Iterator[tuple[int, str]]:
    for number, line in numbered_lines(source.path, source.member, progress, encoding=source.encoding):
        yield number, line.decode("utf-8", "surrogateescape")  # what is no UTF-8 spoils its own row


def json_rows(path: Path, member: str, encoding: str, progress: tqdm | None = None) -> Iterator[tuple[int, Any]]:
    """The rows of JSON lines as bytes, those of an array or another single value as values; with their line numbers.

    spaCy's documents give a row for each of their paragraphs, BioC's for each passage.
    """
    if _is_one_value(path, member, encoding):
        read = numbered_lines(path, member, progress, encoding=encoding)
        text = "\n".join(line.decode("utf-8", "replace") for _, line in read)
        for number, value in _elements(text, f"{path}:{member}" if member else str(path)):
            for row in documents(value):
                if row is not None:
                    yield number, row
        return
    for number, line in numbered_lines(path, member, progress, encoding=encoding):
        if b'"paragraphs"' in line or b'"passages"' in line:
            yield from ((number, row) for row in _documents_of_line(line))
        elif line.strip():
            yield number, line


def _documents_of_line(line: bytes) -> list[Any]:
    """The documents on a line, or the line itself where it is damaged: whoever reads the row says so."""
    try:
        return documents(json_row(line))
    except ValueError:
        return [line]


def _is_one_value(path: Path, member: str, encoding: str) -> bool:
    """Whether a file of JSON is one value, such as an array of rows, and not a row a line."""
    lines = (line.strip() for _, line in numbered_lines(path, member, encoding=encoding))
    first, second = (*islice(filter(None, lines), 2), b"", b"")[:2]
    try:
        value = json.loads(first)
    except ValueError:
        return first.startswith(b"[") or (first.startswith(b"{") and not second.startswith(b"{"))
    if isinstance(value, list):
        return is_span_row(value) is not True
    return isinstance(value, dict) and is_span_row(value) is None and _wrapped(value) is not None


def _wrapped(value: dict[str, Any]) -> str | None:
    """The key of the rows in an object around them, such as the NER annotator's {"classes": [], "annotations": []}."""
    for key, rows in value.items():
        if isinstance(rows, list) and any(is_span_row(row) for row in rows[:SNIFFED_ROWS]):
            return key
    return None


def _elements(text: str, where: str) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON array, or the only value, each with the number of its line.

    Raises:
        ValueError: it is no JSON.
    """
    decoder = json.JSONDecoder()
    place = _after_space(text, 0)
    if text[place : place + 1] == "{":
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({error}): {short(text)}. Correct the file.") from error
        key = None if is_span_row(value) else _wrapped(value)
        yield from enumerate([value] if key is None else value[key], 1)
        return
    line, counted = 1, 0
    place += 1
    while True:
        place = _after_space(text, place)
        if text[place : place + 1] == "]":
            return
        line, counted = line + text.count("\n", counted, place), place
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}:{line}: not JSON ({error}): {short(text[place:])}. Correct the file.") from error
        yield line, value
        place = _after_space(text, place)
        if text[place : place + 1] == ",":
            place += 1
        elif text[place : place + 1] != "]":
            raise ValueError(f"{where}:{line}: the array is cut short, or a comma is missing. Correct the file.")


def _after_space(text: str, place: int) -> int:
    while text[place : place + 1] in (" ", "\t", "\r", "\n"):
        place += 1
    return place


def _label_names(folder: Path) -> dict[int, str]:
    """The names of labels that are numbers, from a tool's own list beside the file: [{"id": 7, "text": "ORG"}, ...]."""
    for path in map(folder.joinpath, LABEL_LISTS):
        if not path.is_file():
            continue
        try:
            listed = json.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON in UTF-8: {error}. Correct it.") from error
        if isinstance(listed, list):
            return {row["id"]: row["text"] for row in listed if isinstance(row, dict) and "id" in row and "text" in row}
    return {}
