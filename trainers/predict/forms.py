"""The forms of a file that `lora-core predict` reads, told by its name and its content: each becomes records."""

import gzip
import logging
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

from trainers.data.images.paths import Pictures
from trainers.data.reading import Reading
from trainers.data.rows import LEGACY, SNIFFED, BadRows, encoding_of, is_binary, json_row, numbered_lines, short
from trainers.data.sources import UNSPLIT
from trainers.data.spans import docbin
from trainers.data.spans.exports import text_or_words
from trainers.data.spans.files import holds_spans
from trainers.data.spans.reader import SpanReader
from trainers.data.texts.columns import key
from trainers.data.texts.forms import Table, read_table
from trainers.data.texts.lines import is_fasttext, leading_label, leading_labels
from trainers.data.tokens.bio import is_tag
from trainers.data.tokens.head import TaggedFile
from trainers.predict.records import SUFFIXES, Form, InputFormat, Record, lines_of
from trainers.predict.words import WordFile
from trainers.serve.rows import Input, InputRows, has_columns

logger = logging.getLogger("trainers")

PEEKED = 50
"""Lines of a file of plain text that are looked at for tags."""


def suffix_of(file: str) -> str:
    """How a file's name ends, before .gz, in lower case."""
    return Path(file.lower().removesuffix(".gz")).suffix


def names_columns(first: bytes, trained: Reading) -> bool:
    """Whether the first line of a file is a header with the columns that the model was trained on."""
    names = trained.text_column.split(",")
    cells = set(_cells(first))
    return trained.text_column != "" and len(cells) > 1 and {name.strip() for name in names} <= cells


def _cells(first: bytes) -> list[str]:
    """The first line of a file cut into cells, whatever parts them."""
    text = first.decode("utf-8", "replace").strip("\ufeff\r\n")
    return [cell.strip(' "') for cell in re.split(r"[,;|\t]", text)]


def say_header(first: bytes, where: str, labels: Collection[str] = ()) -> None:
    """Warn where the first line of what is taken for texts looks like the names of columns, or begins with a label."""
    text = first.decode("utf-8", "replace")
    if labels and {text.partition("\t")[0].strip(), leading_label(first)} & {*labels}:
        logger.warning(
            "%s begins with a label, %s: each whole line is taken for one text. If labels stand before the texts, pass "
            "--input-format table.",
            where,
            short(text[:40]),
        )
    cells = [key(cell) for cell in _cells(first)]
    if len(cells) > 1 and set(cells) & {"text", "sentence", "review", "tweet", "comment"} and max(map(len, cells)) < 20:
        logger.warning("%s begins with %s, as a table does: each whole line is taken for one text. If it is one, pass "
                       "--input-format table.", where, short(first.decode("utf-8", "replace").strip()))  # fmt: skip


