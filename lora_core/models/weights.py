"""Read the tensors of a model folder: one safetensors file, or several behind an index."""

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lora_core.vit_names import to_old_name

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

ENCODER_PARTS = {"embeddings", "encoder", "transformer", "layernorm", "pooler"}
"""Top-level modules of the encoders, by which a checkpoint without the prefix is told from its heads."""

UNREAD = {"embeddings.position_ids", "embeddings.token_type_ids", "embeddings.mask_token"}
"""Tensors that no model here reads: counters of old transformers versions, and the stand-in of hidden patches in
ViT's pretraining."""


def read_tensors(folder: str | Path) -> dict[str, Tensor]:
    """Return every tensor of the folder's checkpoint by its name in the file, on the CPU.

    The tensors may be views of the file: copy them before writing to them. Only safetensors are read, because
    the older .bin files are pickles, which can run code.

    Raises FileNotFoundError when there are no weights, ValueError when they are damaged or in another format.
    """
    folder = Path(folder)
    if (folder / SINGLE_FILE).exists():
        return _read_file(folder / SINGLE_FILE)
    if (folder / INDEX_FILE).exists():
        return _read_shards(folder)
    others = sorted(path.name for path in folder.glob("*") if path.suffix in {".bin", ".pt", ".pth", ".h5", ".msgpack"})
    if others:
        raise ValueError(
            f"{folder} has its weights as {', '.join(others)}; only {SINGLE_FILE} is read. If you trust "
            "the file, load it once with transformers and call its save_pretrained(folder)"
        )
    raise FileNotFoundError(
        f"{folder} has no {SINGLE_FILE} and no {INDEX_FILE}; if it comes from the hub, download it again, "
        "and see there whether the repository offers safetensors at all"
    )


def _read_shards(folder: Path) -> dict[str, Tensor]:
    index = folder / INDEX_FILE
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(shard_of.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not a safetensors index with a 'weight_map' ({error!r}); get it again") from error
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        # A plain name keeps a hostile index from reading outside the folder. Resolving the path would not do:
        # the hub's cache holds links that lead out of it.
        if not isinstance(shard, str) or not re.fullmatch(r"[\w.\-]+\.safetensors", shard):
            raise ValueError(f"{index} names the file {shard!r}; shards must be plain file names in the same folder")
        if not (folder / shard).exists():
            raise FileNotFoundError(f"{index} names {shard}, which is not in the folder; download the model again")
        held = _read_file(folder / shard)
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
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); download or save it again") from error


def split_encoder(tensors: dict[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a checkpoint into the encoder's tensors, without `prefix`, and all others, under their own names.

    A checkpoint of a task model names its encoder's tensors `bert.encoder...`, that of a bare encoder
    `encoder...`. Two kinds of files are brought to the names that our modules have: the oldest BERT files call a
    LayerNorm's weight and bias gamma and beta, and ViT files may have transformers 5's names.
    """
    renamed = {_own_name(name): tensor for name, tensor in tensors.items()}
    dotted = f"{prefix}."
    has_prefix = any(name.startswith(dotted) for name in renamed)
    encoder: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in renamed.items():
        if has_prefix and name.startswith(dotted):
            encoder[name.removeprefix(dotted)] = tensor
        elif not has_prefix and name.split(".")[0] in ENCODER_PARTS:
            encoder[name] = tensor
        else:
            others[name] = tensor
    return {name: tensor for name, tensor in encoder.items() if name not in UNREAD}, others


def _own_name(name: str) -> str:
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return to_old_name(name)
