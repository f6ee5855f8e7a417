"""Where a corpus of tagged sentences lies, on disk or on the hub, and in which form: what its content says.

The hub's copy of FiNER-139 is a zip file of JSON lines whose tags are names; the hub's own conversion is parquet
whose tags are ids, named in the file's metadata; tner's sets are JSON lines whose tags are ids, named in label.json.
Most others are files of columns. A file's name tells its split; its first lines tell everything else.
"""

import json
import logging
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, product
from pathlib import Path
from typing import Any, Literal

from trainers.data.reading import Reading
from trainers.data.rows import json_array, numbered_lines, parquet_batches, parquet_columns, short
from trainers.data.sources import (
    SPLIT_NAMES,
    SPLIT_OF_NAME,
    UNSPLIT,
    by_split,
    check_one_form,
    find_source,
    split_in,
    split_of,
)
from trainers.data.spans.reader import digest, find_spans, holds_spans, may_hold_spans
from trainers.data.tokens.columns import Columns, Sample, find_columns, is_unlabelled, read_sample, unused
from trainers.data.tokens.names import declared_names, read_names
from trainers.data.tokens.schemes import UNLABELLED, Notation, notation_of

logger = logging.getLogger(__name__)

Format = Literal["json", "json array", "conll", "parquet", "spans"]
ENDINGS = [
    ".jsonl",
    ".json",
    ".ndjson",
    ".conll",
    ".conllu",
    ".conll03",
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
]
"""What names of files of tagged sentences end in; behind all but .parquet may stand .gz. Others, and names without an
ending, are read if their content is tagged sentences for sure."""
WORD_KEYS = ("tokens", "words")
"""Keys that can hold the words of a sentence, the first that is there."""
TAG_KEYS = ("ner_tags", "tags", "labels")
"""Keys that can hold their tags."""
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
        return digest(self)


@dataclass(frozen=True)
class TaggedSource:
    """The files of a corpus, and the names of its tags."""

    files: tuple[TaggedFile, ...]
    """Training files first."""
    names: tuple[str, ...] | None
    """Name of each tag id, where the corpus says so. None: the tags must be names themselves."""
    notation: Notation | None = None
    """How the tags are written that stand in the files as names, where their first lines tell."""


@dataclass(frozen=True)
class _Head:
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


def find_tagged_source(source: str | Path, label_file: str | Path = "", reading: Reading | None = None) -> TaggedSource:
    """The files and tag names of a corpus: a file, a folder, a name in LORA_DATA_DIR, or a hub id.

    Read are JSON lines {"tokens": [...], "ner_tags" or "tags": [...]}, arrays of such objects, files with a word a line
    and its tag in a column, all these also gzipped and inside a zip, and parquet with the columns of JSON lines. In a
    folder, files named after a split (train.jsonl, eng.testa, NER-train.txt) or in a folder of that name
    (train/0000.parquet) belong to it; shards have a number in their name. The files stand in the folder itself, or
    else in its subfolder `dataset`, or else anywhere below. A split whose tags are withheld is left out.

    Texts with labelled spans, as annotation tools export them, are told by their content (trainers/data/spans).

    Tag ids are named by `label_file` ({"O": 0, ...}, a JSON list, or a name a line); otherwise by the parquet
    files' metadata, label.json, dataset_infos.json, or the head of README.md.

    Raises:
        ValueError: nothing is found, two files claim one split, the files are of several forms, the columns cannot be
            told, or names are no tags.
    """
    reading = reading or Reading()
    path = find_source(source, _patterns(), "a file or a folder")
    if spans := _span_files(path, reading.encoding):
        _check_forms(spans, path)
        return TaggedSource(tuple(spans), read_names(Path(label_file)) if label_file else None)
    if path.is_dir():
        folder = path
        places: tuple[Iterable[Path], ...] = (path.glob("*"), (path / "dataset").glob("*"), path.rglob("*"))
        heads = next(filter(None, (_find_files(sorted(place), folder, reading) for place in places)), [])
    elif path.suffix == ".zip":
        folder = path.parent
        heads = _find_files([path], folder, reading)
    else:
        folder = path.parent
        _refuse_xml(path)
        head = _head(TaggedFile(path, "", UNSPLIT, "conll", encoding=reading.encoding), path.name, reading)
        heads = [head] if head else []
    if not heads:
        _refuse_xml(path)
        raise ValueError(
            f"{path} holds no tagged sentences: expected files of the splits, such as train.json (with "
            f"label.json), validation.jsonl.gz, test-00000.parquet or train.conll, there, in subfolders or in a "
            f"zip; or one file of sentences."
        )
    _check_forms([head.file for head in heads], path)
    files = _settled(heads, reading)
    keys = reading.columns.split(",")[1:] or TAG_KEYS
    names = read_names(Path(label_file)) if label_file else declared_names(files[0].path, folder, keys)
    tags = Counter(tag for head in heads for tag in head.tags if isinstance(tag, str) and tag not in UNLABELLED)
    notations: Counter[Notation] = Counter(file.columns.notation for file in files if file.columns.notation)
    notation: Notation | None = notations.most_common(1)[0][0] if notations else notation_of(tags)
    return TaggedSource(tuple(files), names, notation)


