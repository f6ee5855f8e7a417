"""Which files hold texts with labelled spans, by their content, and which split each belongs to."""

import logging
import zipfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from trainers.data.rows import json_row
from trainers.data.sources import SPLIT_NAMES, UNSPLIT, by_split, split_in, split_of, zip_members
from trainers.data.spans import brat, docbin
from trainers.data.spans.exports import SPAN_KEYS, is_span_row
from trainers.data.spans.reader import LABEL_LISTS, SNIFFED_ROWS, block_form, is_json, json_rows

logger = logging.getLogger(__name__)

BLOCK_ENDS = (".tsv", ".txt", ".pubtator")
"""What names of files of blocks end in, in folders."""

FoundSpans = list[tuple[Path, str, str]]
"""Path, name inside a zip, and split of each file."""


def find_spans(path: Path, encoding: str = "") -> FoundSpans:
    """The files of texts with labelled spans, training files first; none: there are none.

    They are folders and zips of brat's pairs, split by folders or not; a file; files whose names tell their splits, in
    a folder, in its folder `dataset`, or anywhere below; or a tool's single export, alone in a folder or a zip (beside
    its list of labels) under a name that is no split's.

    Args:
        path: a file, a zip or a folder.
        encoding: of text files; empty: what their content says.

    Raises:
        ValueError: one is of a form that is to be exported otherwise.
    """
    is_zip = path.suffix == ".zip" and zipfile.is_zipfile(path)
    if (path.is_dir() or is_zip or path.suffix == brat.SUFFIX) and (pairs := brat.pair_names(path)):
        splits = brat.splits_of_pairs(pairs)
        if len(splits) < len(pairs):
            logger.warning("%s: %d pairs lie in no folder of a split: left out", path, len(pairs) - len(splits))
        return [(path, "", split) for split in (*SPLIT_NAMES, UNSPLIT) if split in splits.values()]
    if path.is_dir():
        folders: tuple[Iterable[Path], ...] = (path.glob("*"), (path / "dataset").glob("*"), path.rglob("*"))
        places = [[(file, "", file.relative_to(path)) for file in sorted(found)] for found in folders]
    elif path.suffix == ".zip":
        places = [[(path, name, Path(name)) for name in zip_members(path)]]
    else:
        is_one = path.suffix == docbin.SUFFIX or holds_spans(path, "", encoding)
        return [(path, "", UNSPLIT)] if is_one else []
    for place in places:
        likely = [(name, (file, member)) for file, member, name in place if _may_hold_spans(name) and file.is_file()]
        named = [own for own in likely if (split_of(own[0]) or split_in(own[0])) and holds_spans(*own[1], encoding)]
        if named:
            splits = {split_of(name) or split_in(name) for name, _ in named}
            for name, own in likely:
                other = split_of(name) or split_in(name)
                if other and other not in splits and is_json(name.name) and not holds_spans(*own, encoding):
                    logger.warning("left out, because its texts have no spans: %s", own[0])
            found, _ = by_split(named)
            return [(*file, split) for split in SPLIT_NAMES for file in sorted(found.get(split, []))]
    return _single_export([(file, member) for file, member, name in places[0] if file.is_file()], encoding)


def _single_export(inside: list[tuple[Path, str]], encoding: str) -> FoundSpans:
    """The one file of JSON, or the one of blocks of lines, that holds spans under a name that is no split's."""
    exports, blocks = [], []
    for file, member in inside:
        name = Path(member or file.name)
        if _may_hold_spans(name) and not (split_of(name) or split_in(name)) and name.name not in LABEL_LISTS:
            (exports if is_json(name.name) else blocks).append((file, member))
    likely = blocks + (exports if len(exports) == 1 else [])
    found = [(file, member, UNSPLIT) for file, member in likely if holds_spans(file, member, encoding)]
    return found if len(found) == 1 else []


def _may_hold_spans(name: Path) -> bool:
    """Whether a file in a folder can hold spans, by its name."""
    return is_json(name.name) or name.name.lower().removesuffix(".gz").endswith((*BLOCK_ENDS, docbin.SUFFIX))


def holds_spans(path: Path, member: str = "", encoding: str = "") -> bool:
    """Whether a file holds texts with spans, by its first rows.

    Raises:
        ValueError: it is of a form that is to be exported otherwise.
    """
    if path.suffix == docbin.SUFFIX:
        return True
    if not is_json(member or path.name):
        return block_form(path, member, encoding) is not None
    empty = False
    try:
        for _, value in islice(json_rows(path, member, encoding), SNIFFED_ROWS):
            try:
                row = json_row(value) if isinstance(value, bytes) else value
            except ValueError:
                continue
            answer = is_span_row(row)
            if answer is not None:
                return answer
            empty = empty or (isinstance(row, dict) and any(row.get(key) == [] for key in SPAN_KEYS if "text" in row))
    except ValueError:  # whoever reads the file says what is wrong with it
        return False
    return empty
