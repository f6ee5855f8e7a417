"""Where a corpus of tagged sentences lies, on disk or on the hub, and in which form: what its content says.

The hub's copy of FiNER-139 is a zip file of JSON lines whose tags are names; the hub's own conversion is parquet
whose tags are ids, named in the file's metadata; tner's sets are JSON lines whose tags are ids, named in label.json.
Most others are files of columns. A file's name tells its split; its first lines tell everything else.
"""

import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from trainers.data.reading import Reading
from trainers.data.rows import numbered_lines, short
from trainers.data.sources import (
    HUB_FILES,
    SPLIT_NAMES,
    SPLIT_OF_NAME,
    UNSPLIT,
    are_shards,
    by_split,
    check_one_form,
    find_source,
    split_in,
    split_of,
    zip_members,
)
from trainers.data.spans.files import find_spans
from trainers.data.spans.reader import is_json
from trainers.data.tokens.columns import Columns, find_columns, is_unlabelled, unused
from trainers.data.tokens.head import ENDINGS, TAG_KEYS, WORD_KEYS, WORDS_OF, Head, TaggedFile, head_of, is_known
from trainers.data.tokens.names import declared_names, read_names
from trainers.data.tokens.schemes import UNLABELLED, Notation, notation_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaggedSource:
    """The files of a corpus, and the names of its tags."""

    files: tuple[TaggedFile, ...]
    """Training files first."""
    names: tuple[str, ...] | None
    """Name of each tag id, where the corpus says so. None: the tags must be names themselves."""
    notation: Notation | None = None
    """How the tags are written that stand in the files as names, where their first lines tell."""


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
    if found := find_spans(path, reading.encoding):
        spans = [TaggedFile(*place, "spans", encoding=reading.encoding) for place in found]
        _check_forms([*spans, *_tagged_beside(spans, path, reading)], path)
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
        head = head_of(TaggedFile(path, "", UNSPLIT, "conll", encoding=reading.encoding), path.name, reading)
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


def _tagged_beside(spans: Sequence[TaggedFile], path: Path, reading: Reading) -> list[TaggedFile]:
    """Files of tagged words in a folder of texts with spans, of splits that these lack."""
    if not path.is_dir() or any(file.path.parent != path for file in spans):
        return []
    known = {UNSPLIT, *(file.split for file in spans)}
    beside = [
        file for file in sorted(path.glob("*")) if not is_json(file.name) and (split_of(file) or UNSPLIT) not in known
    ]
    with contextlib.suppress(ValueError):  # named as a split, and no tagged words
        return [head.file for head in _find_files(beside, path, reading) if head.file.split not in known]
    return []


def _refuse_xml(path: Path) -> None:
    """Nothing, unless a file, or the first such one in a folder, is XML.

    Raises:
        ValueError: it is.
    """
    file = path if path.is_file() else next(iter(sorted(path.rglob("*.xml"))), None)
    if file is None or is_known(file):
        return
    first = next((line for _, line in numbered_lines(file) if line.strip()), b"")
    if first.lstrip().startswith(b"<"):
        raise ValueError(
            f"{file} is XML, which is not read. Of BioC take its JSON or PubTator; export other annotation as brat or "
            'as JSON lines {"text": "...", "entities": [[start, end, "TYPE"], ...]}.'
        )


def _find_files(paths: list[Path], folder: Path, reading: Reading) -> list[Head]:
    """The files of the splits, training files first; one file that is none of a split, if it is alone."""
    named: list[tuple[Path, Head]] = []
    refused: list[Head] = []
    for path in paths:
        if not path.is_file() or path.name.startswith("."):
            continue
        inside = path.relative_to(folder)
        members = [(name, Path(name)) for name in zip_members(path)] if path.suffix == ".zip" else [("", inside)]
        for member, name in members:
            known, split = is_known(name), split_of(name)
            if (member and name.suffix == ".parquet") or name.name in DESCRIPTIONS:
                continue
            if known or name.name == WORDS_OF or (not name.suffix and not split) or split_in(name):
                head = head_of(
                    TaggedFile(path, member, UNSPLIT, "conll", encoding=reading.encoding), name.name, reading
                )
                if head and (head.certain or (split and known)):
                    named.append((name, head))
                elif head and known:
                    refused.append(head)
    found, others = by_split(named)
    if not found and others and are_shards(_name(head.file) for head in others):
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


DESCRIPTIONS = ("label.json", "README.md", *HUB_FILES)
"""Files that say something about the data."""


def _name(file: TaggedFile) -> str:
    return Path(file.member or file.path).name


def _settled(heads: Sequence[Head], reading: Reading) -> list[TaggedFile]:
    """The files with their columns, without those whose tags are withheld."""
    groups: dict[tuple[str, int], list[Head]] = defaultdict(list)
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
    if heads[0].tag_key and heads[0].other_tags:
        logger.info(
            "%s: tags are under %r; not used: %s (--columns %s,KEY says otherwise)",
            heads[0].file,
            heads[0].tag_key,
            ", ".join(heads[0].other_tags),
            (heads[0].file.keys or WORD_KEYS)[0],
        )
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
        if '"[' in shown or "| [" in shown:
            raise ValueError(
                f"{file} has lists in its cells, a sentence a row: {short(shown)}. Write them as JSON lines, "
                '{"tokens": ["IL-2", "binds"], "ner_tags": ["B-protein", "O"]}.'
            )
        raise ValueError(
            f"{file}: no column holds tags of a known scheme (B-PER, I-PER, O; IOBES, BILOU; PER). It begins with "
            f"{short(shown)}. Say which columns are the word and the tag: --columns 1,2. Or is it for "
            "another --task, such as text-classification?"
        )
    if withheld:
        logger.warning("left out, because the words have no tags: %s", ", ".join(str(file) for file, _ in withheld))
    return [file for file, _ in files]


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
