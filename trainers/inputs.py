"""What a run is made from: digests of its data, labels, tokenizer and base weights, in inputs.json of its folder.

A run that goes on must find the inputs that it was begun with, and all its processes the same ones: else it would train
on with others, and no score would tell. Settings alone do not say that a file behind a path has changed.

Data is told by what the model is given of it, in its order, so that a blank line more or a moved folder is no change.
Files of weights are read whole up to `WHOLE` bytes; of larger ones the size, the beginning, where safetensors lists its
tensors, and blocks at equal distances, so that another model is noticed, but not every change of a few numbers.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lora_core.files import BLOCK, read_json_object, sha256_of_file
from lora_core.formats.pickled import PICKLED_FILE, PICKLED_INDEX
from lora_core.models.pretrained.source import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, resolve
from trainers.config import RESUME_MAY_CHANGE, RunConfig
from trainers.data.images.batches import ImageBatches
from trainers.data.tokenizer import load_tokenizer
from trainers.model import is_scratch, tokenizer_folder
from trainers.processes.distributed import World
from trainers.run_folder import RunFolder

logger = logging.getLogger("trainers")

WEIGHT_FILES = (SINGLE_FILE, INDEX_FILE, PICKLED_FILE, PICKLED_INDEX)
"""Where a model's weights are, in the order in which they are looked for."""
WHOLE = 1 << 30
"""Bytes of a weights file up to which all of it is read: some 270 million parameters in fp32."""
BLOCKS = 256
"""Blocks of a megabyte that are read of a larger file."""
MAY_CHANGE = "test"
"""The split that no checkpoint depends on."""
SHOWN = 12
"""Characters of a digest, and labels of a list, that a message shows."""