@dataclass(frozen=True)
class InputFile:
    """A file on disk."""

    path: Path
    where: str
    """What messages call it."""
    fields: Sequence[str]
    given: Reading
    trained: Reading
    labels: Collection[str] = ()
    """Labels of a model of texts: a file may have them before its texts, as that of training had."""

    def records(self, input_format: InputFormat) -> Iterator[Record]:
        """Its inputs, in the form that the user names, or that its name and its content say."""
        form = self._form() if input_format == "auto" else input_format
        rows = InputRows(self.fields, self.given, self.trained)
        if suffix_of(str(self.path)) == docbin.SUFFIX or (form in ("jsonl", "table") and self._is_export()):
            return _exported(self.path, self.where, rows)
        if form == "jsonl" and _is_document(self.path, self.encoding):
            form = "table"
        if form == "conll":
            return self._sentences()
        if form == "table":
            return self._sentences() if input_format == "auto" and self._is_tagged() else self._rows(rows)
        lines = numbered_lines(self.path, encoding=self.encoding, keep_ends=True)
        return lines_of(lines, self.where, form, self.fields, rows)

    @cached_property
    def encoding(self) -> str:
        """What the user says; or what was said in training, where the content is in no form of Unicode."""
        if self.given.encoding or not self.trained.encoding:
            return self.given.encoding
        with self.path.open("rb") as file:
            head = file.read(SNIFFED)
        if head.startswith(b"\x1f\x8b"):
            with gzip.open(self.path) as unpacked:
                head = unpacked.read(SNIFFED)
        if encoding_of(head) != LEGACY:
            return ""
        logger.info("%s is read as %s, as in training", self.where, self.trained.encoding)
        return self.trained.encoding

    def _form(self) -> Form | None:
        suffix = suffix_of(str(self.path))
        given = self.given
        if (given.delimiter or given.text_column or given.pair_column) and suffix not in (".jsonl", ".ndjson"):
            return "table"
        if given.columns and "tokens" not in self.fields:
            raise ValueError(
                f"--columns is for models that label words, and this one takes a {self.fields[0]}. Leave it out; the "
                "column of a text is --text-column."
            )
        if given.columns:
            return "conll"
        return SUFFIXES.get(suffix) or self._form_of_content()

    def _form_of_content(self) -> Form | None:
        """What the content says; None: lines of text, or of JSON if the first begins with a brace."""
        if is_binary(self.path):
            return "table"
        head = [line for _, line in islice(numbered_lines(self.path, encoding=self.encoding), PEEKED)]
        first = next((line.strip() for line in head if line.strip()), b"")
        if first.startswith(b"[") and _is_document(self.path, self.encoding):
            return "jsonl"
        if first.startswith(b"%PDF") or any(b"\0" in line for line in head):
            raise ValueError(f"{self.where} is no text: its content is binary. Give texts; or if it is one, pass "
                             "--input-format text.")  # fmt: skip
        if is_fasttext(first) or (head and names_columns(head[0], self.trained)):
            return "table"
        if self._has_labels_first(head):
            return "table"
        parts = self.trained.separator.encode()
        if parts and "tokens" not in self.fields and head and all(parts in line for line in head if line.strip()):
            return "table"  # cut at what stood between the columns of training
        if head:
            say_header(head[0], self.where, self.labels)
        cells = [line.split() for line in head]
        filled = [words for words in cells if words and words[0] != b"-DOCSTART-"]
        tagged = [words for words in filled if len(words) > 1 and is_tag(words[-1].decode("utf-8", "replace"))]
        if filled and (tagged == filled or self._is_tagged()):
            return "conll"
        tabs = {line.count(b"\t") for line in head if line}
        if len(tabs) == 1 and 0 not in tabs and len(filled) > 1:
            logger.warning("%s has tabs in every line: each whole line is taken for one text. If they part columns, "
                           "pass --input-format table, with --text-column.", self.where)  # fmt: skip
        return None

    def _has_labels_first(self, head: Sequence[bytes]) -> bool:
        """Whether every line begins with a label of the model, behind which a tab or, as in TREC, a blank stands."""
        if (labels := leading_labels(list(enumerate(head)))) and labels <= {*self.labels}:
            return True
        cells = [line.decode("utf-8", "replace").split("\t") for line in head if line.strip()]
        return len(cells) > 1 and all(len(own) == 2 and own[0].strip() in self.labels for own in cells)

    @cached_property
    def _word_file(self) -> WordFile:
        return WordFile(self.path, self.where, replace(self.given, encoding=self.encoding), self.trained)

    def _is_tagged(self) -> bool:
        """Whether this is a file of tagged words for sure, and the model takes words."""
        return "tokens" in self.fields and self._word_file.is_tagged

    def _sentences(self) -> Iterator[Record]:
        """A record for each sentence of a file with a word a line."""
        if "tokens" not in self.fields:
            raise ValueError(
                f"{self.where} holds tagged words, a word a line, and this model takes a {self.fields[0]}. If each "
                "line is one: --input-format text."
            )
        for first, words, size, error in self._word_file.sentences():
            yield Record({"tokens": words}, words, size, f"{self.where}:{first}", error)

    def _is_export(self) -> bool:
        """Whether this is the export of an annotation tool, whose texts are found by its own keys."""
        asked = self.given.text_column or self.given.pair_column or self.given.delimiter
        return not asked and "image" not in self.fields and holds_spans(self.path)

    def _rows(self, rows: InputRows) -> Iterator[Record]:
        """A record for each row of a table."""
        table = self._table()
        if not table.names:
            raise ValueError(f"{self.where} holds no rows.")
        columns = None
        if table.form != "JSON":
            try:
                columns, problem = rows.columns(table.names), "which of them to predict from is not clear"
            except ValueError as error:
                problem = str(error)
            if columns is None:
                raise ValueError(f"{self.where} has the columns {short(table.names)}, and {problem}. {self._remedy()}")
            said = self.where, table.form, short(table.names), columns
            logger.info("%s is read as a table (%s) of %s; predicted from: %s", *said)
        bad, words = _Passed(self.where), "tokens" in self.fields
        for number, row in table.read(table.names, bad):
            yield from bad.taken()
            place = f"{self.where}:{number}"
            try:
                source = rows.input_of(row) if columns is None else columns.input_of(row, words)
                yield Record(row, self._found(source), 0, place)
            except ValueError as problem:
                yield Record(row, "", 0, place, str(problem))
        yield from bad.taken()

    def _table(self) -> Table:
        """As in training where that gives the columns of training, else as the user and the content say."""
        reading, trained = replace(self.given, encoding=self.encoding), self.trained
        as_trained = replace(reading, label_column=trained.label_column)
        if not self.given.text_column:
            as_trained = replace(as_trained, text_column=trained.text_column)
        for delimiter in dict.fromkeys((self.given.delimiter or trained.delimiter, self.given.delimiter)):
            table = read_table(self.path, replace(as_trained, delimiter=delimiter))
            if table.form != "columns":
                return table
            if as_trained.text_column and has_columns(table.names, as_trained):
                if delimiter != self.given.delimiter:
                    logger.info("%s has %s between columns, as in training", self.where, delimiter)
                return table
        return read_table(self.path, reading)

    def _remedy(self) -> str:
        if "image" in self.fields:
            return "Call the column of the pictures' paths image."
        words = ", a word: --input-format conll" if "tokens" in self.fields else ""
        return (
            f"Name it: --text-column, and for pairs --pair-column. If each line is a text: --input-format text{words}."
        )

    def _found(self, source: Input) -> Input:
        """The path of a picture, from here or from the table's folder; anything else as it is."""
        if "image" not in self.fields or not isinstance(source, str) or Path(source).is_file():
            return source
        return str(self._pictures.find(source))

    @cached_property
    def _pictures(self) -> Pictures:
        return Pictures(self.path.parent)


