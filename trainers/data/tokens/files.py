"""Where a large tagged corpus lies and what its tags are called: FiNER-139 as the hub has it, and its like.

The hub's copy of FiNER-139 is a zip file of JSON lines whose tags are names; the hub's own conversion is parquet
whose tags are ids, named in the file's metadata. Exports and selections of it come in the other forms.
"""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainers.data.rows import TAG_COLUMNS, BadRows, OnBadRow, short
from trainers.data.sources import SPLIT_NAMES, UNSPLIT, find_source, split_of
from trainers.data.tokens.reader import (
    Format,
    TaggedFile,
    TaggedSource,
    TokenDataset,
    TokenFile,
    conll_files,
    read_label_file,
    tner_files,
)

# DOC """Tagged sentences from disk or the hub: finds the folder, recognises its layout, reads the splits."""


JSON_SUFFIXES = (".jsonl", ".json")
DOWNLOADED = ("*.jsonl", "*.jsonl.gz", "*.zip", "*.parquet", "*.json", "README.md")


def find_tagged_source(source: str | Path, label_file: str | Path = "") -> TaggedSource:
    """The files and tag names of a corpus: a file, a folder, a name in LORA_DATA_DIR, or a hub id.

    Read are JSON lines {"tokens": [...], "ner_tags" or "tags": [...]} (.jsonl or .json, also gzipped, also inside a
    zip), parquet with the same columns, and CoNLL. In a folder, files named after a split (train.jsonl,
    validation.jsonl.gz) or in a folder of that name (train/0000.parquet) belong to it; shards end in a number.

    Tag ids are named by `label_file` ({"O": 0, ...}, a JSON list, or a name a line); otherwise by the parquet
    files' metadata, label.json, dataset_infos.json, or the head of README.md.

    Raises ValueError when nothing is found, or two files claim one split.
    """
    path = Path(source)
    if path.is_file() and path.suffix != ".zip":
        files = [TaggedFile(path, "", UNSPLIT, _format_or_error(path))]
        folder = path.parent
    else:
        folder = path.parent if path.is_file() else find_source(source, DOWNLOADED, "a file or a folder")
        files = _find_files([path] if path.is_file() else sorted(folder.rglob("*")), folder)
        if not files:
            raise ValueError(
                f"{path if path.is_file() else folder} holds no tagged sentences: expected files of the splits, such "
                f"as train.jsonl, validation.jsonl.gz, test-00000.parquet or train.conll, there, in subfolders or in "
                f"a zip."
            )
        _check_one_form(files)
    names = _read_names(Path(label_file)) if label_file else _declared_names(files, folder)
    return TaggedSource(tuple(files), names)


def _find_files(paths: list[Path], folder: Path) -> list[TaggedFile]:
    found = []
    for path in paths:
        if path.suffix == ".zip" and path.is_file():
            try:
                with zipfile.ZipFile(path) as archive:
                    names = [name for name in archive.namelist() if not name.startswith("__MACOSX")]
            except zipfile.BadZipFile as error:
                raise ValueError(f"{path} is not a zip file, or is cut short ({error}). Fetch it again.") from error
            found += [(path, name, split_of(Path(name)), _format(Path(name))) for name in names]
        elif path.is_file():
            found.append((path, "", split_of(path.relative_to(folder)), _format(path)))
    files = [TaggedFile(path, member, split, kind) for path, member, split, kind in found
             if split and kind and not (member and kind == "parquet")]  # fmt: skip
    return sorted(files, key=_file_order)


def _file_order(file: TaggedFile) -> tuple[int, str]:
    return list(SPLIT_NAMES).index(file.split), str(file)


def _format(path: Path) -> Format | None:
    name = path.name.removesuffix(".gz")
    if name.endswith(JSON_SUFFIXES):
        return "json"
    if name.endswith(CONLL_SUFFIXES):
        return "conll"
    return "parquet" if path.suffix == ".parquet" else None


def _format_or_error(path: Path) -> Format:
    kind = _format(path)
    if kind is None:
        known = ", ".join((*JSON_SUFFIXES, ".parquet", ".zip", *CONLL_SUFFIXES))
        raise ValueError(f"{path} is no file of tagged sentences by its name: expected one ending in {known}.")
    return kind


def _check_one_form(files: list[TaggedFile]) -> None:
    """Several files of a split must be shards; anything else would count sentences twice."""
    for split in dict.fromkeys(file.split for file in files):
        own = [file for file in files if file.split == split]
        stems = [Path(file.member or file.path).name.split(".")[0] for file in own]
        forms = {(file.format, file.path if file.member else None) for file in own}
        if len(forms) > 1 or (len(own) > 1 and not all(any(map(str.isdigit, stem)) for stem in stems)):
            raise ValueError(f"several files claim the {split} split: {', '.join(map(str, own))}. Keep one of them.")


