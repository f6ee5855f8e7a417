"""An input of `lora-core predict`, and those that come a line each: JSON lines and plain text."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainers.data.rows import json_row
from trainers.predict.words import decoded
from trainers.serve.rows import Input, InputRows

Form = Literal["jsonl", "text", "table", "conll"]
InputFormat = Literal["auto", "jsonl", "text", "table", "conll"]
SUFFIXES: dict[str, Form] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "table",
    ".tsv": "table",
    ".parquet": "table",
    ".arrow": "table",
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
    source: Input
    """What is predicted from it: a text, a pair of texts, a list of words, or the path of an image."""
    size: int
    """Bytes that it takes of its file; 0 where that is not known."""
    where: str
    """file:line."""
    error: str = ""
    """Why it cannot be predicted from, if so."""


def lines_of(
    lines: Iterator[tuple[int, bytes]], where: str, form: Form | None, fields: Sequence[str], rows: InputRows
) -> Iterator[Record]:
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
            if form == "jsonl":
                row = json_row(line)
                source = rows.input_of(row)
                yield Record(row if isinstance(row, dict) else {"text": source}, source, size, place)
            else:
                text = decoded(line)
                yield Record({fields[0]: text}, text, size, place)
        except ValueError as problem:
            yield Record({}, "", size, place, str(problem))


def as_json(fields: dict[str, Any]) -> str:
    """The line of an output file; what JSON does not have, such as the dates of a table, is written as text."""
    return json.dumps(fields, ensure_ascii=False, default=str)
