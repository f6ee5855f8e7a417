"""`lora-core predict`: files or standard input to predictions, line by line, in bounded memory."""

import gzip
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from glob import glob
from pathlib import Path
from typing import IO, Any, Literal, cast, get_args

from lora_core.files import MAKE_ROOM, disk_errors, replacing
from trainers.data.reading import AS_FOUND, Reading
from trainers.predict.inputs import STANDARD_INPUT, expanded, records_of
from trainers.predict.records import InputFormat, Record, as_json
from trainers.serve import pipeline_for
from trainers.serve.backends import Chosen
from trainers.serve.entities import Entity
from trainers.serve.pipeline import Pipeline, chunks
from trainers.serve.served import load_served
from trainers.show import duration, progress_bar

logger = logging.getLogger("trainers")

NO_ROOM = f"{MAKE_ROOM}, or name a file elsewhere: --output FILE."
Format = Literal["jsonl", "text"]
OnBadInput = Literal["mark", "error", "skip"]


def predict_files(
    model: str,
    files: tuple[str, ...] = (STANDARD_INPUT,),
    output: Path | None = None,
    *,
    format: Format = "jsonl",
    input_format: InputFormat = "auto",
    reading: Reading = AS_FOUND,
    on_bad_row: OnBadInput = "mark",
    task: str | None = None,
    max_tokens: int | None = None,
    device: str | None = None,
    backend: Chosen | None = None,
    **options: Any,
) -> None:
    """Write a line of predictions for every input, in order; options are those of `trainers.serve`.

    Args:
        reading: which column is the text, what stands between columns, and the encoding; by default what the content
            says.
        on_bad_row: "mark" writes {"error": ...} in the place of an input that cannot be predicted from, "skip" leaves
            it out, and both count such inputs at the end; "error" stops.

    Raises:
        ValueError, OSError: a file is missing; with ``on_bad_row="error"`` an input cannot be used (the message begins
            with file:line); or as `pipeline`.
    """
    if on_bad_row not in get_args(OnBadInput):
        raise ValueError(f"on_bad_row is {on_bad_row!r}; expected one of {', '.join(get_args(OnBadInput))}.")
    _check_files(files, output)
    _keep_inputs(files, output)
    if STANDARD_INPUT in files and sys.stdin.isatty():
        logger.info("reading from the keyboard, one text a line; Ctrl-D ends the input")
    served = load_served(model, task, device, backend=backend)
    predictor = pipeline_for(served, max_tokens=max_tokens, **options)
    files = expanded(files, "image" in predictor.fields)
    _keep_inputs(files, output)
    labels = served.labels if served.task == "text-classification" else ()
    records = records_of(files, predictor.fields, input_format, reading, served.reading, labels)
    bad, written, began = _BadInputs(on_bad_row), 0, time.monotonic()
    try:
        with _opened(output) as sink:
            for record, result in _predicted(predictor, _with_progress(records, files, output), bad):
                line = _line(record, result, predictor.result_name, format)
                # In a field that is not predicted from, JSON may spell half of a character: it is written as it came.
                sink.write(line.encode("utf-8", "backslashreplace") + b"\n")
                written += 1
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if output is not None:
        seconds = time.monotonic() - began
        said = output, written, duration(seconds), written / max(seconds, 1e-9)
        logger.info("%s: %d lines in %s, %.0f a second", *said)
    if not written and not bad.count:
        logger.warning("there was nothing to predict from: the input is empty")
    bad.report()


class _BadInputs:
    """Inputs that cannot be predicted from: named, counted, and as the user says marked, left out, or the end."""

    def __init__(self, on_bad_row: OnBadInput) -> None:
        self.on_bad_row, self.count, self.first = on_bad_row, 0, ""

    def add(self, record: Record, problem: str) -> None:
        """ValueError where the user wants it."""
        if self.on_bad_row == "error":
            raise ValueError(f"{record.where}: {problem}. To go on past such inputs: --on-bad-row mark, or skip.")
        self.count += 1
        self.first = self.first or f"{record.where}: {problem}"

    def report(self) -> None:
        """Log how many there were, and the first."""
        if self.count:
            done = "left out" if self.on_bad_row == "skip" else 'marked with "error"'
            more = ", ..." if self.count > 1 else ""
            logger.warning("%d inputs could not be used and were %s: %s%s", self.count, done, self.first, more)