def _refuse_xml(path: Path) -> None:
    """Nothing, unless a file, or the first such one in a folder, is XML.

    Raises:
        ValueError: it is.
    """
    file = path if path.is_file() else next(iter(sorted(path.rglob("*.xml"))), None)
    if file is None:
        return
    first = next((line for _, line in numbered_lines(file) if line.strip()), b"")
    if first.lstrip().startswith((b"<?xml", b"<!DOCTYPE")) or (file.suffix.lower() == ".xml" and b"<" in first):
        raise ValueError(
            f"{file} is XML, which is not read. Of BioC take its JSON or PubTator; export other annotation as brat or "
            'as JSON lines {"text": "...", "entities": [[start, end, "TYPE"], ...]}.'
        )


def _span_files(path: Path, encoding: str) -> list[TaggedFile]:
    """The files of texts with labelled spans, training files first; none: there are none."""
    if found := find_spans(path, encoding):
        return [TaggedFile(*place, "spans", encoding=encoding) for place in found]
    if path.is_dir():
        folders: tuple[Iterable[Path], ...] = (path.glob("*"), (path / "dataset").glob("*"), path.rglob("*"))
        listed = [[(file, "", file.relative_to(path)) for file in sorted(place)] for place in folders]
    elif path.suffix == ".zip":
        listed = [[(path, name, Path(name)) for name in _zip_members(path)]]
    else:
        return [TaggedFile(path, "", UNSPLIT, "spans", encoding=encoding)] if holds_spans(path, "", encoding) else []
    for place in listed:
        named = [
            (name, (file, member))
            for file, member, name in place
            if may_hold_spans(name) and (split_of(name) or split_in(name)) and file.is_file()
            if holds_spans(file, member, encoding)
        ]
        found, _ = by_split(named)
        if files := [
            TaggedFile(*own, split, "spans", encoding=encoding) for split, group in found.items() for own in group
        ]:
            return sorted(files, key=_file_order)
    return []


def _find_files(paths: list[Path], folder: Path, reading: Reading) -> list[_Head]:
    """The files of the splits, training files first; one file that is none of a split, if it is alone."""
    named: list[tuple[Path, _Head]] = []
    refused: list[_Head] = []
    for path in paths:
        if not path.is_file() or path.name.startswith("."):
            continue
        inside = path.relative_to(folder)
        members = [(name, Path(name)) for name in _zip_members(path)] if path.suffix == ".zip" else [("", inside)]
        for member, name in members:
            known, split = _is_known(name), split_of(name)
            if (member and name.suffix == ".parquet") or name.name in DESCRIPTIONS:
                continue
            if known or (not name.suffix and not split) or split_in(name):
                head = _head(TaggedFile(path, member, UNSPLIT, "conll", encoding=reading.encoding), name.name, reading)
                if head and (head.certain or (split and known)):
                    named.append((name, head))
                elif head:
                    refused.append(head)
    found, others = by_split(named)
    if not found and len(others) == 1:
        return others
    if not found and others:
        listed = ", ".join(_name(head.file) for head in others)
        raise ValueError(
            f"{folder} holds {listed}, but no name tells the split of one. Call them train, valid and test, or give "
            "one of them as --data."
        )
    if not named and refused:
        _settled(refused, reading)  # says what is wrong with the first
    if others:
        logger.warning(
            "%s: not read, because their names tell no split, or one that has its file: %s",
            folder,
            ", ".join(_name(head.file) for head in others),
        )
    heads = [replace(head, file=replace(head.file, split=split)) for split, own in found.items() for head in own]
    return sorted(heads, key=lambda head: _file_order(head.file))


