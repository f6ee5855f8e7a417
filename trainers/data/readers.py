"""Tagged sentences from disk or the hub: finds the folder, recognises its layout, reads the splits."""

import logging
import os
import re
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from trainers.data.conll import as_iob2, conll_labels, read_conll_file
from trainers.data.rows import BadRows, OnBadRow
from trainers.data.tner import read_label_file, read_tner_file

logger = logging.getLogger(__name__)

DATA_DIR_VARIABLE = "LORA_DATA_DIR"
SPLIT_NAMES = {"train": ("train",), "validation": ("valid", "validation", "dev"), "test": ("test",)}
"""File names, without suffix, that can hold each split."""
TNER_SUFFIX = ".json"
CONLL_SUFFIXES = (".conll", ".txt", ".bio", ".iob2")


@dataclass(frozen=True)
class TokenDataset:
    """One split of a token classification data set."""

    words: list[list[str]]
    """Sentences of words."""
    tags: list[list[int]]
    """One label id per word."""
    labels: tuple[str, ...]
    """Label names; the index is the id."""
    source: str
    """The file that the split was read from."""

    def __len__(self) -> int:
        return len(self.words)

    def with_labels(self, labels: tuple[str, ...]) -> "TokenDataset":
        """The same sentences with the ids of ``labels``. Raises ValueError for a label that is not among them."""
        unknown = sorted(set(self.labels) - set(labels))
        if unknown:
            raise ValueError(f"{self.source} has labels that are not among {list(labels)}: {unknown}.")
        ids = [labels.index(name) for name in self.labels]
        tags = [[ids[tag] for tag in sentence] for sentence in self.tags]
        return replace(self, tags=tags, labels=labels)


def load_token_datasets(source: str | Path, *, on_bad_row: OnBadRow = "error") -> dict[str, TokenDataset]:
    """Read the splits "train", "validation" and "test" of a data set, those that exist.

    `source` is a folder; a name under the folder in the environment variable LORA_DATA_DIR; or a hub data set
    such as "tner/bionlp2004", for which LORA_DATA_DIR is searched first (also by its last part,
    "bionlp2004"). Two layouts are read, at the top of the folder or in its subfolder `dataset`:

    - tner: train.json, valid.json (or validation.json, dev.json), test.json of JSON lines {"tokens": [...],
      "tags": [...]}, with label.json {"O": 0, "B-X": 1, ...}. Tags are taken as they are.
    - CoNLL: the same names ending in .conll, .txt, .bio or .iob2; one word a line, the word in the first
      column and its tag in the last, blank lines between sentences. IOB1 becomes IOB2: an I- that continues
      nothing becomes B-. The labels are O, then B-X, I-X for every type X of any split, sorted by type.

    Raises ValueError for a folder of neither layout; and for a row that cannot be used, naming file, line and
    value. `on_bad_row="skip"` leaves such rows out and reports them once through logging.
    """
    if on_bad_row not in ("error", "skip"):
        raise ValueError(f"on_bad_row={on_bad_row!r}: expected 'error' or 'skip'.")
    files = _split_files(_find_folder(source))
    bad_rows = BadRows(on_bad_row)
    is_tner = next(iter(files.values())).suffix == TNER_SUFFIX
    datasets = _read_tner(files, bad_rows) if is_tner else _read_conll(files, bad_rows)
    bad_rows.report()
    for dataset in datasets.values():
        if not dataset.words:
            raise ValueError(f"{dataset.source} holds no usable sentence. Fill the file or remove it.")
    return datasets


def _read_tner(files: dict[str, Path], bad_rows: BadRows) -> dict[str, TokenDataset]:
    labels = read_label_file(next(iter(files.values())).parent / "label.json")
    return {
        split: TokenDataset(*read_tner_file(path, len(labels), bad_rows), labels, str(path))
        for split, path in files.items()
    }


def _read_conll(files: dict[str, Path], bad_rows: BadRows) -> dict[str, TokenDataset]:
    read = {split: read_conll_file(path, bad_rows) for split, path in files.items()}
    labels = conll_labels(sentence for _, tags in read.values() for sentence in tags)
    ids = {label: index for index, label in enumerate(labels)}
    known = set(conll_labels(read["train"][1])) if "train" in read else set(labels)
    datasets = {}
    for split, (words, tags) in read.items():
        repaired = [as_iob2(sentence) for sentence in tags]
        changed = sum(old != new for old, new in zip(chain(*tags), chain(*repaired), strict=True))
        if changed:
            logger.warning("%s: %d tags I- that continue nothing became B- (IOB2)", files[split], changed)
        unknown = sorted(set(conll_labels(tags)) - known)
        if unknown:
            logger.warning("%s has labels that the training split lacks: %s", files[split], ", ".join(unknown))
        datasets[split] = TokenDataset(
            words, [[ids[tag] for tag in sentence] for sentence in repaired], labels, str(files[split])
        )
    return datasets


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


def _find_folder(source: str | Path) -> Path:
    name = str(source)
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None
    candidates = [Path(source)]
    if data_dir := os.environ.get(DATA_DIR_VARIABLE):
        candidates.append(Path(data_dir, name))
        if is_hub_id:
            candidates.append(Path(data_dir, name.split("/")[1]))
    for folder in candidates:
        if folder.is_dir():
            return folder
    looked_at = f"no such folder (looked at {', '.join(str(folder.absolute()) for folder in candidates)})"
    if is_hub_id:
        return _download(name, looked_at)
    raise ValueError(
        f"no data set {name!r}: {looked_at}. Give a folder, a name under {DATA_DIR_VARIABLE}, or a hub data "
        f"set such as 'tner/bionlp2004'."
    )


def _download(hub_id: str, looked_at: str) -> Path:
    """The folder of a hub data set, in the hub's own cache; works offline once it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    stems = [name for names in SPLIT_NAMES.values() for name in names]
    patterns = [
        "label.json",
        *(f"{stem}{suffix}" for stem in stems for suffix in (TNER_SUFFIX, *CONLL_SUFFIXES)),
    ]
    patterns += [f"dataset/{pattern}" for pattern in patterns]
    try:
        return Path(snapshot_download(hub_id, repo_type="dataset", allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f"no data set {hub_id!r}: {looked_at}, and the hub did not give it: {error} Check the name "
            f"and the network, or put a copy under {DATA_DIR_VARIABLE}."
        ) from error