def _is_document(path: Path, encoding: str) -> bool:
    """Whether a file of JSON is one value that holds rows, and not a row a line."""
    lines = (line.strip() for _, line in numbered_lines(path, encoding=encoding))
    first, second = (*islice(filter(None, lines), 2), b"", b"")[:2]
    try:
        value = json_row(first)
    except ValueError:
        return first[:1] in (b"[", b"{") and not second.startswith(b"{" if first[:1] == b"{" else b"[")
    if isinstance(value, list):
        return text_or_words(value) is None
    if not isinstance(value, dict) or second or text_or_words(value) is not None or "tokens" in value:
        return False
    return bool(value) and all(isinstance(cell, (list, dict)) for cell in value.values())


def _exported(path: Path, where: str, rows: InputRows) -> Iterator[Record]:
    """A record for each text of an annotation tool's export, whether or not it is labelled."""
    logger.info("%s is read as the export of an annotation tool; predicted from its texts", where)
    for number, (_, value) in SpanReader(BadRows("skip")).rows(TaggedFile(path, "", UNSPLIT, "spans")):
        place, size = f"{where}:{number}", len(value) + 1 if isinstance(value, bytes) else 0
        try:
            row = json_row(value) if isinstance(value, bytes) else value
            row = {"text": row.text} if hasattr(row, "ents") else row
            source = rows.input_of(row)
            yield Record(row if isinstance(row, dict) else {"text": source}, source, size, place)
        except ValueError as problem:
            yield Record({}, "", size, place, str(problem))


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
