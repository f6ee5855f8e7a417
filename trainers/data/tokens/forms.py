"""The rows of a file of tagged sentences in each form, and the words and tags of a row as they stand there."""

from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

import numpy as np
from tqdm import tqdm

from trainers.data.rows import (
    BadRows,
    json_array,
    json_row,
    numbered_lines,
    parquet_batches,
    parquet_columns,
    refuse_lone_surrogates,
    short,
)
from trainers.data.spans.exports import LeftOut
from trainers.data.spans.reader import SpanReader
from trainers.data.tokens.columns import Columns
from trainers.data.tokens.head import TAG_KEYS, TAGS_OF, WORD_KEYS, Format, TaggedFile, keys_in
from trainers.data.tokens.schemes import BadTag, from_brackets
from trainers.data.tokens.tag_ids import TagIds, UnnamedTags

ScalarPair = tuple[Any, Any]
"""Words and tags of a parquet file's row, as pyarrow scalars, which become lists when they are asked to."""
Block = tuple[Columns, list[tuple[int, bytes]]]
"""How the lines of a sentence are read, and each line with its place behind the first."""


class BadLine(ValueError):
    """What is wrong with a row of several lines, and in which of them."""

    def __init__(self, problem: str, place: int) -> None:
        super().__init__(problem)
        self.place = place
        """Lines before it in the row."""


def _json_rows(file: TaggedFile, progress: tqdm | None) -> Iterator[tuple[int, tuple[bytes, tuple[str, ...]]]]:
    for number, line in numbered_lines(file.path, file.member, progress, encoding=file.encoding):
        if line.strip():
            yield number, (line, file.keys)


def _json_lists(row: tuple[bytes, tuple[str, ...]]) -> tuple[Any, Any]:
    return _lists(json_row(row[0]), row[1])


def _lists(row: Any, asked: tuple[str, ...]) -> tuple[Any, Any]:
    if isinstance(row, dict):
        words, tags = keys_in(row, asked)
        if words is not None and tags is not None:
            return row[words], row[tags]
    word, tag = asked or (WORD_KEYS[0], TAG_KEYS[0])
    items = row.items() if isinstance(row, dict) else ()
    lists = [key for key, value in items if isinstance(value, list) and value and isinstance(value[0], (str, int))]
    others = f"; name the keys of the words and of the tags: --columns {','.join(lists[:2])}" if len(lists) > 1 else ""
    raise ValueError(f'expected an object {{"{word}": [...], "{tag}": [...]}} on one line, got {short(row)}{others}')


def _array_rows(file: TaggedFile, progress: tqdm | None) -> Iterator[tuple[int, tuple[Any, tuple[str, ...]]]]:
    for number, row in enumerate(json_array(file.path, file.member, progress, encoding=file.encoding), 1):
        yield number, (row, file.keys)


def _array_lists(row: tuple[Any, tuple[str, ...]]) -> tuple[Any, Any]:
    return _lists(*row)


def _conll_rows(file: TaggedFile, progress: tqdm | None) -> Iterator[tuple[int, Block]]:
    """The lines of each sentence with their places behind the first, and the number of the first."""
    columns = file.columns
    block: list[tuple[int, bytes]] = []
    start, header = 0, columns.header
    opened: str | None = None
    for number, line in numbered_lines(file.path, file.member, progress, encoding=file.encoding):
        first = line[:1]
        if not line.strip() or (first == b"-" and line.startswith(b"-DOCSTART-")):
            if block:
                yield start, (columns, block)
                block = []
            continue
        if first == b"#" and columns.is_comment(line.decode("utf-8", "replace"), not block):
            continue
        if header:
            header = False
            continue
        if columns.starts is not None:
            value = _cell(columns, line)
            if columns.starts == columns.index:
                begins = opened is not None and value == opened
                opened = value if opened is None else opened
            else:
                begins = bool(value) and opened is not None and value != opened
                opened = value or opened
            if begins and block:
                yield start, (columns, block)
                block = []
        if not block:
            start = number
        block.append((number - start, line))
    if block:
        yield start, (columns, block)


def _cell(columns: Columns, line: bytes) -> str:
    """The value that tells sentences apart."""
    cells = columns.cells(line.decode("utf-8", "replace"))
    return cells[columns.starts or 0].strip() if len(cells) > (columns.starts or 0) else ""


def _conll_lists(row: Block) -> tuple[list[str], list[str]]:
    """Words and tags of a sentence."""
    columns, lines = row
    words, tags = [], []
    separator, count, word_at, tag_at = columns.separator, columns.count, columns.word, columns.tag
    is_plain = separator in ("\t", " ") and columns.index is None and not columns.key
    for place, line in lines:
        try:
            text = line.decode("utf-8")
            if is_plain:  # most lines: the same as below, in a third of the time
                cells = text.split(separator)
                if len(cells) == count and "" not in cells:
                    word, tag = cells[word_at].strip(" "), cells[tag_at].strip(" ")
                    if word and tag:
                        words.append(word)
                        tags.append(tag)
                        continue
            pair = columns.word_and_tag(text)
        except UnicodeDecodeError as error:
            raise BadLine(f"not UTF-8 ({error})", place) from error
        except ValueError as problem:
            raise BadLine(str(problem), place) from problem
        if pair is not None:
            words.append(pair[0])
            tags.append(pair[1])
    if (tags and "*" in tags[0]) or any(tag[0] == "(" for tag in tags):
        tags = from_brackets(tags)
    return words, tags