DESCRIPTIONS = ("label.json", "dataset_infos.json", "README.md")
"""Files that say something about the data."""


def _name(file: TaggedFile) -> str:
    return Path(file.member or file.path).name


def _is_known(name: Path) -> bool:
    end = Path(name.name.removesuffix(".gz")).suffix.lower()
    return end in ENDINGS and not (end == ".parquet" and name.suffix == ".gz")


def _head(file: TaggedFile, name: str, reading: Reading) -> _Head | None:
    """What the beginning of a file says. None: it is no data by its name and content."""
    if name.lower().endswith(".parquet"):
        return _parquet_head(replace(file, format="parquet", keys=_asked_keys(reading)))
    lines, size = [], 0
    try:
        for _, line in islice(numbered_lines(file.path, file.member, encoding=file.encoding), HEAD_LINES):
            lines.append(line)
            size += len(line)
            if size > HEAD_BYTES:
                break
    except ValueError:  # it is damaged, which is said when it is read
        return _Head(replace(file, format=_format_of_name(name)), False) if _is_known(Path(name)) else None
    if any(b"\0" in line for line in lines):
        return None if not _is_known(Path(name)) else _Head(replace(file, format=_format_of_name(name)), False)
    text = b"\n".join(lines)
    if text.lstrip()[:1] in (b"{", b"[") and not _is_row(text.lstrip().split(b"\n")[0]):
        return _json_head(replace(file, keys=_asked_keys(reading)), lines, text)
    if _format_of_name(name) == "json":
        return _Head(replace(file, format="json"), False)
    sample = read_sample([line.decode("utf-8", "replace") for line in lines], reading.separator)
    try:
        columns = find_columns([sample], reading.columns, str(file)) if sample.sentences else None
        certain = columns is not None and (columns.notation not in (None, "X") or columns.header)
    except ValueError:
        certain = True  # of several columns of tags, or of those that were asked for, find_columns speaks again
    return _Head(replace(file, format="conll"), certain, sample)


def _format_of_name(name: str) -> Format:
    return "json" if ".json" in name.lower() else "conll"


def _is_row(line: bytes) -> bool:
    """Whether a line that begins with a bracket is a word and its tag."""
    cells = line.decode("utf-8", "replace").split()
    return len(cells) > 1 and cells[0] in ("[", "{") and notation_of(Counter(cells[-1:])) != "X"


def _asked_keys(reading: Reading) -> tuple[str, ...]:
    names = tuple(name.strip() for name in reading.columns.split(","))
    return names if len(names) == 2 and not any(name.lstrip("-").isdecimal() for name in names) else ()


def _json_head(file: TaggedFile, lines: Sequence[bytes], text: bytes) -> _Head:
    rows = []
    if _ARRAY.match(text) and not _parsed(lines[0], dict, "tokens"):
        return _array_head(replace(file, format="json array"))
    for line in lines[:100]:
        row = _parsed(line, dict)
        if row:
            rows.append(row)
    return _rows_head(replace(file, format="json"), rows)


def _array_head(file: TaggedFile) -> _Head:
    try:
        rows = json_array(file.path, file.member, encoding=file.encoding)[:100]
    except ValueError:
        return _Head(file, False)  # it is said when the file is read
    return _rows_head(file, [row for row in rows if isinstance(row, dict)])


def _rows_head(file: TaggedFile, rows: Sequence[dict]) -> _Head:
    words, tags = keys_in(rows[0], file.keys) if rows else (None, None)
    found = [row.get(tags) if tags else None for row in rows]
    flat = [tag for own in found for tag in (own if isinstance(own, list) else [])]
    return _Head(file, words is not None, None, tuple(tag for tag in flat if isinstance(tag, (str, int))), len(rows))


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


