"""What `lora-core predict` reads: JSON lines, plain text, tables and tagged sentences, told by name and content.

Every input becomes a `Record`, a damaged one too: it says what is wrong with it, and the others go on.
"""

import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from trainers.data.images.files import image_files, is_ignored, say_what_is_not_read
from trainers.data.reading import Reading
from trainers.data.rows import BadRows, json_row, numbered_lines, refuse_lone_surrogates, short
from trainers.data.texts.columns import choose_columns, no_columns
from trainers.data.texts.forms import read_table
from trainers.data.tokens.bio import is_tag

logger = logging.getLogger("trainers")

STANDARD_INPUT = "-"
PEEKED = 50
"""Lines of a file of plain text that are looked at for tags."""

Form = Literal["jsonl", "text", "table", "conll"]
InputFormat = Literal["auto", "jsonl", "text", "table", "conll"]
SUFFIXES: dict[str, Form] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "table",
    ".tsv": "table",
    ".parquet": "table",
    ".xlsx": "table",
    ".conll": "conll",
    ".bio": "conll",
    ".iob2": "conll",
}
"""By the end of the file name, behind which .gz may stand."""


@dataclass(frozen=True)
class Record:
    """One input."""

    fields: dict[str, Any]
    """The line's JSON object, or a row's cells by column; for plain text {"text": ...}. All of it is written out."""
    source: str | list[str] | tuple[str, str]
    """What is predicted from it: a text, a pair of texts, a list of words, or the path of an image."""
    size: int
    """Bytes that it takes of its file; 0 where that is not known."""
    where: str
    """file:line."""
    error: str = ""
    """Why it cannot be predicted from, if so."""


def expanded(files: Sequence[str], takes_pictures: bool) -> tuple[str, ...]:
    """The files that are named, by themselves, by patterns such as scans/*.png, or for pictures by their folder.

    Raises:
        ValueError: a folder holds no pictures, or the model takes none.
    """
    found: list[str] = []
    for file in files:
        there = file == STANDARD_INPUT or Path(file).exists()
        for name in [file] if there else sorted(glob(file, recursive=True)):
            if not Path(name).is_dir():
                found.append(name)
                continue
            if name != file and is_ignored(Path(name).name):
                continue
            pictures = [str(path) for path in image_files(Path(name))] if takes_pictures else []
            if not pictures and name == file:
                lacking = " without pictures" if takes_pictures else ""
                raise ValueError(f"{file} is a folder{lacking}. Name the files in it, such as {Path(file, '*')}.")
            if pictures:
                say_what_is_not_read(Path(name))
            found += pictures
    return tuple(found)


def records_of(
    files: Sequence[str], names: Sequence[str], input_format: InputFormat, reading: Reading
) -> Iterator[Record]:
    """The inputs in some files, in order.

    Args:
        files: paths; - is standard input.
        names: under which an object holds what is predicted from; the first is also what a line of plain text is.
        input_format: of the files; auto: as their names and contents say.
        reading: which column is the text, what stands between columns, and the encoding, where the user says so.

    Raises:
        ValueError: a file as a whole cannot be read.
    """
    for file in files:
        suffix = Path(file.lower().removesuffix(".gz")).suffix
        if "image" in names and file != STANDARD_INPUT and suffix not in (*SUFFIXES, ".txt"):
            yield Record({"image": file}, file, Path(file).stat().st_size, file)
            continue
        as_table = reading.delimiter or reading.text_column or reading.pair_column
        given: Form | None = "table" if as_table and input_format == "auto" and suffix != ".jsonl" else None
        form = given or SUFFIXES.get(suffix) if input_format == "auto" else input_format
        where = "standard input" if file == STANDARD_INPUT else file
        if file == STANDARD_INPUT and form in ("jsonl", "text", None) and not reading.encoding:
            yield from _lines(enumerate(sys.stdin.buffer, start=1), where, form, names)
            continue
        with _on_disk(file) as path:
            form = form or _form_of(path, reading)
            if form == "jsonl" and _begins_with(path, b"[", reading):
                form = "table"  # a JSON array of objects
            if form == "table":
                yield from _rows(path, where, names, reading)
            elif form == "conll":
                yield from _sentences(path, where, names, reading)
            else:
                yield from _lines(numbered_lines(path, encoding=reading.encoding, keep_ends=True), where, form, names)