def line_of(file: TaggedFile, raw: Any, index: int) -> int:
    """How many lines behind the first of its row a word stands, by its index in the sentence."""
    if file.format != "conll":
        return 0
    columns, lines = raw
    return [place for place, line in lines if columns.word_and_tag(line.decode("utf-8")) is not None][index]


def _parquet_rows(file: TaggedFile, progress: tqdm | None) -> Iterator[tuple[int, ScalarPair]]:
    names = parquet_columns(file.path)
    words, tags = keys_in(names, file.keys)
    wanted = file.keys or (WORD_KEYS[0], TAG_KEYS[0])
    if missing := [name for name, found in zip(wanted, (words, tags), strict=True) if found is None]:
        raise ValueError(f"{file} has the columns {names}, but lacks {missing}.")
    number = 0
    for batch in parquet_batches(file.path, [str(words), str(tags)], progress):
        for row in zip(batch.column(words), batch.column(tags), strict=True):
            number += 1
            yield number, row


def _parquet_lists(row: ScalarPair) -> tuple[Any, Any]:
    return row[0].as_py(), row[1].as_py()


def _parallel_rows(file: TaggedFile, progress: tqdm | None) -> Iterator[tuple[int, tuple[bytes, bytes]]]:
    """Each line of words with that of its tags.

    Raises:
        ValueError: the files differ in their numbers of lines.
    """
    words = numbered_lines(file.path, "", progress, encoding=file.encoding)
    tags = numbered_lines(file.path.with_name(TAGS_OF), encoding=file.encoding)
    for one, other in zip_longest(words, tags):
        if one is None or other is None:
            raise ValueError(f"{file} and {TAGS_OF} beside it differ in their numbers of lines. Fetch them again.")
        yield one[0], (one[1], other[1])


def _parallel_lists(row: tuple[bytes, bytes]) -> tuple[list[str], list[str]]:
    try:
        words, tags = (line.decode("utf-8").split() for line in row)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error})") from error
    return words, tags


Rows = Callable[[TaggedFile, tqdm | None], Iterator[tuple[int, Any]]]
FORMS: dict[Format, tuple[Rows, Callable[[Any], tuple[Any, Any]]]] = {
    "json": (_json_rows, _json_lists),
    "json array": (_array_rows, _array_lists),
    "conll": (_conll_rows, _conll_lists),
    "parquet": (_parquet_rows, _parquet_lists),
    "parallel": (_parallel_rows, _parallel_lists),
}
"""For each form what gives the rows with their numbers, and what makes words and tags of a row."""


def tagged_rows(
    file: TaggedFile,
    tag_ids: TagIds,
    bad_rows: BadRows,
    progress: tqdm | None = None,
    wanted: np.ndarray | None = None,
) -> Iterator[tuple[int, list[str], list[int]]]:
    """Place among all rows of the file, words, and tag ids of every usable row.

    Args:
        file: the file.
        tag_ids: the ids of tags, which learn names that are new.
        bad_rows: takes the rows that cannot be used.
        progress: counts bytes of the file.
        wanted: (rows,) bool: other rows, and those behind its end, are passed over without being parsed.

    Raises:
        ValueError: a row cannot be used and `bad_rows` does not skip such rows; tags are ids without names; or the file
            is damaged.
    """
    if file.format == "spans":
        reader = SpanReader(bad_rows)
        rows, parse = reader.rows, reader.words_and_tags
    else:
        rows, parse = FORMS[file.format]
    for place, (number, raw) in enumerate(rows(file, progress)):
        if wanted is not None and (place >= len(wanted) or not wanted[place]):
            continue
        try:
            words, tags = parse(raw)
            check_row(words, tags)
            ids = tag_ids.ids(tags)
        except LeftOut:
            continue
        except UnnamedTags as problem:
            raise ValueError(f"{file}:{number}: {problem}") from problem
        except BadLine as problem:
            bad_rows.add(str(file), number + problem.place, str(problem))
        except BadTag as problem:
            whose = f" of {short(words[problem.index])}" if file.format == "conll" else ""
            message = f"tag {short(problem.tag)}{whose} {problem.problem}"
            bad_rows.add(str(file), number + line_of(file, raw, problem.index), message)
        except ValueError as problem:
            bad_rows.add(str(file), number, str(problem))
        else:
            yield place, words, ids


def check_row(words: Any, tags: Any) -> None:
    """Nothing, unless a sentence is none: ValueError says what is wrong."""
    if not isinstance(words, list) or not isinstance(tags, list):
        name, value = ("tags", tags) if isinstance(words, list) else ("tokens", words)
        raise ValueError(f"{name} is {short(value)}, expected a list")
    if len(words) != len(tags):
        raise ValueError(f"{len(words)} tokens but {len(tags)} tags: {short(words)}")
    if not words:
        raise ValueError("an empty sentence (no tokens)")
    if set(map(type, words)) != {str}:
        index, word = next((index, word) for index, word in enumerate(words) if type(word) is not str)
        raise ValueError(f"token {index} is {short(word)}, expected a string")
    refuse_lone_surrogates("".join(words))
