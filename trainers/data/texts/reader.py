"""Labelled texts from disk or the hub: finds the files, recognises their forms, reads the splits."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from trainers.data.labels import LabelNames, read_label_names
from trainers.data.reading import Reading
from trainers.data.rows import BadRows, OnBadRow, short
from trainers.data.sources import SPLIT_OF_NAME, UNSPLIT, find_source
from trainers.data.splits import completed, cut_in_three
from trainers.data.tabular import Table
from trainers.data.texts.columns import Ambiguous, Columns, choose_columns, is_id, key, no_columns
from trainers.data.texts.dataset import TextDataset, text_of
from trainers.data.texts.files import patterns, split_files
from trainers.data.texts.forms import read_table
from trainers.data.texts.targets import Targets, flag, is_flag, is_unlabelled, only_minus_one

__all__ = ["TextDataset", "load_text_datasets"]

logger = logging.getLogger(__name__)

MANY = 20
"""In so many rows hardly every text has one label."""
NO_GOLD = "pairs have the gold label '-', as SNLI marks those that its annotators disagree on, and were left out"


@dataclass
class _Found:
    """What was read of one split, before it is known what the labels are."""

    source: Path
    texts: list[str] = field(default_factory=list)
    pairs: list[str] = field(default_factory=list)
    cells: list[Any] = field(default_factory=list)
    """The label of each text as it stands."""
    places: list[tuple[Path, int | None]] = field(default_factory=list)
    """File and line of each."""
    unlabelled: list[tuple[Path, int | None]] = field(default_factory=list)
    """File and line of the rows without a label."""


def load_text_datasets(
    source: str | Path,
    *,
    on_bad_row: OnBadRow = "error",
    reading: Reading | None = None,
    problem_type: str = "auto",
) -> dict[str, TextDataset]:
    """Read the splits "train", "validation" and "test" of a data set, those that exist.

    In the folder of the data set, or in a folder in it, stand the splits, named train (or training), valid (val,
    validation, dev) and test (testing), in any case, or with that word in their names (sts-train.csv). What is in the
    files tells their form, whatever their suffix:

    - columns between commas, tabs, semicolons or bars, under a header that names those of the text (text, sentence,
      review, title and description, ...), of the label (label, class, sentiment, ...) and perhaps of a second text
      (sentence1 and sentence2, premise and hypothesis, ...). Excel files have one too. Without a header, columns go by
      number, unless they are as in AG News, the class and the parts of the text, or two that tell themselves.
    - JSON with such keys: an object a line, a list of objects, {"data": [...]}, or columns as pandas writes them.
    - Parquet with such columns. Numbers in the names (train-00000-of-00002.parquet) mark shards of one split.
    - fastText: `__label__pos A fine film.`; TREC and SST: `DESC:manner How did ...`, `1 a stirring film`.
    - Folders train/pos/*.txt, test/neg/*.txt and so on: a folder for each class, a file for each text.

    One file, or class folders, without splits are cut: 80 % train, 10 % validation, 10 % test. Which columns are read,
    and what is not, is logged.

    A label is a name or an id. Ids are named by label.json ({"Business": 0, ...}); by classes.txt, a name a line,
    whose ids begin at 1 in files of columns and at 0 elsewhere; or by the parquet file's metadata. Without these the
    labels are whatever the splits hold, sorted. Lists of labels, cells with several, and columns of 0 and 1 are several
    labels at once (`TextDataset.problem_type`), decimals are numbers. A split without labels is left out.

    Data with a training split but no validation split loses 10 % of the former to the latter, in which each label
    has its share and no text of the other part stands; this is logged.

    Args:
        source: a file or folder; a name under the folder in the environment variable LORA_DATA_DIR; or a hub id, for
            which LORA_DATA_DIR is searched first.
        on_bad_row: "skip" leaves out rows that cannot be used, and reports them through logging.
        reading: which columns, delimiter and encoding to read; its own ``on_bad_row`` does not count.
        problem_type: "auto", or what the labels are.

    Raises:
        ValueError: there is no such data set, it is in another form, or with ``on_bad_row="error"`` a row cannot be
            used; the message names file, line and value.
    """
    datasets = read_text_splits(source, on_bad_row=on_bad_row, reading=reading, problem_type=problem_type)
    return completed(cut_in_three(datasets[UNSPLIT]) if UNSPLIT in datasets else datasets)


def read_text_splits(
    source: str | Path,
    *,
    on_bad_row: OnBadRow = "error",
    reading: Reading | None = None,
    problem_type: str = "auto",
) -> dict[str, TextDataset]:
    """The splits as they lie there, under UNSPLIT what has none: as `load_text_datasets`, but nothing is cut."""
    bad_rows, reading = BadRows(on_bad_row), reading or Reading()
    place = find_source(source, patterns(), "a file or folder")
    files = {UNSPLIT: [place]} if place.is_file() else split_files(place)
    folder = place.parent if place.is_file() else place
    tables: dict[str, list[Table]] = {}
    header = None
    for split, paths in files.items():
        names, _ = _names_beside(paths[0], folder)
        for path in paths:
            table = read_table(path, reading, names or (), header)
            headless = table.form == "columns" and not table.has_header
            if headless and tables and header is None:
                logger.warning("%s: no header line, unlike the files before it: its first row is data", path)
            header = False if headless else header
            tables.setdefault(split, []).append(table)
    _check_forms(folder, tables)
    columns = _columns(tables, reading)
    declared = _declared_names(next(iter(tables.values()))[0], folder, columns)
    found = {split: _read(split, tables[split], columns, reading, bad_rows, declared) for split in tables}
    labelled = {split: rows for split, rows in found.items() if _has_labels(split, rows, declared)}
    if not labelled or ("train" in found and "train" not in labelled):
        missing = found.get("train", next(iter(found.values())))
        raise ValueError(f"{missing.source} holds no labels, so nothing can be learned from it. Name their column: "
                         "--label-column.")  # fmt: skip
    datasets = _datasets(labelled, columns, declared, problem_type, bad_rows)
    bad_rows.report()
    return datasets


def _columns(tables: dict[str, list[Table]], reading: Reading) -> Columns:
    """The columns of the first table that has labels; said in one line where there was anything to choose.

    Raises:
        ValueError: no table has them, or which they are is not clear.
    """
    first: tuple[Table, ValueError] | None = None
    for table in chain.from_iterable(tables.values()):
        if not table.names:
            continue
        try:
            columns = _choose(table, reading)
            if columns is None:
                raise no_columns(table.path, table.names, examples=table.examples)
        except Ambiguous as problem:
            raise no_columns(table.path, table.names, str(problem), table.examples) from problem
        except ValueError as problem:
            first = first or (table, problem)
            continue
        if table.form == "label first":
            logger.info("%s: the first word of each line is its label", table.path)
        elif not table.has_header:
            logger.warning(
                "%s: no header line: the first row is data, and columns have numbers; %s",
                table.path,
                columns.said(table.names),
            )
        elif table.form not in ("class folders", "fastText") and set(table.names) != {"text", "label"}:
            logger.info("%s: %s", table.path, columns.said(table.names))
        if len(tables) == 1:
            _say_splits_in(table, columns)
        return columns
    if first is None:
        raise ValueError(f"{next(iter(tables.values()))[0].path} holds no usable text. Fill it or remove it.")
    table, problem = first
    raise problem if " has the columns " in str(problem) else ValueError(f"{table.path}: {problem}.")


def _say_splits_in(table: Table, columns: Columns) -> None:
    """Warn of a column that names splits, where the data has no other."""
    for name in table.names:
        values = {str(row.get(name)).strip().lower() for row in table.head} if name not in columns.used else set()
        told = {SPLIT_OF_NAME[value] for value in values if value in SPLIT_OF_NAME}
        if len(told) > 1 and len(values) < 6:
            logger.warning(
                "%s: the column %r names splits, and is NOT used: write the rows of each to a file of its own, such as "
                "train.csv and test.csv.",
                table.path,
                name,
            )


def _choose(table: Table, reading: Reading) -> Columns | None:
    """The columns of one table with labels; None: it is not clear."""
    if not table.has_header and not reading.label_column and "label" in table.names:
        return Columns(tuple(name for name in table.names if name != "label"), (), ("label",))
    columns = choose_columns(table.names, reading)
    if columns is None and not reading.label_column:
        known = choose_columns(table.names, reading, unlabelled=True)
        if known is not None:
            flags = _flag_columns(table, [name for name in table.names if name not in known.used])
            if len(flags) > 1:
                logger.warning("%s: the columns %s hold 0 and 1: multi-label", table.path, ", ".join(flags))
                columns = replace(known, label=flags)
    return columns


def _flag_columns(table: Table, names: Sequence[str]) -> tuple[str, ...]:
    """Those of the columns that hold 0 and 1 alone, and in many rows not 1 alone; none, where no text has a label."""
    head = table.head
    flags = [name for name in names if not is_id(name) and all(is_flag(row.get(name)) for row in head)]
    flags = [name for name in flags if len(head) < MANY or not all(flag(name, row[name]) for row in head)]
    return tuple(flags) if any(flag(name, row[name]) for row in head for name in flags) else ()


def _read(
    split: str, tables: list[Table], columns: Columns, reading: Reading, bad_rows: BadRows, declared: LabelNames
) -> _Found:
    """The usable rows of a split."""
    found = _Found(tables[0].path)
    for table in tables:
        own = _in_table(table, columns, reading)
        for number, row in table.read(own.used, bad_rows):
            place = row.get("file", table.path) if table.form == "class folders" else table.path
            try:
                here = own if own.used <= row.keys() else _in_row(row, own, reading)
                text = text_of([row[name] for name in here.text])
                pair = text_of([row[name] for name in here.pair], "the second text") if here.pair else ""
            except ValueError as problem:
                bad_rows.add(place, number, str(problem))
                continue
            cell = row[here.label[0]] if len(here.label) == 1 else {name: row[name] for name in here.label} or None
            if cell == "-" and key(here.label[0]) == "gold_label":
                bad_rows.change(NO_GOLD, f"{place}:{number}")
                continue
            if is_unlabelled(cell, declared.names):
                found.unlabelled.append((place, number))
                continue
            found.texts.append(text)
            found.pairs.append(pair)
            found.cells.append(cell)
            found.places.append((place, number))
    if not found.texts and not found.unlabelled:
        raise ValueError(f"{found.source} holds no usable text. Fill it or remove it.")
    return found


def _in_table(table: Table, columns: Columns, reading: Reading) -> Columns:
    """The columns as this table spells them; without that of the label where it has none.

    Raises:
        ValueError: it lacks another.
    """
    if columns.used <= set(table.names) or not table.names:
        return columns
    if {*columns.text, *columns.pair} <= set(table.names):
        return replace(columns, label=tuple(name for name in columns.label if name in table.names))
    if table.form == "JSON":
        return columns  # its rows may differ in their keys
    try:
        own = choose_columns(table.names, reading, unlabelled=True)
    except ValueError as problem:
        # GLUE's CoLA: only the test split, without labels, names its columns.
        own = choose_columns(table.names, unlabelled=True) if table.has_header else None
        if own is None:
            raise no_columns(table.path, table.names, str(problem), table.examples) from problem
    if own is None or bool(own.pair) != bool(columns.pair):
        problem = f"not {', '.join(sorted(columns.used))} as the other files"
        raise no_columns(table.path, table.names, problem, table.examples)
    return own


def _in_row(row: dict[str, Any], columns: Columns, reading: Reading) -> Columns:
    """The columns of a JSON object whose keys are not those of the others; its label may lack.

    Raises:
        ValueError: its text lacks.
    """
    try:
        own = choose_columns(list(row), reading, unlabelled=True)
    except ValueError:
        own = None
    if {*columns.text, *columns.pair} <= row.keys():
        label = own.label if own else tuple(name for name in columns.label if name in row)
        return replace(columns, label=label)
    if own is None or bool(own.pair) != bool(columns.pair):
        raise ValueError(f"the object has no {' and '.join(columns.text + columns.pair)}: {short(row)}")
    return own


def _has_labels(split: str, found: _Found, declared: LabelNames) -> bool:
    """Whether a split has labels; one that has none is left out, which is said."""
    if found.cells and not only_minus_one(found.cells):
        return True
    logger.warning("%s: none of its %d texts has a label: the %s split is left out", found.source,
                   len(found.cells) + len(found.unlabelled), split)  # fmt: skip
    return False


def _datasets(
    found: dict[str, _Found], columns: Columns, declared: LabelNames, problem_type: str, bad_rows: BadRows
) -> dict[str, TextDataset]:
    """The labels of all splits as targets."""
    cells = list(chain.from_iterable(rows.cells for rows in found.values()))
    targets = Targets(cells, declared, problem_type)
    parsed: dict[str, list[Any]] = {}
    kept: dict[str, list[int]] = {}
    for split, rows in found.items():
        for place, number in rows.unlabelled:
            bad_rows.add(place, number, "the row has no label")
        parsed[split], kept[split] = [], []
        for index, (cell, (place, number)) in enumerate(zip(rows.cells, rows.places, strict=True)):
            try:
                parsed[split].append(targets.parse(cell))
                kept[split].append(index)
            except ValueError as problem:
                bad_rows.add(place, number, str(problem))
        if not kept[split]:
            raise ValueError(f"{rows.source} holds no usable text. Fill it or remove it.")
    labels = targets.names(chain.from_iterable(parsed.values()), columns.label)
    return {
        split: TextDataset(
            [rows.texts[index] for index in kept[split]],
            targets.array(parsed[split], labels),
            labels,
            str(rows.source),
            [rows.pairs[index] for index in kept[split]] if columns.pair else None,
            targets.problem_type,
            columns.text_column,
            columns.pair_column,
        )
        for split, rows in found.items()
    }


def _check_forms(folder: Path, tables: dict[str, list[Table]]) -> None:
    """Refuse splits in different forms: some may be left over from another version of the data."""
    flat = list(chain.from_iterable(tables.values()))
    if len({table.form for table in flat if table.names or table.form != "columns"}) > 1:  # an empty file has no form
        listed = ", ".join(sorted(table.path.name for table in flat))
        raise ValueError(f"{folder} mixes files of several forms: {listed}. Keep one form.")


def _names_beside(path: Path, folder: Path) -> tuple[tuple[str, ...] | None, bool]:
    """(The names of the labels that stand beside a file, or else in its data set's folder; whether in classes.txt)."""
    for place in (path.parent, folder):
        if (place / "label.json").is_file():
            return read_label_names(place / "label.json"), False
        if (place / "classes.txt").is_file():
            return _read_classes(place / "classes.txt"), True
    return None, False


def _declared_names(table: Table, folder: Path, columns: Columns) -> LabelNames:
    """The names of the labels: those that stand beside a file, or in its data set's folder, or in the file itself.

    They stand in label.json ({"Business": 0, ...}), or in classes.txt, a name a line, whose ids begin at 1 in files of
    columns and at 0 elsewhere.

    Raises:
        ValueError: a file of names is damaged, or names a label twice.
    """
    names, from_one = _names_beside(table.path, folder)
    if names is not None:
        return LabelNames(names, first_id=int(from_one and table.form == "columns"))
    return LabelNames(next(filter(None, map(table.class_names, columns.label)), None))


def _read_classes(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}.") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{path} holds {list(names)}: expected the name of each class once, one a line.")
    return names
