"""A training set from a large tagged corpus: choose entity types, drop, split, repeat; in two passes over its files.

The first pass counts and remembers a few numbers of each sentence (`trainers.corpus.scan`); everything is decided from
those; the second pass writes the sentences that were chosen.
"""

import dataclasses
import difflib
import json
import logging
import os
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from trainers.corpus.scan import Scan, scan
from trainers.corpus.statistics import Statistics, statistics, write_statistics
from trainers.data.cache import file_digest
from trainers.data.rows import BadRows, OnBadRow
from trainers.data.sources import UNSPLIT
from trainers.data.splits import repeat_rare_types, stratified_split
from trainers.data.tokens.files import find_tagged_source
from trainers.data.tokens.reader import TaggedSource, TagIds, tagged_rows

logger = logging.getLogger(__name__)

RECORD = "preparation.json"
FILE_OF_SPLIT = {"train": "train.json", "validation": "valid.json", "test": "test.json"}
DROPPED = -1


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
    source: str | Path, folder: str | Path, settings: Preparation, *, label_file: str | Path = "",
    on_bad_row: OnBadRow = "error",
) -> Path:  # fmt: skip
    """Write train.json, valid.json, test.json and label.json (the tner layout) for `lora-core train --data FOLDER`.

    `source` and `label_file` as in `find_tagged_source`. Beside them go the statistics of the corpus
    (source_statistics.md, .json, .png) and of what was prepared (statistics.*), and preparation.json. Sentences of
    the same words go into the same split when splits are drawn. A folder that holds this preparation is left as it is.

    Returns the folder. Raises ValueError for a folder that holds something else, or was prepared before the source
    changed, and for what the corpus cannot give.
    """
    folder = Path(folder)
    origin = {"source": str(source), "label_file": str(label_file)}
    record = json.loads(json.dumps({**origin, "settings": dataclasses.asdict(settings)}))
    done = _is_prepared(folder, record)
    found = find_tagged_source(source, label_file)
    digests = [file_digest(path) for path in dict.fromkeys(file.path for file in found.files)]
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
    names = json.dumps({label: index for index, label in enumerate(labels)}, indent=2)
    (folder / "label.json").write_text(names + "\n", encoding="utf-8")
    prepared = find_tagged_source(folder)
    write_statistics(statistics(scan(prepared, BadRows("error"))), folder)
    record["files"] = {path.name: path.stat().st_size for path in files}
    (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
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
    used = {label for label, count in zip(scanned.labels, scanned.label_counts.sum(0), strict=True) if count}
    return ("O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI" if prefix == "B" or f"I-{kind}" in used))


def _write_splits(
    found: TaggedSource, scanned: Scan, labels: tuple[str, ...], split_of_row: np.ndarray, repeats: np.ndarray,
    folder: Path,
) -> list[Path]:  # fmt: skip
    """The second pass. Files appear under their names when all are complete."""
    paths = [folder / name for name in FILE_OF_SPLIT.values()]
    new_id = np.array([labels.index(name) if name in labels else 0 for name in scanned.labels])
    opening = {index: labels.index(f"B-{name[2:]}") for index, name in enumerate(labels) if name.startswith("I-")}
    tag_ids, skip_bad = TagIds(scanned.labels), BadRows("skip")
    size = sum(file.path.stat().st_size for file in found.files)
    with ExitStack() as stack:
        outputs = [stack.enter_context(path.with_suffix(".tmp").open("w", encoding="utf-8")) for path in paths]
        progress = stack.enter_context(
            closing(tqdm(total=size, desc="writing", unit="B", unit_scale=True, disable=None))
        )
        for file, start, end in zip(found.files, scanned.file_offsets, scanned.file_offsets[1:], strict=False):
            wanted = split_of_row[start:end] != DROPPED
            for place, words, tags in tagged_rows(file, tag_ids, skip_bad, progress, wanted):
                chosen = new_id[tags].tolist()
                if opening:
                    chosen = _open_stray(chosen, opening)
                line = json.dumps({"tokens": words, "tags": chosen}, ensure_ascii=False) + "\n"
                row = start + place
                outputs[split_of_row[row]].write(line * int(repeats[row]))
    for path in paths:
        os.replace(path.with_suffix(".tmp"), path)
    return paths


def _open_stray(tags: list[int], opening: dict[int, int]) -> list[int]:
    """An I- that continues nothing of its type becomes B-; ``opening`` maps the ids of I- labels to those of B-."""
    written, previous = [], 0
    for tag in tags:
        begin = opening.get(tag)
        stray = begin is not None and previous not in (begin, tag)
        written.append(begin if stray else tag)
        previous = tag
    return written


def _read_record(folder: Path) -> dict:
    return json.loads((folder / RECORD).read_text(encoding="utf-8"))


def _is_prepared(folder: Path, record: dict) -> bool:
    """Whether the folder holds this preparation, whole. Raises ValueError when it holds something else."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    if not (folder / RECORD).is_file():
        leftovers = {"source_statistics.md", "source_statistics.json", "source_statistics.png", "label.json",
                     "statistics.md", "statistics.json", "statistics.png",
                     *FILE_OF_SPLIT.values(), *(f"{split}.tmp" for split in ("train", "valid", "test"))}  # fmt: skip
        if (folder / "source_statistics.md").is_file() and {path.name for path in folder.iterdir()} <= leftovers:
            return False  # an interrupted preparation: begin again
        raise ValueError(f"{folder} holds other files; prepare into an empty folder.")
    old = _read_record(folder)
    changed = [name for name in record["settings"] if old["settings"].get(name) != record["settings"][name]]
    changed = [name for name in ("source", "label_file") if old.get(name) != record[name]] + changed
    if changed:
        raise ValueError(f"{folder} holds a preparation with other {', '.join(changed)}: prepare into another folder.")
    for name, size in old["files"].items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise ValueError(f"{folder / name} is missing or was changed since it was prepared: delete {folder}, or "
                             "prepare into another folder.")  # fmt: skip
    return True
