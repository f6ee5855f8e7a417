"""One file of tagged sentences, and what its first lines say: its form, its columns or keys, some of its tags."""

import json
import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from lora_core.files import sha256_of_file
from trainers.data.reading import Reading
from trainers.data.rows import ARROW, json_array, numbered_lines, parquet_batches, parquet_columns
from trainers.data.spans.reader import digest
from trainers.data.tokens.columns import Columns, Sample, find_columns, read_sample
from trainers.data.tokens.schemes import notation_of

Format = Literal["json", "json array", "conll", "parquet", "parallel", "spans"]
ENDINGS = [
    ".jsonl",
    ".json",
    ".ndjson",
    ".conll",
    ".conllu",
    ".conll03",
    ".v4_gold_conll",
    ".txt",
    ".tsv",
    ".csv",
    ".bio",
    ".iob",
    ".iob2",
    ".iobes",
    ".ner",
    ".tags",
    ".parquet",
    ARROW,
]
"""What names of files of tagged sentences end in; behind all but .parquet may stand .gz. Others, and names without an
ending, are read if their content is tagged sentences for sure."""
WORD_KEYS = ("tokens", "words")
"""Keys that can hold the words of a sentence, the first that is there."""
TAG_KEYS = ("ner_tags", "tags", "labels")
"""Keys that can hold their tags."""
WORDS_OF, TAGS_OF = "seq.in", "seq.out"
"""Names of two files of which each line is a sentence, and the tags of its words: ATIS and SNIPS."""
HEAD_LINES, HEAD_BYTES = 2000, 1 << 16
"""So much of a file is looked at."""

_ARRAY = re.compile(rb'\s*(\[\s*\{|\{[^\[\]]*"data"\s*:\s*\[)')


@dataclass(frozen=True)
class TaggedFile:
    """One file of sentences, or one file inside a zip."""

    path: Path
    member: str
    """Name inside the zip; empty for a file of its own."""
    split: str
    """train, validation or test; or all, when the source is one file."""
    format: Format
    columns: Columns = field(default_factory=Columns)
    """Of files of columns, how a line is read."""
    keys: tuple[str, ...] = ()
    """Of JSON and parquet, the keys of words and tags; empty: the usual ones."""
    encoding: str = ""
    """Empty: what the content says."""

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    def sha256(self) -> str:
        """What tells this file, or what lies in this folder of texts with spans, from others."""
        if self.format == "parallel":
            return f"{digest(self)} {sha256_of_file(self.path.with_name(TAGS_OF))}"
        return digest(self)


@dataclass(frozen=True)
class Head:
    """The beginning of a file, and what it is."""

    file: TaggedFile
    certain: bool
    """Whether the content is tagged sentences, whatever the name."""
    sample: Sample | None = None
    """Of files of columns."""
    tags: tuple[Any, ...] = ()
    """Some tags of JSON and parquet."""
    rows: int = 0
    """Rows of JSON and parquet that were looked at."""
    other_tags: tuple[str, ...] = ()
    """Of JSON and parquet, other keys that hold something for each word, such as parts of speech."""
    tag_key: str = ""
    """Of JSON and parquet, the key of the tags."""


def is_known(name: Path) -> bool:
    end = Path(name.name.removesuffix(".gz")).suffix.lower()
    packed = end in (".parquet", ARROW) and name.suffix == ".gz"
    return end in ENDINGS and not packed and not name.name.startswith("cache-")