@contextmanager
def _on_disk(file: str) -> Iterator[Path]:
    """The path of a file; standard input is copied into one."""
    if file != STANDARD_INPUT:
        yield Path(file)
        return
    with tempfile.TemporaryDirectory(prefix="lora-core-predict-") as folder:
        path = Path(folder, "input")
        with path.open("wb") as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
        yield path


def _begins_with(path: Path, mark: bytes, reading: Reading) -> bool:
    lines = (line.strip() for _, line in numbered_lines(path, encoding=reading.encoding))
    return next(filter(None, lines), b"").startswith(mark)


def _form_of(path: Path, reading: Reading) -> Form | None:
    """What the content of a file says; None: lines of text, or of JSON if the first begins with a brace."""
    if not path.is_file():  # a pipe can be read once
        return None
    with path.open("rb") as file:
        magic = file.read(4)
    if magic in (b"PAR1", b"PK\x03\x04"):
        return "table"
    head = [line.split() for _, line in islice(numbered_lines(path, encoding=reading.encoding), PEEKED)]
    filled = [words for words in head if words and words[0] != b"-DOCSTART-"]
    tagged = [words for words in filled if len(words) > 1 and is_tag(words[-1].decode("utf-8", "replace"))]
    if filled and tagged == filled:
        return "conll"
    tabs = {line.count(b"\t") for _, line in islice(numbered_lines(path, encoding=reading.encoding), PEEKED) if line}
    if len(tabs) == 1 and 0 not in tabs and len(filled) > 1:
        logger.warning("%s has tabs in every line: each whole line is taken for one text. If they part columns, pass "
                       "--input-format table, with --text-column.", path)  # fmt: skip
    return None


def _lines(lines: Iterator[tuple[int, bytes]], where: str, form: Form | None, names: Sequence[str]) -> Iterator[Record]:
    """A record for each line; blank lines of JSON lines are none. A form of None is told by the first line of text."""
    for number, line in lines:
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if form is None and line.strip():
            form = "jsonl" if line.lstrip().startswith(b"{") else "text"
        if form == "jsonl" and not line.strip():
            continue
        place, size = f"{where}:{number}", len(line)
        line = line.rstrip(b"\r\n")
        try:
            fields = _fields(line, names) if form == "jsonl" else {names[0]: _decoded(line)}
            yield Record(fields, _source(fields, names), size, place)
        except ValueError as problem:
            yield Record({}, "", size, place, str(problem))


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error})") from error


def _fields(line: bytes, names: Sequence[str]) -> dict[str, Any]:
    """The object on a line, which holds one of the names; ValueError says what is wrong with it."""
    fields = json_row(line)
    if not isinstance(fields, dict) or sum(name in fields for name in names) != 1:
        raise ValueError(
            f"expected a JSON object with {' or '.join(map(repr, names))}, got {short(line.decode('utf-8'))}"
        )
    return fields


def _source(fields: dict[str, Any], names: Sequence[str]) -> str | list[str] | tuple[str, str]:
    """What is predicted from: the value of the one name that is there, and beside a text its pair."""
    name = next(name for name in names if name in fields)
    source = fields[name]
    if name == "tokens":
        if not isinstance(source, list) or not all(isinstance(word, str) for word in source):
            raise ValueError(f"tokens is {short(source)}, expected a list of strings")
        refuse_lone_surrogates("".join(source))
    else:
        if not isinstance(source, str):
            raise ValueError(f"{name} is {short(source)}, expected a string")
        refuse_lone_surrogates(source)
        if name == "text" and fields.get("text_pair") is not None:
            pair = _source({"pair": fields["text_pair"]}, ["pair"])
            assert isinstance(pair, str)
            return source, pair
    return source


