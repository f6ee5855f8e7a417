"""brat's standoff: a text in NAME.txt, and in NAME.ann a line for each span, `T1<TAB>TYPE 0 3<TAB>its text`.

A line ends in the text as it is stored, so that a carriage return counts as a character; a span of several parts is
`TYPE 0 3;5 8`. Lines of other kinds (relations, events, attributes, notes) have nothing to do with words.
"""

import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from trainers.data.rows import numbered_lines
from trainers.data.sources import SPLIT_OF_NAME, UNSPLIT, split_of
from trainers.data.spans.align import Document, Note, Place, Span

SUFFIX = ".ann"
OTHER_LINES = "lines that are no span (relations, events, attributes, notes) were passed over"

_SPAN = re.compile(r"T\S*\t(?P<label>.+?) (?P<parts>-?\d+ -?\d+(?:;-?\d+ -?\d+)*)(?:\t(?P<text>.*))?")


def pair_names(path: Path) -> list[str]:
    """The .ann files of a folder or a zip, at any depth, as paths inside it; of a single .ann file its own name."""
    if path.is_dir():
        inside = (found.relative_to(path) for found in path.rglob(f"*{SUFFIX}") if found.is_file())
        names = [name.as_posix() for name in inside if not any(part.startswith(".") for part in name.parts)]
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(SUFFIX) and not name.startswith("__MACOSX")]
    else:
        names = [path.name]
    return sorted(names)


def splits_of_pairs(names: Iterable[str]) -> dict[str, str]:
    """The split of each pair: that of a folder on its way, else, where all are called so, its own name's (train.ann).

    Where neither tells, the split of all is `UNSPLIT`. Pairs beside the folders of splits belong to none.
    """
    names = list(names)
    folders = {name: split for name in names if (split := _split_of_folder(name))}
    if folders:
        return folders
    own = {name: split for name in names if (split := split_of(Path(PurePosixPath(name).name)))}
    return own if len(own) == len(names) else dict.fromkeys(names, UNSPLIT)


def _split_of_folder(name: str) -> str | None:
    folders = (part.lower() for part in PurePosixPath(name).parts[:-1])
    return next((SPLIT_OF_NAME[part] for part in folders if part in SPLIT_OF_NAME), None)


def pair_files(path: Path, names: Iterable[str]) -> list[Path]:
    """All that the pairs of these names are stored in, for digests: the files themselves, or the zip."""
    if path.suffix == ".zip":
        return [path]
    stored = [_root(path) / name for name in names]
    return [file for ann in stored for file in (ann, ann.with_suffix(".txt")) if file.is_file()]


def read_pair(path: Path, name: str, note: Note, encoding: str = "") -> Document:
    """The document of one pair.

    Args:
        path: the folder, the zip or the .ann file.
        name: the .ann file's path inside it, as `pair_names` gives it.
        note: told about lines that are passed over.
        encoding: of both; empty: what their content says.

    Raises:
        ValueError: the text is missing, or a file is damaged.
    """
    text_name = str(PurePosixPath(name).with_suffix(".txt"))
    try:
        text = "".join(line for _, line in _lines(path, text_name, encoding, keep_ends=True))
    except (FileNotFoundError, KeyError) as error:
        raise ValueError(
            f"{name} has no {PurePosixPath(text_name).name} beside it, the text that it is about"
        ) from error
    spans = []
    for number, line in _lines(path, name, encoding, keep_ends=False):
        if not line.startswith("T"):
            if line.strip():
                note(OTHER_LINES, f"{name} line {number}")
            continue
        match = _SPAN.fullmatch(line)
        if not match:
            raise ValueError(f"{name} line {number}: expected T1<TAB>TYPE START END<TAB>TEXT, got {line!r}")
        parts = sorted(map(_part, match["parts"].split(";")))
        spans.append(Span(tuple(parts), match["label"], match["text"] or "", f"{name} line {number}: "))
    return Document(text, spans)


def _part(text: str) -> Place:
    start, end = text.split(" ")
    return int(start), int(end)


def _lines(path: Path, name: str, encoding: str, *, keep_ends: bool) -> Iterator[tuple[int, str]]:
    place = (path, name) if path.suffix == ".zip" else (_root(path) / name, "")
    for number, line in numbered_lines(*place, encoding=encoding, keep_ends=keep_ends):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} line {number}: not UTF-8 ({error})") from error


def _root(path: Path) -> Path:
    return path if path.is_dir() else path.parent
