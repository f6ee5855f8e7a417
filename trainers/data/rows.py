"""Rows of data files, whatever they hold: of plain, gzipped and zipped lines and of parquet; and the bad ones."""

import codecs
import gzip
import io
import json
import logging
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from tqdm import tqdm

logger = logging.getLogger(__name__)

OnBadRow = Literal["error", "skip"]
Lines = list[tuple[int, bytes]]
"""Lines with their numbers, from 1."""
Row = tuple[int | None, dict[str, Any]]
"""The number of a row's line (of the row itself, where a form has no lines; from 1), and its values by column."""

NAMED_ROWS = 5
"""Bad rows that the report names; the rest it only counts."""
SHOW_EVERY = 2000
"""Lines between two movements of a progress bar."""
SNIFFED = 1 << 16
"""Bytes at the beginning of a file that tell its encoding."""
LEGACY = "cp1252"
"""What a file is taken for whose bytes are no form of Unicode."""
FEW = 2
"""So many wrong bytes are damage, whatever stands beside them."""
BINARY = (b"PAR1", b"PK\x03\x04", b"\xff\xff\xff\xff", b"ARROW1")
"""What files begin with that have no lines: parquet, zip (and Excel), a stream of Arrow, an Arrow file."""
BATCH = 1024
"""Rows of a parquet file in memory at a time."""


@dataclass
class BadRows:
    """Rows that cannot be used: `on_bad_row` "error" raises at the first, "skip" counts them."""

    on_bad_row: OnBadRow
    count: int = 0
    first: list[str] = field(default_factory=list)
    changed: dict[str, Any] = field(default_factory=dict)
    """What else was not taken as it stood, in words that a number can stand before: how often, and where first."""

    def __post_init__(self) -> None:
        if self.on_bad_row not in get_args(OnBadRow):
            raise ValueError(f"on_bad_row={self.on_bad_row!r}: expected 'error' or 'skip'.")

    def add(self, file: Path | str, line: int | None, problem: str) -> None:
        """A bad line of a file, or with `line` None a file that is bad as a whole."""
        where = f"{file}: {problem}" if line is None else f"{file}:{line}: {problem}"
        if self.on_bad_row == "error":
            remedy = (
                "Name its encoding (--encoding cp1252), correct it" if "not UTF-8" in problem else "Correct the file"
            )
            raise ValueError(
                f"{where}. {remedy}, or leave such rows out: --on-bad-row skip (in Python on_bad_row='skip')."
            )
        self.count += 1
        if len(self.first) < NAMED_ROWS:
            self.first.append(where)

    def change(self, what: str, where: str) -> None:
        """Count something that is no damage, but must be known: what was changed or passed over on purpose."""
        count, first = self.changed.get(what, (0, where))
        self.changed[what] = (count + 1, first)

    def report(self) -> None:
        """Log how many rows were left out, and what was changed, each with the first; nothing if there was nothing."""
        for what, (count, first) in self.changed.items():
            logger.warning("%d %s; the first: %s", count, what, first)
        if self.count:
            more = "; ..." if self.count > len(self.first) else ""
            logger.warning("left out %d bad rows: %s%s", self.count, "; ".join(self.first), more)


def numbered_lines(
    path: Path, member: str = "", progress: tqdm | None = None, *, encoding: str = "", keep_ends: bool = False
) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers from 1, as bytes in UTF-8 without byte order mark and line end; unzipped if gzipped.

    Bytes, so that only a newline ends a line (str.splitlines also breaks at characters that stand in texts),
    and so that a byte that is not UTF-8 spoils one row and not the file. Files in UTF-16 or in Windows' old encoding,
    and files whose lines end in a bare carriage return, are recognised and converted.

    Args:
        path: the file, or a zip.
        member: the file inside the zip; empty for a file of its own.
        progress: counts bytes of the file at `path`.
        encoding: of the file; empty: what its content says.
        keep_ends: leave the line ends, for CSV, whose cells may hold some.

    Raises:
        ValueError: the file cannot be unpacked.
    """
    bar = _FileBar(path, progress)
    with ExitStack() as stack:
        stored = stack.enter_context(path.open("rb"))
        try:
            content: Any = stored
            if member:
                content = stack.enter_context(stack.enter_context(zipfile.ZipFile(stored)).open(member))
            content = io.BufferedReader(content, SNIFFED)
            if content.peek(2).startswith(b"\x1f\x8b") or (member or path.name).endswith(".gz"):
                unpacked: Any = stack.enter_context(gzip.GzipFile(fileobj=content))
                content = io.BufferedReader(unpacked, SNIFFED)
            for number, line in enumerate(_utf8_lines(content, encoding, f"{path}:{member}" if member else path), 1):
                if number % SHOW_EVERY == 0:
                    bar.move_to(stored.tell())
                yield number, line if keep_ends else line.rstrip(b"\r\n")
        except (EOFError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error) as error:
            where = f"{path}:{member}" if member else path
            raise ValueError(f"{where} is damaged or cut short: {error}. Fetch it again.") from error
    bar.move_to(bar.size)


def _utf8_lines(content: io.BufferedReader, encoding: str, where: Path | str) -> Iterator[bytes]:
    """The lines of a file, in UTF-8."""
    head = content.peek(SNIFFED)[:SNIFFED]
    found = encoding or encoding_of(head)
    if found == LEGACY and not encoding:
        _say_legacy(str(where))
    is_utf8 = codecs.lookup(found).name in ("utf-8", "utf-8-sig")
    only_returns = b"\r" in head and b"\n" not in head
    if is_utf8 and not only_returns:
        first = next(content, b"")
        if first:
            yield first.removeprefix(codecs.BOM_UTF8)
        yield from content
        return
    newline = "\r" if only_returns else "\n"
    text = io.TextIOWrapper(content, found, "surrogateescape" if is_utf8 else "replace", newline)
    try:
        for number, line in enumerate(text):
            line = line.removeprefix("\ufeff") if number == 0 else line
            if not is_utf8:  # what the encoding does not have spoils its row, as in UTF-8, and not the file
                line = line.replace("\ufffd", "\udcff")
            yield line.encode("utf-8", "surrogateescape")
    finally:
        text.detach()  # the file is closed by whoever opened it


@cache
def _say_legacy(where: str) -> None:
    """Log it once, however often the file is read."""
    logger.warning("%s is not UTF-8: it is read as %s. --encoding says otherwise.", where, LEGACY)


def encoding_of(head: bytes) -> str:
    """The encoding of a text, by its beginning: a form of Unicode where that can be, else `LEGACY`."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for first, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        high = head[first : SNIFFED // 2 : 2]
        if len(high) >= 8 and high.count(0) > len(high) / 2:
            return name
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(head)  # the last character may be cut
    wrong = text.count("\ufffd")
    right = sum(not character.isascii() for character in text) - wrong if wrong else 0
    return LEGACY if wrong > max(right, FEW) else "utf-8"