def _predicted(
    predictor: Pipeline, records: Iterator[Record], bad: _BadInputs
) -> Iterator[tuple[Record, list[Any] | None]]:
    """Every record with its results, or with none if it is bad and to be marked."""
    for chunk in chunks(records, of=_source_of):
        good = [record for record in chunk if not record.error]
        try:
            results = predictor.predict([record.source for record in good])
            found = dict(zip(map(id, good), results, strict=True))
        except ValueError:  # one of them is to blame: it is found by asking for each
            found = {}
        for record in chunk:
            result, problem = found.get(id(record)), record.error
            if result is None and not problem:
                try:
                    (result,) = predictor.predict([record.source])
                except ValueError as error:
                    problem = str(error)
            if problem:
                record = replace(record, error=problem)
                bad.add(record, problem)
                if bad.on_bad_row == "mark":
                    yield record, None
            else:
                yield record, result if isinstance(result, list) else [result]


def _source_of(record: Record) -> str | list[str] | tuple[str, str]:
    return record.source


def _with_progress(records: Iterator[Record], files: tuple[str, ...], output: Path | None) -> Iterator[Record]:
    """The records, while a progress bar runs on standard error (on a terminal that the output does not go to)."""
    regular = [Path(file) for file in files if Path(file).is_file()]
    total = sum(path.stat().st_size for path in regular) if len(regular) == len(files) else None
    shown = output is not None or not sys.stdout.isatty()
    with progress_bar("predict", total, unit="B", unit_scale=True, shown=shown) as progress:
        for record in records:
            yield record
            progress.update(record.size)


def _line(record: Record, results: list[Any] | None, name: str, format: Format) -> str:
    """What is written of a record."""
    if results is None:
        error = f"{record.where}: {record.error}"
        return as_json({**record.fields, "error": error}) if format == "jsonl" else f"error: {_one_line(error)}"
    if format == "jsonl":
        return as_json({**record.fields, name: results})
    if name == "entities":
        return _marked(record.source, results)
    labels = "\t".join(f"{found['label']} {found['score']:.4f}" for found in results)
    return f"{labels}\t{_one_line(record.source)}"


def _marked(source: str | list[str] | tuple[str, str], entities: list[Entity]) -> str:
    """The text with its entities marked: `[IL-2](protein) gene`."""
    text = source if isinstance(source, str) else " ".join(source)
    parts, end = [], 0
    for entity in entities:
        parts += [text[end : entity["start"]], f"[{entity['word']}]({entity['entity_group']})"]
        end = entity["end"]
    return _one_line("".join([*parts, text[end:]]))


def _one_line(text: str | list[str] | tuple[str, str]) -> str:
    text = " || ".join(text) if isinstance(text, tuple) else text
    return " ".join(str(text).splitlines())


@contextmanager
def _opened(output: Path | None) -> Iterator[IO[bytes]]:
    """Where lines are written: a file appears under its name when it is whole, gzipped if its name ends in .gz."""
    if output is None:
        with disk_errors(_standard_output(), remedy=NO_ROOM):
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
    elif output.exists() and not output.is_file():  # a pipe or a device
        with disk_errors(output, remedy=NO_ROOM), output.open("wb") as stream:
            yield stream
    else:
        if not output.parent.is_dir():
            logger.info("--output: the folder %s was not there, and is made", output.parent)
            output.parent.mkdir(parents=True)
        with replacing(output) as temporary:
            zipped = output.suffix.lower() == ".gz"
            with gzip.open(temporary, "wb") if zipped else temporary.open("wb") as stream:
                yield cast(IO[bytes], stream)


def _standard_output() -> str:
    """What standard output goes to, where the system tells."""
    try:
        return os.readlink("/proc/self/fd/1")
    except OSError:
        return "standard output"


def _check_files(files: tuple[str, ...], output: Path | None) -> None:
    """Before anything is loaded: every file is there, and the output is no folder."""
    if output is not None and output.is_dir():
        raise ValueError(f"--output {output} is a folder. Name a file in it.")
    for file in files:
        if file == STANDARD_INPUT:
            continue
        if not Path(file).exists() and not glob(file, recursive=True):
            raise ValueError(f"{file} does not exist or is no file. Give a file, or - for standard input.")


def _keep_inputs(files: tuple[str, ...], output: Path | None) -> None:
    """Raise ValueError where the output is one of the inputs."""
    if output is None or not output.is_file():
        return
    if any(file != STANDARD_INPUT and Path(file).exists() and output.samefile(file) for file in files):
        raise ValueError(f"--output {output} is an input file: it would be lost. Name another file.")
