"""`lora-core predict`: files or standard input to predictions, line by line, in bounded memory."""

import json
import logging
import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from tqdm import tqdm

from trainers.data.rows import refuse_lone_surrogates, short
from trainers.serve import pipeline_for
from trainers.serve.entities import Entity
from trainers.serve.pipeline import Pipeline
from trainers.serve.served import load_served

logger = logging.getLogger("trainers")

STANDARD_INPUT = "-"
JSON_SUFFIXES = (".jsonl", ".json")


Format = Literal["jsonl", "text"]
InputFormat = Literal["auto", "jsonl", "text"]


@dataclass(frozen=True)
class Record:
    """One line of input."""

    fields: dict[str, Any]
    """The line's JSON object; for plain text {"text": ...}. All of it is written out again."""
    source: str | list[str]
    """What is predicted from it: a text, a list of words, or the path of an image."""
    size: int
    """Bytes of the line."""


def predict_files(
    model: str,
    files: tuple[str, ...] = (STANDARD_INPUT,),
    output: Path | None = None,
    *,
    format: Format = "jsonl",
    input_format: InputFormat = "auto",
    task: str | None = None,
    max_tokens: int | None = None,
    device: str | None = None,
    **options: Any,
) -> None:
    """Write a line of predictions for every line of input, in order; options are those of `trainers.serve`.

    Raises:
        ValueError, OSError: a file is missing, a line cannot be used (the message begins with file:line), or as
            `pipeline`.
    """
    _check_files(files, output)
    if STANDARD_INPUT in files and sys.stdin.isatty():
        logger.info("reading from the keyboard, one text a line; Ctrl-D ends the input")
    served = load_served(model, task, device)
    predictor = pipeline_for(served, max_tokens=max_tokens, **options)
    try:
        with _opened(output) as sink:
            for line in _output_lines(predictor, files, input_format, format):
                # In a field that is not predicted from, JSON may spell half of a character: it is written as it came.
                sink.write(line.encode("utf-8", "backslashreplace") + b"\n")
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _output_lines(predictor: Pipeline, files: tuple[str, ...], input_format: str, format: str) -> Iterator[str]:
    """A line for each record, while a progress bar runs on standard error (on a terminal)."""
    waiting: deque[Record] = deque()

    def sources() -> Iterator[str | list[str]]:
        for record in _records(files, input_format, predictor.fields):
            waiting.append(record)
            yield record.source

    regular = [Path(file) for file in files if Path(file).is_file()]
    total = sum(path.stat().st_size for path in regular) if len(regular) == len(files) else None
    with tqdm(total=total, desc="predict", unit="B", unit_scale=True, disable=None, file=sys.stderr) as progress:
        for result in predictor.stream(sources()):
            record = waiting.popleft()
            progress.update(record.size)
            name = predictor.result_name
            results = result if isinstance(result, list) else [result]
            if format == "jsonl":
                yield json.dumps({**record.fields, name: results}, ensure_ascii=False)
            elif name == "entities":
                yield _marked(record.source, results)
            else:
                labels = "\t".join(f"{found['label']} {found['score']:.4f}" for found in results)
                yield f"{labels}\t{_one_line(record.source)}"


def _marked(source: str | list[str], entities: list[Entity]) -> str:
    """The text with its entities marked: `[IL-2](protein) gene`."""
    text = source if isinstance(source, str) else " ".join(source)
    parts, end = [], 0
    for entity in entities:
        parts += [text[end : entity["start"]], f"[{entity['word']}]({entity['entity_group']})"]
        end = entity["end"]
    return _one_line("".join([*parts, text[end:]]))


def _one_line(text: str | list[str]) -> str:
    return " ".join(str(text).splitlines())


def _records(files: tuple[str, ...], input_format: str, names: tuple[str, ...]) -> Iterator[Record]:
    for file in files:
        if "image" in names and file != STANDARD_INPUT and Path(file).suffix.lower() not in (*JSON_SUFFIXES, ".txt"):
            yield Record({"image": file}, file, Path(file).stat().st_size)
            continue
        where = "standard input" if file == STANDARD_INPUT else file
        as_json = None if input_format == "auto" else input_format == "jsonl"  # None: the first text will tell
        if as_json is None and Path(file).suffix.lower() in JSON_SUFFIXES:
            as_json = True
        with _lines(file) as lines:
            for number, line in enumerate(lines, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if as_json is None and line.strip():
                    as_json = line.lstrip().startswith(b"{")
                if as_json and not line.strip():
                    continue
                try:
                    yield _record(line.rstrip(b"\r\n"), bool(as_json), names, len(line))
                except ValueError as error:
                    raise ValueError(f"{where}:{number}: {error}") from error


def _record(line: bytes, as_json: bool, names: tuple[str, ...], size: int) -> Record:
    """One line; ValueError says what is wrong with it."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error})") from error
    if not as_json:
        return Record({names[0]: text}, text, size)
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}): {short(text)}") from error
    given = [name for name in names if isinstance(fields, dict) and name in fields]
    if len(given) != 1:
        raise ValueError(f"expected a JSON object with {' or '.join(map(repr, names))}, got {short(text)}")
    source = fields[given[0]]
    if given[0] == "tokens":
        if not isinstance(source, list) or not all(isinstance(word, str) for word in source):
            raise ValueError(f"tokens is {short(source)}, expected a list of strings")
        refuse_lone_surrogates("".join(source))
    else:
        if not isinstance(source, str):
            raise ValueError(f"{given[0]} is {short(source)}, expected a string")
        refuse_lone_surrogates(source)
    return Record(fields, source, size)


@contextmanager
def _lines(file: str) -> Iterator[BinaryIO]:
    if file == STANDARD_INPUT:
        yield sys.stdin.buffer
        return
    with Path(file).open("rb") as stream:
        yield stream


@contextmanager
def _opened(output: Path | None) -> Iterator[BinaryIO]:
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("wb") as stream:
        yield stream


def _check_files(files: tuple[str, ...], output: Path | None) -> None:
    """Before anything is loaded: every file is there, and the output is none of them."""
    for file in files:
        if file == STANDARD_INPUT:
            continue
        if not Path(file).is_file():
            raise ValueError(f"{file} does not exist or is no file. Give a file, or - for standard input.")
        if output is not None and output.exists() and output.samefile(file):
            raise ValueError(f"--output {output} is an input file: it would be lost. Name another file.")