def _parquet_head(file: TaggedFile) -> _Head:
    try:
        words, tags = keys_in(parquet_columns(file.path), file.keys)
        if words is None or tags is None:
            return _Head(file, False)
        batch = next(iter(parquet_batches(file.path, [tags])), None)
        found = batch.column(0).slice(0, 100).to_pylist() if batch is not None else []
    except (ValueError, ModuleNotFoundError):
        return _Head(file, True)  # it is said when the file is read
    flat = [tag for own in found for tag in (own if isinstance(own, list) else [])]
    return _Head(file, True, None, tuple(tag for tag in flat if isinstance(tag, (str, int))), len(found))


def _settled(heads: Sequence[_Head], reading: Reading) -> list[TaggedFile]:
    """The files with their columns, without those whose tags are withheld."""
    groups: dict[tuple[str, int], list[_Head]] = defaultdict(list)
    for head in heads:
        if head.sample is not None:
            groups[head.sample.separator, head.sample.count].append(head)
    layouts: dict[int, Columns | None] = {}
    for group in groups.values():
        where = ", ".join(str(head.file) for head in group)
        samples = [head.sample for head in group if head.sample is not None]
        columns = find_columns(samples, reading.columns, where) if any(own.sentences for own in samples) else Columns()
        if columns and (left := unused(samples[0], columns) if samples[0].sentences else ""):
            logger.info(
                "%s: words are in column %d, tags in column %d; not used: %s (--columns says otherwise)",
                where,
                columns.word + 1,
                columns.tag + 1,
                left,
            )
        for head, sample in zip(group, samples, strict=True):
            withheld = columns is None or (len(heads) > 1 and is_unlabelled(sample, columns))
            named = columns is not None and columns.header and not samples[0].header  # by the user's words alone
            own = None if withheld or not columns else replace(columns, header=bool(sample.header) or named)
            layouts[id(head)] = own
    files, withheld = [], []
    for head in heads:
        if head.sample is not None:
            columns = layouts[id(head)]
            has_tags = columns is not None
            file = replace(head.file, columns=columns or Columns())
        else:
            file = head.file
            has_tags = not head.rows or any(str(tag) not in UNLABELLED for tag in head.tags)
        (files if has_tags else withheld).append((file, head))
    if withheld and (not files or any(file.split == "train" for file, _ in withheld)):
        file, head = withheld[0]
        if head.sample is None:
            return [file for file, _ in files + withheld]  # the reader names the row
        shown = " | ".join(head.sample.sentences[0][0]) if head.sample.sentences else ""
        raise ValueError(
            f"{file}: no column holds tags of a known scheme (B-PER, I-PER, O; IOBES, BILOU; PER). It begins with "
            f"{short(shown)}. Say which columns are the word and the tag: --columns 1,2."
        )
    if withheld:
        logger.warning("left out, because the words have no tags: %s", ", ".join(str(file) for file, _ in withheld))
    return [file for file, _ in files]


def _zip_members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [name for name in archive.namelist() if not name.startswith("__MACOSX")]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a zip file, or is cut short ({error}). Fetch it again.") from error


def _file_order(file: TaggedFile) -> tuple[int, str]:
    return [*SPLIT_NAMES, UNSPLIT].index(file.split), str(file)


def _check_forms(files: list[TaggedFile], where: Path) -> None:
    """Several files of a split must be shards, and all files of one form; else sentences would count twice."""
    for split in dict.fromkeys(file.split for file in files):
        own = [file for file in files if file.split == split]
        if len({file.path if file.member else None for file in own}) > 1:
            listed = ", ".join(map(str, own))
            raise ValueError(f"{where} holds the {split} split in several places: {listed}. Keep one of them.")
        check_one_form(split, [Path(file.member or file.path) for file in own], where)
    if len({file.format for file in files}) > 1:
        listed = ", ".join(Path(file.member or file.path).name for file in files)
        raise ValueError(f"{where} mixes files of several forms: {listed}. Keep one form.")


def _patterns() -> list[str]:
    """Names of the files that a hub data set can hold, in any folder."""
    splits = (*SPLIT_OF_NAME, *map(str.capitalize, SPLIT_OF_NAME))
    ends = (*ENDINGS, *(f"{end}.gz" for end in ENDINGS if end != ".parquet"))
    descriptions = ["*label.json", "dataset_infos.json", "README.md"]
    return [*descriptions, "*.zip", *(f"*{split}*{end}" for split, end in product(splits, ends))]
