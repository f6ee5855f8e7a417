"""A training set from a large tagged corpus: choose entity types, drop, split, repeat; in two passes over its files.

The first pass counts and remembers a few numbers of each sentence (`scan`); everything is decided from those; the
second pass writes the sentences that were chosen.
"""

import dataclasses
import difflib
import json
import logging
import re
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_core.files import read_json_object, replacing, write_json
from trainers.corpus.statistics import Statistics, statistics, write_statistics
from trainers.data.reading import Reading
from trainers.data.rows import BadRows, OnBadRow
from trainers.data.sources import UNSPLIT
from trainers.data.splits import repeat_rare_types, stratified_split
from trainers.data.tokens.bio import OUTSIDE, entity_type, open_stray, openings
from trainers.data.tokens.files import TaggedSource, find_tagged_source
from trainers.data.tokens.forms import tagged_rows
from trainers.data.tokens.scan import Scan, scan
from trainers.show import progress_bar

logger = logging.getLogger(__name__)

RECORD = "preparation.json"
FILE_OF_SPLIT = {"train": "train.json", "validation": "valid.json", "test": "test.json"}
ORIGIN = ("source", "label_file", "columns", "delimiter", "encoding")
"""What the record says of where the corpus lies and how it is read; what a user did not say is not in it."""
DROPPED = -1
_UNFINISHED = re.compile(r"^\.(.+)\.\d+$")
"""A file that `replacing` had not finished when the process was killed: the name that it would have got."""


@dataclass(frozen=True)
class Preparation:
    """What becomes of a corpus."""

    types: tuple[str, ...] = ()
    """Entity types to keep, by name; words of other types become O. Empty: all, or those that `top` says."""
    top: int | None = None
    """Keep so many of the most frequent types."""
    keep_empty: float = 0.0
    """Share of the sentences without entities of the kept types that stays."""
    resplit: bool = False
    """Merge the corpus's own splits and draw new ones. A corpus of one file is always split."""
    shares: tuple[float, ...] = (0.8, 0.1, 0.1)
    """Shares of the training, validation and test split in every type's entities, when they are drawn."""
    oversample: float = 0.0
    """Repeat training sentences, each up to ten times, until every type has this share of the most frequent type's
    entities."""
    seed: int = 42
    """Seed of everything that is drawn."""

    def __post_init__(self) -> None:
        if self.types and self.top is not None:
            raise ValueError("types and top both choose the entity types: give one of them.")
        if self.top is not None and self.top < 1:
            raise ValueError(f"top is {self.top}: expected at least 1 type.")
        for name in ("keep_empty", "oversample"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected a share from 0 to 1.")
        if len(self.shares) != 3 or min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"shares is {self.shares}: expected three positive numbers that sum to 1.")