def _declared_names(files: list[TaggedFile], folder: Path) -> tuple[str, ...] | None:
    parquet = next((file.path for file in files if file.format == "parquet"), None)
    if parquet is not None:
        from trainers.data.rows import metadata

        if names := _names_in(metadata(parquet)):
            return names
    for place in (folder, folder / "dataset"):
        if (place / "label.json").is_file():
            return read_label_file(place / "label.json")
    if (folder / "dataset_infos.json").is_file():
        return _names_in(_read_json(folder / "dataset_infos.json"))
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


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON in UTF-8: {error}.") from error


def _read_names(path: Path) -> tuple[str, ...]:
    """Tag names in order of their ids from a file that the user names."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; it should name the tags in order of their ids.")
    if path.suffix != ".json":
        return tuple(path.read_text(encoding="utf-8").split())
    names = _read_json(path)
    if isinstance(names, dict):
        return read_label_file(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'{path} holds {short(names)}, expected ["O", "B-X", ...] or {{"O": 0, "B-X": 1, ...}}.')
    return tuple(names)


TNER_SUFFIX = ".json"
CONLL_SUFFIXES = (".conll", ".txt", ".bio", ".iob2")


def load_token_datasets(source: str | Path, *, on_bad_row: OnBadRow = "error") -> dict[str, TokenDataset]:
    """Read the splits "train", "validation" and "test" of a data set into memory, those that exist.

    `source` and the layouts are those of `token_files`. A bad row is reported once, whatever its file.
    """
    bad_rows = BadRows(on_bad_row)
    files = token_files(source, on_bad_row=on_bad_row)
    datasets = {split: file.read(bad_rows) for split, file in files.items()}
    bad_rows.report()
    return datasets


def token_files(source: str | Path, *, on_bad_row: OnBadRow = "error") -> dict[str, TokenFile]:
    """The files of the splits "train", "validation" and "test" of a data set, those that exist, not yet read.

    `source` is a folder; a name under the folder in the environment variable LORA_DATA_DIR; or a hub data set
    such as "tner/bionlp2004", for which LORA_DATA_DIR is searched first (also by its last part,
    "bionlp2004"). Two layouts are read, at the top of the folder or in its subfolder `dataset`:

    - tner: train.json, valid.json (or validation.json, dev.json), test.json of JSON lines {"tokens": [...],
      "tags": [...]}, with label.json {"O": 0, "B-X": 1, ...}. Tags are taken as they are.
    - CoNLL: the same names ending in .conll, .txt, .bio or .iob2; one word a line, the word in the first
      column and its tag in the last, blank lines between sentences. IOB1 becomes IOB2: an I- that continues
      nothing becomes B-. The labels are O, then B-X, I-X for every type X of any split, sorted by type.

    Raises ValueError for a folder of neither layout. A row that cannot be used raises ValueError, naming file, line
    and value, when it is read; `on_bad_row="skip"` leaves such rows out and reports them through logging.
    """
    if on_bad_row not in ("error", "skip"):
        raise ValueError(f"on_bad_row={on_bad_row!r}: expected 'error' or 'skip'.")
    files = _split_files(find_source(source, _split_patterns(), "a folder"))
    is_tner = next(iter(files.values())).suffix == TNER_SUFFIX
    return tner_files(files, on_bad_row) if is_tner else conll_files(files, on_bad_row)


def _split_files(folder: Path) -> dict[str, Path]:
    """The file of each split. Two files for one split, or two layouts side by side, are an error."""
    for root in (folder, folder / "dataset"):
        files: dict[str, Path] = {}
        for split, names in SPLIT_NAMES.items():
            paths = [root / f"{name}{suffix}" for name in names for suffix in (TNER_SUFFIX, *CONLL_SUFFIXES)]
            paths = [path for path in paths if path.is_file()]
            if len(paths) > 1:
                found = ", ".join(path.name for path in paths)
                raise ValueError(f"{root} holds several files for the {split} split: {found}. Keep one of them.")
            if paths:
                files[split] = paths[0]
        if len({path.suffix == TNER_SUFFIX for path in files.values()}) > 1:
            found = ", ".join(path.name for path in files.values())
            raise ValueError(f"{root} mixes JSON lines and CoNLL files: {found}. Keep one layout.")
        if files:
            return files
    raise ValueError(
        f"{folder} holds no data set: expected train.json, valid.json, test.json and label.json (tner), or "
        f"train, valid and test files ending in {', '.join(CONLL_SUFFIXES)} (CoNLL), there or in "
        f"its subfolder dataset."
    )


def _split_patterns() -> list[str]:
    """Names of the files that `load_token_datasets` reads."""
    stems = [name for names in SPLIT_NAMES.values() for name in names]
    patterns = [
        "label.json",
        *(f"{stem}{suffix}" for stem in stems for suffix in (TNER_SUFFIX, *CONLL_SUFFIXES)),
    ]
    return [*patterns, *(f"dataset/{pattern}" for pattern in patterns)]