def head_of(file: TaggedFile, name: str, reading: Reading) -> Head | None:
    """What the beginning of a file says. None: it is no data by its name and content."""
    if name.lower().endswith((".parquet", ARROW)):
        return _parquet_head(replace(file, format="parquet", keys=_asked_keys(reading)))
    if name == WORDS_OF and file.path.with_name(TAGS_OF).is_file():
        return Head(replace(file, format="parallel"), True)
    lines, size = [], 0
    try:
        for _, line in islice(numbered_lines(file.path, file.member, encoding=file.encoding), HEAD_LINES):
            lines.append(line)
            size += len(line)
            if size > HEAD_BYTES:
                break
    except ValueError:  # it is damaged, which is said when it is read
        return Head(replace(file, format=_format_of_name(name)), False) if is_known(Path(name)) else None
    if any(b"\0" in line for line in lines):
        return None if not is_known(Path(name)) else Head(replace(file, format=_format_of_name(name)), False)
    text = b"\n".join(lines)
    if text.lstrip()[:1] in (b"{", b"[") and not _is_row(text.lstrip().split(b"\n")[0]):
        return _json_head(replace(file, keys=_asked_keys(reading)), lines, text)
    if _format_of_name(name) == "json":
        return Head(replace(file, format="json"), False)
    sample = read_sample([line.decode("utf-8", "replace") for line in lines], reading.separator)
    try:
        columns = find_columns([sample], reading.columns, str(file)) if sample.sentences else None
        certain = columns is not None and (columns.notation not in (None, "X") or columns.header)
    except ValueError:
        certain = True  # of several columns of tags, or of those that were asked for, find_columns speaks again
    return Head(replace(file, format="conll"), certain, sample)


def _format_of_name(name: str) -> Format:
    return "json" if ".json" in name.lower() else "conll"


def _is_row(line: bytes) -> bool:
    """Whether a line that begins with a bracket is a word and its tag."""
    cells = line.decode("utf-8", "replace").split()
    return len(cells) > 1 and cells[0] in ("[", "{") and notation_of(Counter(cells[-1:])) != "X"


def _asked_keys(reading: Reading) -> tuple[str, ...]:
    """The keys of words and tags that a user names; none where they name none.

    Raises:
        ValueError: they are not two.
    """
    names = tuple(name.strip() for name in reading.columns.split(",")) if reading.columns else ()
    if names and (len(names) != 2 or not all(names)):
        raise ValueError(
            f"--columns is {reading.columns!r}, expected the keys of the words and of the tags, such as "
            f"{WORD_KEYS[0]},{TAG_KEYS[0]}."
        )
    return names


def _json_head(file: TaggedFile, lines: Sequence[bytes], text: bytes) -> Head:
    rows = []
    if _ARRAY.match(text) and not _parsed(lines[0], dict, "tokens"):
        return _array_head(replace(file, format="json array"))
    for line in lines[:100]:
        row = _parsed(line, dict)
        if row:
            rows.append(row)
    return _rows_head(replace(file, format="json"), rows)


def _array_head(file: TaggedFile) -> Head:
    try:
        rows = json_array(file.path, file.member, encoding=file.encoding)[:100]
    except ValueError:
        return Head(file, False)  # it is said when the file is read
    return _rows_head(file, [row for row in rows if isinstance(row, dict)])


def _rows_head(file: TaggedFile, rows: Sequence[dict]) -> Head:
    words, tags = keys_in(rows[0], file.keys) if rows else (None, None)
    found = [row.get(tags) if tags else None for row in rows]
    flat = [tag for own in found for tag in (own if isinstance(own, list) else [])]
    others = [key for key, value in rows[0].items() if words and key not in (words, tags)
              and isinstance(value, list) and len(value) == len(rows[0][words] or ())] if rows else []  # fmt: skip
    some = tuple(tag for tag in flat if isinstance(tag, (str, int)))
    return Head(file, words is not None, None, some, len(rows), tuple(others), tags or "")


def keys_in(row: Container[str], asked: tuple[str, ...]) -> tuple[str | None, str | None]:
    """The keys of words and tags among those of a row; None where there is none."""
    if not asked:
        return _first(WORD_KEYS, row), _first(TAG_KEYS, row)
    return _first(asked[:1], row), _first(asked[1:], row)


def _first(keys: Iterable[str], row: Container[str]) -> str | None:
    for key in keys:
        if key in row:
            return key
    return None


def _parsed(line: bytes, kind: type, key: str = "") -> Any:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, kind) and (not key or key in value) else None


def _parquet_head(file: TaggedFile) -> Head:
    try:
        names = parquet_columns(file.path)
        words, tags = keys_in(names, file.keys)
        if words is None or tags is None:
            return Head(file, False)
        batch = next(iter(parquet_batches(file.path, names)), None)
    except (ValueError, ModuleNotFoundError):
        return Head(file, True)  # it is said when the file is read
    rows = [] if batch is None else batch.slice(0, 100).to_pylist()
    return replace(_rows_head(file, rows), certain=True)