def prepare(
    source: str | Path,
    folder: str | Path,
    settings: Preparation,
    *,
    label_file: str | Path = "",
    on_bad_row: OnBadRow = "error",
    reading: Reading | None = None,
) -> Path:
    """Write train.json, valid.json, test.json and label.json (the tner layout) for `lora-core train --data FOLDER`.

    Beside them go the statistics of the corpus (source_statistics.md, .json, .png) and of what was prepared
    (statistics.*), and preparation.json. Sentences of the same words go into the same split when splits are drawn. A
    folder that holds this preparation is left as it is.

    Args:
        source: the corpus, as `find_tagged_source` finds it.
        folder: where the files go.
        settings: what becomes of the corpus.
        label_file: names of the tag ids, where the corpus does not give them.
        on_bad_row: "skip" leaves out rows that cannot be used, and reports them through logging.
        reading: which columns, delimiter and encoding to read; its own ``on_bad_row`` does not count.

    Returns:
        The folder.

    Raises:
        ValueError: the folder holds something else, or was prepared before the source changed; or the corpus cannot
            give what is asked of it.
    """
    folder = Path(folder)
    origin = {"source": str(source), "label_file": str(label_file)}
    said = reading or Reading()
    origin |= {name: value for name in ORIGIN[2:] if (value := getattr(said, name))}
    record = json.loads(json.dumps({**origin, "settings": dataclasses.asdict(settings)}))
    done = _is_prepared(folder, record)
    found = find_tagged_source(source, label_file, reading)
    digests = [digest for _, digest in dict.fromkeys((file.path, file.sha256()) for file in found.files)]
    record["contents"] = {"files": digests, "names": found.names and list(found.names)}
    if done:
        if _read_record(folder).get("contents", record["contents"]) != record["contents"]:
            raise ValueError(f"{source} has changed since {folder} was prepared from it: prepare into another folder.")
        logger.info("%s holds this preparation already.", folder)
        return folder
    bad_rows = BadRows(on_bad_row)
    scanned = scan(found, bad_rows)
    bad_rows.report()
    counted = statistics(scanned)
    write_statistics(counted, folder, "source_statistics")
    types = choose_types(counted, settings)
    split_of_row, repeats = _plan(scanned, types, settings)
    labels = _labels(scanned, types)
    files = _write_splits(found, scanned, labels, split_of_row, repeats, folder)
    write_json(folder / "label.json", {label: index for index, label in enumerate(labels)})
    prepared = find_tagged_source(folder)
    write_statistics(statistics(scan(prepared, BadRows("error"))), folder)
    record["files"] = {path.name: path.stat().st_size for path in files}
    write_json(folder / RECORD, record)
    return folder


def choose_types(counted: Statistics, settings: Preparation) -> tuple[str, ...]:
    """The entity types to keep, in the order that their labels get.

    Raises:
        ValueError: a type is unknown (the message names the nearest that occurs), does not occur or is named twice;
            or there are no entities at all.
    """
    for kind in settings.types:
        if kind not in counted.types:
            if any(kind in split.entities for split in counted.splits.values()):
                raise ValueError(f"the corpus names the type {kind!r}, but none of its sentences has such an entity.")
            near = difflib.get_close_matches(kind, counted.types, n=1, cutoff=0)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"the corpus has no entity of type {kind!r}.{hint}")
    if len(set(settings.types)) < len(settings.types):
        raise ValueError(f"types names a type twice: {list(settings.types)}.")
    chosen = settings.types or counted.types[: settings.top]
    if not chosen:
        raise ValueError("the corpus has no entities: there is nothing to learn.")
    return chosen


def _plan(scanned: Scan, types: tuple[str, ...], settings: Preparation) -> tuple[np.ndarray, np.ndarray]:
    """For each row the index of its split in FILE_OF_SPLIT (or DROPPED), and how often it is written."""
    entity_rows = np.repeat(np.arange(len(scanned.lengths)), np.diff(scanned.entity_offsets))
    place = np.full(len(scanned.types), -1)
    place[[scanned.types.index(kind) for kind in types]] = np.arange(len(types))
    entity_types = place[scanned.entity_types]
    entity_rows, entity_types = entity_rows[entity_types >= 0], entity_types[entity_types >= 0]

    keep = np.zeros(len(scanned.lengths), dtype=bool)
    keep[entity_rows] = True
    empty = np.flatnonzero(~keep & (scanned.lengths > 0))
    groups, group = np.unique(scanned.fingerprints[empty], return_inverse=True)
    keep[empty] = (np.random.default_rng((settings.seed, 1)).random(len(groups)) < settings.keep_empty)[group]

    kept = np.flatnonzero(keep)
    split_of_row = np.full(len(keep), DROPPED, dtype=np.int8)
    if settings.resplit or scanned.splits == (UNSPLIT,):
        places = (np.searchsorted(kept, entity_rows), entity_types)
        split_of_row[kept] = stratified_split(scanned.fingerprints[kept], places, settings.shares, settings.seed)
    else:
        own = [list(FILE_OF_SPLIT).index(split) for split in scanned.splits]
        split_of_row[kept] = np.array(own)[scanned.split_of_rows()[kept]]
    for index, split in enumerate(FILE_OF_SPLIT):
        if not (split_of_row == index).any():
            raise ValueError(
                f"the {split} split would be empty: the corpus has the splits {', '.join(scanned.splits)}. "
                f"Draw new ones with resplit, or keep more types or sentences."
            )
    repeats = np.ones(len(keep), dtype=np.int16)
    if settings.oversample:
        trained = split_of_row[entity_rows] == 0
        more = repeat_rare_types(entity_rows[trained], entity_types[trained], settings.oversample, settings.seed)
        repeats[more[0]] = more[1]
    return split_of_row, repeats


