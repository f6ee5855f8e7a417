"""Where a corpus of tagged sentences lies, on disk or on the hub, and what its tags are called.

The hub's copy of FiNER-139 is a zip file of JSON lines whose tags are names; the hub's own conversion is parquet
whose tags are ids, named in the file's metadata; tner's sets are JSON lines whose tags are ids, named in label.json.
Exports and selections of them come in the other forms.
"""

import json
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from lora_core.files import read_json_object
from trainers.data.labels import read_label_names
from trainers.data.rows import parquet_metadata, short
from trainers.data.sources import SPLIT_NAMES, SPLIT_OF_NAME, UNSPLIT, check_one_form, find_source, split_of
from trainers.data.spans.reader import digest, find_spans, holds_spans
from trainers.data.tokens.bio import is_tag

Format = Literal["json", "conll", "parquet", "spans"]
FORMATS: dict[str, Format] = {
    ".jsonl": "json",
    ".json": "json",
    ".conll": "conll",
    ".txt": "conll",
    ".bio": "conll",
    ".iob2": "conll",
    ".parquet": "parquet",
    ".spacy": "spans",
}
"""By the end of the file name; behind those of lines .gz may stand."""
TAG_COLUMNS = ("ner_tags", "tags")
"""Columns that can hold the tags of words, the first that is there."""


@dataclass(frozen=True)
class TaggedFile:
    """One file of sentences, or one file inside a zip."""

    path: Path
    member: str
    """Name inside the zip; empty for a file of its own."""
    split: str
    """train, validation or test; or all, when the source is one file."""
    format: Format

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


def find_tagged_source(source: str | Path, label_file: str | Path = "") -> TaggedSource:
    """The files and tag names of a corpus: a file, a folder, a name in LORA_DATA_DIR, or a hub id.

    Read are JSON lines {"tokens": [...], "ner_tags" or "tags": [...]} (.jsonl or .json), CoNLL (.conll, .txt, .bio,
    .iob2), both also gzipped and inside a zip, and parquet with the columns of JSON lines. In a folder, files named
    after a split (train.jsonl, validation.jsonl.gz) or in a folder of that name (train/0000.parquet) belong to it;
    shards have a number in their name. The files stand in the folder itself, or else in its subfolder `dataset`, or
    else anywhere below.

    Texts with labelled spans, as annotation tools export them, are told by their content (trainers/data/spans).

    Tag ids are named by `label_file` ({"O": 0, ...}, a JSON list, or a name a line); otherwise by the parquet
    files' metadata, label.json, dataset_infos.json, or the head of README.md.

    Raises:
        ValueError: nothing is found, two files claim one split, the files are of several forms, or names are no tags.
    """
    path = find_source(source, _patterns(), "a file or a folder")
    if path.is_dir():
        folder = path
        places: tuple[Iterable[Path], ...] = (path.glob("*"), (path / "dataset").glob("*"), path.rglob("*"))
    else:
        folder = path.parent
        places = ([path],)
    if annotated := find_spans(path):
        files = [TaggedFile(*place, "spans") for place in annotated]
    elif path.is_file() and path.suffix != ".zip":
        files = [TaggedFile(path, "", UNSPLIT, _format_or_error(path))]
    else:
        files = next(filter(None, (_find_files(sorted(place), folder) for place in places)), [])
        if not files:
            raise ValueError(
                f"{path} holds no tagged sentences: expected files of the splits, such as train.json (with "
                f"label.json), validation.jsonl.gz, test-00000.parquet or train.conll, there, in subfolders or in a "
                f"zip."
            )
        _check_forms(files, path)
    if any(file.format == "json" and holds_spans(file.path, file.member) for file in files):
        files = [replace(file, format="spans") for file in files]
    if files[0].format == "spans" and not label_file:
        return TaggedSource(tuple(files), None)
    names = _read_names(Path(label_file)) if label_file else _declared_names(files, folder)
    return TaggedSource(tuple(files), names)


