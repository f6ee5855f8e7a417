"""Checkpoints on disk: written whole or not at all, checked before they are read.

A checkpoint is a folder `checkpoints/step-N` with tensors.safetensors (trained weights, optimiser moments, random
states), state.json (progress, schedule, scaler) and manifest.json (sha256 of both). It is written under a temporary
name, flushed to disk and renamed, so a folder of that name is complete; the manifest also finds later damage.
"""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_core.files import replacing, sha256_of_file
from trainers.run_folder import RunFolder
from trainers.training.distributed import World
from trainers.training.state import TrainState, random_state, trained_tensors

logger = logging.getLogger("trainers")

TENSORS, PROGRESS, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"


def load_checkpoint(state: TrainState, checkpoint: Path, world: World) -> None:
    """Continue from a checkpoint.

    Raises:
        ValueError: it is damaged, or belongs to a run with other trained parameters.
    """
    problem = damage(checkpoint)
    if problem:
        raise ValueError(
            f"{checkpoint} cannot be resumed from: {problem}. Name another checkpoint, or use --resume auto."
        )
    progress = json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))
    try:
        state.restore(load_file(checkpoint / TENSORS), progress, world)
    except ValueError as error:
        raise ValueError(f"{checkpoint} {error}") from error


def save_checkpoint(state: TrainState, folder: Path, keep: int, world: World) -> None:
    """Write `checkpoints/step-N`, and remove what is older than the newest ``keep`` or later than this one."""
    mine, mine_tensors = random_state(world)
    randoms, losses, random_tensors = [], [], {}
    for other, loss, tensors in world.gather((mine, state.read_loss(), mine_tensors)):
        randoms.append(other)
        losses.append(loss)
        random_tensors |= tensors
    if world.is_main:
        root = RunFolder(folder).checkpoints
        _write(
            root / f"step-{state.step}",
            state.tensors() | random_tensors,
            {**state.progress(), "random": randoms, "epoch_losses": losses},
        )
        _remove_unneeded(root, state.step, keep)
    world.barrier()


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest undamaged checkpoint of a run folder; damaged ones are skipped with a warning."""
    for _, checkpoint in _newest_first(RunFolder(folder).checkpoints, "step"):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning("%s is skipped: %s.", checkpoint, problem)
    return None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files; None when they are as they were written."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        for name, digest in manifest.items():
            if sha256_of_file(checkpoint / name) != digest:
                return f"{name} is not as it was written"
        missing = {TENSORS, PROGRESS} - set(manifest)
    except (OSError, ValueError, AttributeError) as error:
        return f"it is incomplete or its manifest is damaged ({error})"
    return f"the manifest does not list {sorted(missing)}" if missing else None


def save_best(state: TrainState, folder: Path, world: World) -> None:
    """Keep the trained weights of the best epoch so far, in `checkpoints/best-EPOCH`."""
    if world.is_main:
        _write(RunFolder(folder).checkpoints / f"best-{state.best_epoch}", trained_tensors(state.model), {})
    world.barrier()


def restore_best(state: TrainState, folder: Path, world: World) -> None:
    """Put the best epoch's weights back into the model."""
    best = RunFolder(folder).checkpoints / f"best-{state.best_epoch}"
    problem = damage(best)
    if problem:
        raise ValueError(f"{best} cannot be read: {problem}. Resume from a checkpoint, or train again.")
    tensors = load_file(best / TENSORS)
    with torch.no_grad():
        for name, tensor in trained_tensors(state.model).items():
            tensor.copy_(tensors[name])
    world.barrier()


def _remove_unneeded(root: Path, step: int, keep: int) -> None:
    """Keep the newest ``keep`` checkpoints up to ``step``, and the best weights that these refer to.

    Later checkpoints were damaged, or the user went back behind them; they must not be taken for the newest.
    """
    checkpoints = _newest_first(root, "step")
    kept = [path for number, path in checkpoints if number <= step][:keep]
    needed = [root / f"best-{_best_epoch(path)}" for path in kept]
    for _, path in (*checkpoints, *_newest_first(root, "best")):
        if path not in (*kept, *needed):
            shutil.rmtree(path)


def _best_epoch(checkpoint: Path) -> int | None:
    try:
        return json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))["best_epoch"]
    except (OSError, ValueError, KeyError):  # a damaged checkpoint needs nothing
        return None


def _write(target: Path, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
    """Write a checkpoint so that ``target`` is either complete or as it was."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as folder:  # it may be there: the same step or epoch, repeated after an interruption
        folder.mkdir()
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / TENSORS)
        (folder / PROGRESS).write_text(json.dumps(progress, indent=1), encoding="utf-8")
        manifest = {name: sha256_of_file(folder / name) for name in (TENSORS, PROGRESS)}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _newest_first(root: Path, kind: str) -> list[tuple[int, Path]]:
    """(N, folder) of the folders named KIND-N, largest N first; anything else is none of ours."""
    found = [
        (int(match[1]), path)
        for path in (root.iterdir() if root.is_dir() else ())
        if (match := re.fullmatch(rf"{kind}-(\d+)", path.name)) and path.is_dir()
    ]
    return sorted(found, reverse=True)