def _labels(scanned: Scan, types: tuple[str, ...]) -> tuple[str, ...]:
    """O, then B-X for each type X, followed by I-X if that occurs."""
    counts = zip(scanned.labels, scanned.label_counts.sum(0), strict=True)
    used = {entity_type(label) for label, count in counts if count and label.startswith("I")}
    return (OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in "BI" if prefix == "B" or kind in used))


def _write_splits(
    found: TaggedSource,
    scanned: Scan,
    labels: tuple[str, ...],
    split_of_row: np.ndarray,
    repeats: np.ndarray,
    folder: Path,
) -> list[Path]:
    """The second pass. Files appear under their names when all are complete."""
    paths = [folder / name for name in FILE_OF_SPLIT.values()]
    ids = {name: index for index, name in enumerate(labels)}
    new_id = np.array([ids.get(f"{name[0]}-{entity_type(name)}", 0) for name in scanned.labels])
    opening = openings(labels)
    tag_ids, skip_bad = scanned.tag_ids, BadRows("skip")
    size = sum(file.path.stat().st_size for file in found.files)
    with ExitStack() as stack:
        unfinished = [stack.enter_context(replacing(path)) for path in paths]
        outputs = [stack.enter_context(path.open("w", encoding="utf-8")) for path in unfinished]
        progress = stack.enter_context(closing(progress_bar("writing", size, unit="B", unit_scale=True)))
        for file, start, end in zip(found.files, scanned.file_offsets, scanned.file_offsets[1:], strict=False):
            wanted = split_of_row[start:end] != DROPPED
            for place, words, tags in tagged_rows(file, tag_ids, skip_bad, progress, wanted):
                chosen = new_id[tags].tolist()
                if opening:
                    chosen = open_stray(chosen, opening)
                line = json.dumps({"tokens": words, "tags": chosen}, ensure_ascii=False) + "\n"
                row = start + place
                outputs[split_of_row[row]].write(line * int(repeats[row]))
    return paths


def _read_record(folder: Path) -> dict:
    return read_json_object(folder / RECORD, f"Delete {folder}, or prepare into another folder.")


def _is_prepared(folder: Path, record: dict) -> bool:
    """Whether the folder holds this preparation, whole. Raises ValueError when it holds something else."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    if not (folder / RECORD).is_file():
        known = {f"{name}.{suffix}" for name in ("source_statistics", "statistics") for suffix in ("md", "json", "png")}
        known |= {"label.json", *FILE_OF_SPLIT.values()}
        names = {_UNFINISHED.sub(r"\1", path.name) for path in folder.iterdir()}
        if "source_statistics.md" in names <= known:
            return False  # an interrupted preparation: begin again
        raise ValueError(f"{folder} holds other files; prepare into an empty folder.")
    old = _read_record(folder)
    changed = [name for name in record["settings"] if old["settings"].get(name) != record["settings"][name]]
    changed = [name for name in ORIGIN if old.get(name) != record.get(name)] + changed
    if changed:
        raise ValueError(f"{folder} holds a preparation with other {', '.join(changed)}: prepare into another folder.")
    for name, size in old["files"].items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise ValueError(
                f"{folder / name} is missing or was changed since it was prepared: delete {folder}, or prepare into "
                "another folder."
            )
    return True