def is_binary(path: Path) -> bool:
    """Whether a file is parquet, Excel or another zip, or Arrow, by its first bytes: it has no lines."""
    with path.open("rb") as file:
        return file.read(6).startswith(BINARY)


def json_row(line: bytes) -> Any:
    """The value on one line of JSON lines.

    Raises:
        ValueError: it is not JSON in UTF-8.
    """
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error})") from error
    except (ValueError, RecursionError) as error:
        array = "; expected an object a line, not an array of them" if line.lstrip().startswith(b"[") else ""
        raise ValueError(f"not JSON ({error}): {short(line)}{array}") from error


def json_array(path: Path, member: str = "", progress: tqdm | None = None, *, encoding: str = "") -> list[Any]:
    """The values of a JSON array, or of the array under `data`; all of it is in memory. Arguments as `numbered_lines`.

    Raises:
        ValueError: the file is not JSON, or holds neither.
    """
    where = f"{path}:{member}" if member else path
    text = b"\n".join(line for _, line in numbered_lines(path, member, progress, encoding=encoding))
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}). Fetch or write it again.") from error
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise ValueError(f"{where} holds {short(content)}, expected an array of objects.")
    return rows


def short(value: object) -> str:
    """A value for an error message, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def refuse_lone_surrogates(text: str) -> None:
    """Nothing, unless the text holds half of a surrogate pair: JSON can spell it, no tokenizer takes it.

    Raises:
        ValueError: it does.
    """
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the text holds {text[error.start]!r}, half of a character") from error


ARROW = ".arrow"
"""The end of names of files that datasets' save_to_disk writes; they are read as parquet is."""


def parquet_metadata(path: Path) -> Any:
    """What the hub's libraries wrote about the columns; None where they did not."""
    schema = _schema(path)
    return json.loads((schema.metadata or {}).get(b"huggingface", b"null"))


def parquet_columns(path: Path) -> list[str]:
    """The names of the columns of a parquet file.

    Raises:
        ValueError: it is damaged.
    """
    return _schema(path).names


def parquet_batches(path: Path, columns: list[str], progress: tqdm | None = None) -> Iterator[Any]:
    """The pyarrow record batches of some columns, in order; `progress` counts bytes of the file."""
    if path.suffix == ARROW:
        with _open_arrow(path) as stream:
            for batch in stream:
                yield from (batch.select(columns).slice(start, BATCH) for start in range(0, batch.num_rows, BATCH))
        _FileBar(path, progress).move_to(path.stat().st_size)
        return
    file = _open_parquet(path)
    bar, read = _FileBar(path, progress), 0
    for batch in file.iter_batches(batch_size=BATCH, columns=columns):
        yield batch
        read += batch.num_rows
        bar.move_to(bar.size * read // file.metadata.num_rows)


class _FileBar:
    """The part of one file in a progress bar of bytes, if there is a bar."""

    def __init__(self, path: Path, progress: tqdm | None) -> None:
        self.size, self._shown, self._progress = path.stat().st_size, 0, progress

    def move_to(self, place: int) -> None:
        """Show that so many bytes are read. Never back: the directory of a zip, at its end, is read first."""
        if self._progress is not None and place > self._shown:
            self._progress.update(place - self._shown)
            self._shown = place


def _schema(path: Path) -> Any:
    """The columns of a file, as pyarrow has them."""
    if path.suffix != ARROW:
        return _open_parquet(path).schema_arrow
    with _open_arrow(path) as stream:
        return stream.schema


def _open_arrow(path: Path) -> Any:
    """A pyarrow stream of record batches. Errors as `_open_parquet`."""
    pyarrow = _pyarrow(path)
    try:
        return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{path} is not a stream of Arrow, as save_to_disk writes it, or is cut short: {error}"
        ) from error


def _open_parquet(path: Path) -> Any:
    """A pyarrow ParquetFile. Raises ValueError for a damaged file, ModuleNotFoundError with the remedy."""
    pyarrow = _pyarrow(path)
    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file, or is cut short: {error}") from error


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} is {path.suffix[1:]}, which needs pyarrow: pip install 'lora-core[parquet]'", name=error.name
        ) from error
    return pyarrow