def inputs_of(config: RunConfig, labels: tuple[str, ...], data: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is made from, as inputs.json holds it.

    Args:
        config: its settings.
        labels: label names in the order of their ids.
        data: the splits as the model takes them, each with a `content`.
    """
    inputs: dict[str, Any] = {"data": {split: _examples(encoded) for split, encoded in data.items()}}
    inputs["labels"] = list(labels)
    if isinstance(data["train"], ImageBatches):
        inputs["preprocessing"] = _digest([repr(data["train"].processing)])
    else:
        inputs["tokenizer"] = _digest([load_tokenizer(tokenizer_folder(config)).to_str()])
    if not is_scratch(config):
        inputs["model"] = weights_of(resolve(config.model))
    settings = {name: value for name, value in config.to_dict().items() if name not in RESUME_MAY_CHANGE}
    inputs["run"] = _digest([json.dumps([settings, _lasting(inputs)], sort_keys=True)])[:SHOWN]
    return inputs


def check_processes(inputs: dict[str, Any], world: World) -> None:
    """Check that every process has the inputs of the first. All of them call this.

    Raises:
        ValueError: one has not, on every process; the message names the first that differs, and in what.
    """
    first, *others = world.gather(inputs)
    for rank, other in enumerate(others, start=1):
        differing = differences(first, other, "on rank 0", f"on rank {rank}")
        if differing:
            raise ValueError(
                f"The processes do not have the same inputs. Rank {rank} differs from rank 0: {'; '.join(differing)}. "
                "Give the same files to every machine (--data, --model), and the same versions of the libraries."
            )


def check_unchanged(folder: RunFolder, inputs: dict[str, Any]) -> None:
    """Check that a run that goes on has the inputs that it was begun with. Another test split is only said.

    Raises:
        ValueError: it has not; the message says what was and what is now.
    """
    old = folder.read_inputs()
    if not old:
        logger.warning(
            "%s has no %s: whether data, tokenizer and base weights are as when the run was begun is not known.",
            folder.path,
            folder.inputs.name,
        )
        return
    changed = differences(_lasting(old), _lasting(inputs), "was", "now")
    if changed:
        raise ValueError(
            f"{folder.path} was begun with other inputs: {'; '.join(changed)}. Restore them, begin anew with "
            "--overwrite, or choose another --output-dir."
        )
    tests = [values["data"].get(MAY_CHANGE) for values in (old, inputs)]
    if tests[0] != tests[1]:
        if tests[0]:  # else it was not to be scored
            was, now = map(_count, tests)
            logger.warning("The test split is another than when the run began (%s, now %s): the new one is scored.",
                           was, now)  # fmt: skip
        folder.write_inputs({**inputs, "run": old["run"]})


def say_if_changed(folder: RunFolder, split: str, encoded: Any) -> None:
    """Warn where a split of a run's own data is not what it was when the run began."""
    old = folder.read_inputs().get("data", {}).get(split)
    now = _examples(encoded)
    if old and old != now:
        logger.warning(
            "the %s split is not what it was when %s began (%s, now %s): scored is what it holds now%s",
            split, folder.path, _count(old), _count(now),
            "" if split == MAY_CHANGE else ", perhaps examples that the run was trained on",
        )  # fmt: skip


def differences(one: dict[str, Any], other: dict[str, Any], first: str, second: str) -> list[str]:
    """In what two runs' inputs differ, in words.

    Args:
        first: what to call the state of ``one``: "was", "on rank 0".
        second: that of ``other``.
    """
    found = []
    for name, what in (("tokenizer", "tokenizer"), ("preprocessing", "preprocessing of the pictures")):
        if one.get(name) != other.get(name):
            found.append(f"{what} {first} {str(one.get(name))[:SHOWN]}, {second} {str(other.get(name))[:SHOWN]}")
    cut_otherwise = bool(found)  # then the same examples have other digests too
    for split in {**one["data"], **other["data"]}:
        mine, theirs = one["data"].get(split), other["data"].get(split)
        if mine == theirs:
            continue
        if mine is None or theirs is None or mine["examples"] != theirs["examples"]:
            found.append(f"data of split {split}: {first} {_count(mine)}, {second} {_count(theirs)}")
        elif not cut_otherwise:
            found.append(f"data of split {split}: {_count(mine)} both times, but others, or in another order")
    if one["labels"] != other["labels"]:
        found.append(f"labels {first} {_listed(one['labels'])}, {second} {_listed(other['labels'])}")
    mine, theirs = one.get("model") or {}, other.get("model") or {}
    found += [
        f"{name} of the base model {first} {_file(mine.get(name))}, {second} {_file(theirs.get(name))}"
        for name in {**mine, **theirs}
        if mine.get(name) != theirs.get(name)
    ]
    return found


def _lasting(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs that checkpoints depend on."""
    return {**inputs, "data": {name: split for name, split in inputs["data"].items() if name != MAY_CHANGE}}


def _examples(encoded: Any) -> dict[str, Any]:
    count, parts = encoded.content()
    return {"examples": count, "sha256": _digest(parts)}


def weights_of(folder: Path) -> dict[str, Any]:
    """Size and digest of a model's config.json and of the files that its weights were read from, just now."""
    first = next(folder / name for name in WEIGHT_FILES if (folder / name).exists())
    shards = set(read_json_object(first, "")["weight_map"].values()) if first.suffix == ".json" else ()
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": _digest_of_file(path)}
        for path in (folder / CONFIG_FILE, first, *(folder / shard for shard in sorted(shards)))
    }


def _digest_of_file(path: Path) -> str:
    size = path.stat().st_size
    if size <= WHOLE:
        return sha256_of_file(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in range(BLOCKS):
            file.seek(block * (size - BLOCK) // (BLOCKS - 1))  # the first is the beginning, the last the end
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def _digest(parts: Iterable[np.ndarray | str | bytes]) -> str:
    """sha256 of arrays and texts, one after another, with their types and sizes between them."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            content, kind = np.ascontiguousarray(part).data, f"{part.dtype.str}{part.shape}"
        else:
            content = part.encode() if isinstance(part, str) else part
            kind = str(len(content))
        digest.update(f"{kind}:".encode())
        digest.update(content)
    return digest.hexdigest()


def _count(split: dict[str, Any] | None) -> str:
    return "none" if split is None else f"{split['examples']:,} examples"


def _listed(labels: list[str]) -> str:
    return str(labels[:SHOWN]) if len(labels) <= SHOWN else f"{labels[:SHOWN]} and {len(labels) - SHOWN} more"


def _file(about: dict[str, Any] | None) -> str:
    return "none" if about is None else f"{about['sha256'][:SHOWN]} ({about['bytes']:,} bytes)"