class _Passed(BadRows):
    """Bad rows as records, in their places among the others."""

    def __init__(self, where: str) -> None:
        super().__init__("skip")
        self.where = where
        self.records: list[Record] = []

    def add(self, file: Path | str, line: int | None, problem: str) -> None:
        self.records.append(Record({}, "", 0, f"{self.where}:{line}", problem))

    def taken(self) -> list[Record]:
        """Those that came since the last call."""
        taken, self.records = self.records, []
        return taken


def _rows(path: Path, where: str, names: Sequence[str], reading: Reading) -> Iterator[Record]:
    """A record for each row of a table."""
    table = read_table(path, reading)
    if not table.names:
        raise ValueError(f"{where} holds no rows.")
    parts = [name for name in names if name in table.names and not (reading.text_column or reading.pair_column)][:1]
    pair: list[str] = ["text_pair"] if parts == ["text"] and "text_pair" in table.names else []
    if not parts and names[0] == "text":
        try:
            columns = choose_columns(table.names, reading, unlabelled=True)
        except ValueError as problem:
            raise no_columns(where, table.names, str(problem)) from problem
        if columns is None:
            raise no_columns(where, table.names)
        parts, pair = list(columns.text), list(columns.pair)
    if not parts:
        raise ValueError(f"{where} has the columns {short(table.names)}, expected {' or '.join(map(repr, names))}.")
    named = ", ".join(parts) + (f" with {', '.join(pair)}" if pair else "")
    logger.info("%s is read as a table (%s); predicted from: %s", where, table.form, named)
    bad = _Passed(where)
    for number, row in table.read(table.names, bad):
        yield from bad.taken()
        place = f"{where}:{number}"
        try:
            source = _joined(row, parts)
            yield Record(row, (str(source), str(_joined(row, pair))) if pair else source, 0, place)
        except ValueError as problem:
            yield Record(row, "", 0, place, str(problem))
    yield from bad.taken()


def _joined(row: dict[str, Any], parts: Sequence[str]) -> str | list[str] | tuple[str, str]:
    """What is predicted from a row: the value of one column, or those of several joined by a space."""
    if missing := [name for name in parts if name not in row]:
        raise ValueError(f"{missing[0]} is missing")
    sources = [_source({part: row[part]}, [part]) for part in parts]
    return sources[0] if len(sources) == 1 else " ".join(s for s in map(str.strip, map(str, sources)) if s)


def _sentences(path: Path, where: str, names: Sequence[str], reading: Reading) -> Iterator[Record]:
    """A record for each sentence of a file with a word a line, in the first column; blank lines part sentences."""
    if "tokens" not in names:
        raise ValueError(
            f"{where} holds tagged words, a word a line, and this model takes a {names[0]}. If each line is one: "
            "--input-format text."
        )
    logger.info("%s is read as sentences, a word a line", where)
    words: list[str] = []
    error, first, size = "", 0, 0
    for number, line in numbered_lines(path, encoding=reading.encoding):
        if line.strip() and not line.startswith(b"-DOCSTART-"):
            first, size = first or number, size + len(line) + 1
            try:
                text = _decoded(line)
                # Only tabs or plain spaces part columns: words may hold other white space, such as a no-break space.
                cells = text.split(reading.separator or "\t") if "\t" in text or reading.separator else text.split(" ")
                words.append(cells[0].strip(" "))
            except ValueError as problem:
                error = error or f"line {number}: {problem}"
        elif first:
            yield Record({"tokens": words}, words, size, f"{where}:{first}", error)
            words, error, first, size = [], "", 0, 0
    if first:
        yield Record({"tokens": words}, words, size, f"{where}:{first}", error)


def as_json(fields: dict[str, Any]) -> str:
    """The line of an output file; what JSON does not have, such as the dates of a table, is written as text."""
    return json.dumps(fields, ensure_ascii=False, default=str)
