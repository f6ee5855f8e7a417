"""Tagged sentences from disk or the hub: finds the folder, recognises its layout, reads the splits."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from trainers.data.rows import BadRows, OnBadRow
from trainers.data.token_files import TokenDataset, TokenFile, conll_files, tner_files

DATA_DIR_VARIABLE = "LORA_DATA_DIR"
SPLIT_NAMES = {"train": ("train",), "validation": ("valid", "validation", "dev"), "test": ("test",)}
"""File names, without suffix, that can hold each split."""
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
    files = _split_files(find_folder(source, _split_patterns()))
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


def find_folder(source: str | Path, patterns: Sequence[str]) -> Path:
    """The folder of a data set: a path, a name under LORA_DATA_DIR, or a hub id, of which it fetches `patterns`."""
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
        return _download(name, patterns, looked_at)
    raise ValueError(
        f"no data set {name!r}: {looked_at}. Give a folder, a name under {DATA_DIR_VARIABLE}, or a hub data "
        f"set such as 'tner/bionlp2004'."
    )


def _split_patterns() -> list[str]:
    """Names of the files that `load_token_datasets` reads."""
    stems = [name for names in SPLIT_NAMES.values() for name in names]
    patterns = [
        "label.json",
        *(f"{stem}{suffix}" for stem in stems for suffix in (TNER_SUFFIX, *CONLL_SUFFIXES)),
    ]
    return [*patterns, *(f"dataset/{pattern}" for pattern in patterns)]


def _download(hub_id: str, patterns: Sequence[str], looked_at: str) -> Path:
    """The folder of a hub data set, in the hub's own cache; works offline once it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, repo_type="dataset", allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f"no data set {hub_id!r}: {looked_at}, and the hub did not give it: {error} Check the name "
            f"and the network, or put a copy under {DATA_DIR_VARIABLE}."
        ) from error
