"""Tagged sentences from disk or the hub: finds the folder, recognises its layout, reads the splits."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

DATA_DIR_VARIABLE = "LORA_DATA_DIR"
SPLIT_NAMES = {"train": ("train",), "validation": ("valid", "validation", "dev"), "test": ("test",)}
"""File names, without suffix, that can hold each split."""


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