def _find_files(paths: list[Path], folder: Path) -> list[TaggedFile]:
    files = []
    for path in paths:
        if not path.is_file():
            continue
        inside = path.relative_to(folder)
        members = [(name, Path(name)) for name in _zip_members(path)] if path.suffix == ".zip" else [("", inside)]
        for member, name in members:
            split, kind = split_of(name), _format(name)
            if split and kind and not (member and kind in ("parquet", "spans")):
                files.append(TaggedFile(path, member, split, kind))
    return sorted(files, key=_file_order)


def _zip_members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [name for name in archive.namelist() if not name.startswith("__MACOSX")]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a zip file, or is cut short ({error}). Fetch it again.") from error


def _file_order(file: TaggedFile) -> tuple[int, str]:
    return list(SPLIT_NAMES).index(file.split), str(file)


def _format(path: Path) -> Format | None:
    kind = FORMATS.get(Path(path.name.removesuffix(".gz")).suffix)
    return None if kind in ("parquet", "spans") and path.suffix == ".gz" else kind


def _format_or_error(path: Path) -> Format:
    kind = _format(path)
    if kind is None:
        known = ", ".join((*FORMATS, ".zip"))
        raise ValueError(f"{path} is no file of tagged sentences by its name: expected one ending in {known}.")
    return kind


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
    ends = (*FORMATS, *(f"{end}.gz" for end in FORMATS if end != ".parquet"))
    descriptions = ["*label.json", "dataset_infos.json", "README.md"]
    return [*descriptions, "*.zip", *(f"*{split}*{end}" for split, end in product(splits, ends))]


def _declared_names(files: list[TaggedFile], folder: Path) -> tuple[str, ...] | None:
    if files[0].format == "parquet" and (names := _names_in(parquet_metadata(files[0].path))):
        return names
    for place in (files[0].path.parent, folder, folder / "dataset"):
        if (place / "label.json").is_file():
            return _read_tag_names(place / "label.json")
    if (folder / "dataset_infos.json").is_file():
        return _names_in(read_json_object(folder / "dataset_infos.json", "Correct it, or name the labels in a file."))
    return _names_in(_read_card(folder / "README.md")) if (folder / "README.md").is_file() else None


def _names_in(features: Any) -> tuple[str, ...] | None:
    """Class names of the tag column in a description of features, in any of the hub's notations."""
    for value in _tag_features(features):
        for names in _values_of("names", value):
            if isinstance(names, dict):  # a card's {"0": "O", "1": "B-X", ...}
                names = [names[key] for key in sorted(names, key=int)]
            if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
                return tuple(names)
    return None


def _tag_features(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        if value.get("name") in TAG_COLUMNS:
            yield value
        for column in TAG_COLUMNS:
            if column in value:
                yield value[column]
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _tag_features(inner)


def _values_of(key: str, value: Any) -> Iterator[Any]:
    if isinstance(value, dict) and key in value:
        yield value[key]
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _values_of(key, inner)


def _read_card(path: Path) -> Any:
    """The YAML head of a data set's README."""
    import yaml

    text = path.read_text(encoding="utf-8")
    if not text.startswith("---"):
        return None
    try:
        return yaml.safe_load(text.split("---", 2)[1])
    except yaml.YAMLError as error:
        raise ValueError(
            f"the head of {path} is not YAML: {error}. Correct it, or name the labels in a file."
        ) from error


def _read_names(path: Path) -> tuple[str, ...]:
    """Tag names in order of their ids from a file that the user names."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; it should name the tags in order of their ids.")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix != ".json":
        return tuple(text.split())
    if not text.lstrip().startswith("["):
        return _read_tag_names(path)
    try:
        names = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON in UTF-8: {error}.") from error
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f'{path} holds {short(names)}, expected ["O", "B-X", ...] or {{"O": 0, "B-X": 1, ...}}.')
    return tuple(names)


def _read_tag_names(path: Path) -> tuple[str, ...]:
    """The names in a label.json, which must be tags in BIO."""
    names = read_label_names(path)
    foreign = [name for name in names if not is_tag(name)]
    if foreign:
        raise ValueError(
            f"{path} has labels outside the IOB scheme: {short(foreign)}; expected O, B-TYPE and I-TYPE. Tags of "
            f"IOBES and BILOU (S-, E-, U-, L-) must be rewritten first: S- and U- as B-, E- and L- as I-."
        )
    return names
