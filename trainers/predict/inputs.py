"""What `lora-core predict` reads: files, patterns, folders of pictures, standard input and pipes.

Every input becomes a `Record`, a damaged one too: it says what is wrong with it, and the others go on.
"""

import logging
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from glob import glob
from itertools import chain
from pathlib import Path
from typing import IO

from trainers.data.images.files import image_files, is_ignored, say_what_is_not_read
from trainers.data.reading import Reading
from trainers.data.texts.lines import is_fasttext
from trainers.predict.forms import InputFile, names_columns, say_header, suffix_of
from trainers.predict.records import SUFFIXES, Form, InputFormat, Record, lines_of
from trainers.serve.rows import InputRows

logger = logging.getLogger("trainers")

STANDARD_INPUT = "-"
PACKED = (b"\x1f\x8b", b"PAR1", b"PK\x03\x04", b"\xff\xfe", b"\xfe\xff")
"""What files begin with that are no lines in UTF-8: gzip, parquet, Excel, UTF-16."""


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
            if name != file and not takes_pictures:
                logger.warning("%s is a folder, so what it holds is not read. Name its files: %s/*", name, name)
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
    files: Sequence[str],
    fields: Sequence[str],
    input_format: InputFormat,
    given: Reading,
    trained: Reading,
    labels: Collection[str] = (),
) -> Iterator[Record]:
    """The inputs in some files, in order.

    Args:
        files: paths; - is standard input.
        fields: under which an object holds what is predicted from; the first is also what a line of plain text is.
        input_format: of the files; auto: as their names and contents say.
        given: which column is the text, what stands between columns, and the encoding, where the user says so.
        trained: the same of the files that the model was trained on; a file that it fits is read so.
        labels: of a model of texts.

    Raises:
        ValueError: a file as a whole cannot be read.
    """
    for file in files:
        if "image" in fields and file != STANDARD_INPUT and suffix_of(file) not in (*SUFFIXES, ".txt"):
            yield Record({"image": file}, file, Path(file).stat().st_size, file)
            continue
        if Path(file).is_file():
            yield from InputFile(Path(file), file, fields, given, trained, labels).records(input_format)
            continue
        where = "standard input" if file == STANDARD_INPUT else file
        with nullcontext(sys.stdin.buffer) if file == STANDARD_INPUT else open(file, "rb") as stream:
            yield from _streamed(stream, where, fields, input_format, given, trained, labels)


def _streamed(
    stream: IO[bytes],
    where: str,
    fields: Sequence[str],
    input_format: InputFormat,
    given: Reading,
    trained: Reading,
    labels: Collection[str],
) -> Iterator[Record]:
    """The inputs in what can be read once: lines as they come; other forms from a copy on disk."""
    first = stream.readline()
    lines = chain([first] if first else [], stream)
    by_line = input_format in ("jsonl", "text") or (
        input_format == "auto" and SUFFIXES.get(suffix_of(where)) in (None, "jsonl") and not _is_whole(first, trained)
    )
    if by_line and not given.encoding and not first.startswith(PACKED):
        form: Form | None = None if input_format == "auto" else input_format
        if form is None:
            say_header(first, where, labels)
        yield from lines_of(enumerate(lines, start=1), where, form, fields, InputRows(fields, given, trained))
        return
    with tempfile.TemporaryDirectory(prefix="lora-core-predict-") as folder:
        path = Path(folder, Path(where).name)
        with path.open("wb") as copy:
            copy.writelines(lines)
        yield from InputFile(path, where, fields, given, trained, labels).records(input_format)


def _is_whole(first: bytes, trained: Reading) -> bool:
    """Whether what begins with this line must be read as a whole: a JSON array, or a table as in training."""
    text = first.strip()
    return text == b"[" or text.startswith(b"[{") or is_fasttext(first) or names_columns(first, trained)
