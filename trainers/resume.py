"""Everything that a run needs to continue exactly, in one object, and its checkpoints on disk.

A checkpoint is a folder `checkpoints/step-N` with tensors.safetensors (trained weights, optimiser moments, random
states), state.json (progress, schedule, scaler) and manifest.json (sha256 of both). It is written under a temporary
name, flushed to disk and renamed, so a folder of that name is complete; the manifest also finds later damage.
"""

import dataclasses
import hashlib
import json
import logging
import os
import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from trainers.distributed import World

logger = logging.getLogger("trainers")

CHECKPOINTS = "checkpoints"
TENSORS, PROGRESS, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"


@dataclass
class TrainState:
    """The training run at the border between two steps."""

    model: nn.Module
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    scheduler: LRScheduler
    epoch: int = 0
    """Epochs finished."""
    batch: int = 0
    """Global batches done in the current epoch; with the seed it is the position in the data."""
    step: int = 0
    """Optimiser steps done."""
    best_score: float | None = None
    best_epoch: int = 0
    epoch_loss: float = 0.0
    """Sum of this process's losses in the current epoch."""
    epoch_labels: int = 0
    epoch_tokens: int = 0
    """Useful tokens (padding not counted), over all processes, in the current epoch."""
    epoch_seconds: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    """Training time of all finished epochs, evaluation not counted."""

    def __post_init__(self) -> None:
        self._losses: list[Tensor] = []

    def add_loss(self, loss_sum: Tensor) -> None:
        """Count a micro-batch's summed loss; the tensor is read later, so no GPU waits here."""
        self._losses.append(loss_sum)

    def end_step(self, labels: int, tokens: int) -> None:
        """Count one optimiser step over a global batch of so many labels and useful tokens."""
        self.step += 1
        self.batch += 1
        self.epoch_labels += labels
        self.epoch_tokens += tokens

    def end_epoch(self, seconds: float) -> None:
        """Count a finished epoch."""
        self.epoch += 1
        self.batch = 0
        self.epoch_seconds = seconds
        self.seconds += seconds
        self.tokens += self.epoch_tokens

    def local_loss(self, world: World) -> float:
        """This process's mean loss in the epoch so far, for the progress bar."""
        self._read_losses()
        return self.epoch_loss * world.size / max(1, self.epoch_labels)

    def pop_epoch(self, world: World) -> dict[str, float]:
        """The finished epoch's mean training loss, time and rate; its counters start anew."""
        self._read_losses()
        figures = {
            "train_loss": sum(world.gather(self.epoch_loss)) / max(1, self.epoch_labels),
            "seconds": self.epoch_seconds,
            "tokens_per_second": self.epoch_tokens / self.epoch_seconds,
        }
        self.epoch_loss, self.epoch_labels, self.epoch_tokens = 0.0, 0, 0
        return figures

    def record_score(self, scores: dict[str, Any], metric: str) -> bool:
        """Remember the epoch if its validation score is the best so far; whether it is."""
        if not isinstance(scores.get(metric), (int, float)):
            known = sorted(name for name, value in scores.items() if isinstance(value, (int, float)))
            raise ValueError(f"metric {metric!r} is not among the validation scores: {', '.join(known)}.")
        score = -scores[metric] if metric == "loss" else scores[metric]
        improved = self.best_score is None or score > self.best_score
        if improved:
            self.best_score, self.best_epoch = score, self.epoch
        return improved

    def out_of_patience(self, patience: int | None) -> bool:
        """Whether the score has not improved for ``patience`` epochs."""
        return patience is not None and self.epoch - self.best_epoch >= patience

    def tensors(self) -> dict[str, Tensor]:
        """Trained weights and optimiser moments, by parameter name."""
        tensors = {f"model.{name}": tensor for name, tensor in trained_tensors(self.model).items()}
        for name, parameter in self.model.named_parameters():
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{slot}.{name}"] = torch.as_tensor(value)
        return tensors

    def progress(self) -> dict[str, Any]:
        """All that is not a tensor, as JSON."""
        self._read_losses()
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[4:]}
        return {**plain, "scheduler": self.scheduler.state_dict(), "scaler": self.scaler.state_dict()}

    def load(self, folder: Path, world: World) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: it is damaged, or belongs to a run with other trained parameters or another number of
                processes.
        """
        problem = damage(folder)
        if problem:
            raise ValueError(
                f"{folder} cannot be resumed from: {problem}. Name another checkpoint, or use --resume auto."
            )
        tensors = load_file(folder / TENSORS)
        trained = trained_tensors(self.model)
        stored = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
        different = list(trained.keys() ^ stored.keys())
        different += [name for name in trained.keys() & stored.keys() if trained[name].shape != stored[name].shape]
        if different:
            raise ValueError(
                f"{folder} holds other trained parameters than this run: {sorted(different)[:5]} differ. "
                "Resume with the settings of the first run."
            )
        with torch.no_grad():
            for name, tensor in trained.items():
                tensor.copy_(stored[name])
        for name, parameter in self.model.named_parameters():
            slots = {key.split(".")[1]: value for key, value in tensors.items()
                     if key.startswith("optimizer.") and key.split(".", 2)[2] == name}  # fmt: skip
            if slots:
                self.optimizer.state[parameter] = {slot: value.to(parameter.device) for slot, value in slots.items()}
        progress = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        randoms = progress.pop("random")
        self.scheduler.load_state_dict(progress.pop("scheduler"))
        scaler = progress.pop("scaler")
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(scaler)
        for name, value in progress.items():
            setattr(self, name, value)
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        if len(randoms) != world.size:
            logger.warning(
                "%s was written by %d processes and is resumed by %d: the data order is the same, dropout is not.",
                folder,
                len(randoms),
                world.size,
            )
        else:
            _set_random_state(randoms[world.rank], tensors, world)

    def _read_losses(self) -> None:
        if self._losses:
            self.epoch_loss += torch.stack(self._losses).double().sum().item()
            self._losses.clear()


def seed_generators(seed: int) -> None:
    """Seed every random generator whose state a checkpoint holds."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: trainable parameters and the buffers that a state dict holds."""
    tensors: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    persistent = model.state_dict(keep_vars=True)
    return tensors | {name: buffer for name, buffer in model.named_buffers() if name in persistent}


def save_checkpoint(state: TrainState, folder: Path, keep: int, world: World) -> None:
    """Write `checkpoints/step-N`, and remove what is older than the newest ``keep`` or later than this one."""
    mine, mine_tensors = _random_state(world)
    randoms, random_tensors = [], {}
    for other, tensors in world.gather((mine, mine_tensors)):
        randoms.append(other)
        random_tensors |= tensors
    if world.is_main:
        root = folder / CHECKPOINTS
        _write(
            root / f"step-{state.step}",
            state.tensors() | random_tensors,
            {**state.progress(), "random": randoms},
        )
        _remove_unneeded(root, state.step, keep)
    world.barrier()


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest undamaged checkpoint of a run folder; damaged ones are skipped with a warning."""
    for _, checkpoint in _newest_first(folder / CHECKPOINTS, "step"):
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
            if _sha256(checkpoint / name) != digest:
                return f"{name} is not as it was written"
        missing = {TENSORS, PROGRESS} - set(manifest)
    except (OSError, ValueError, AttributeError) as error:
        return f"it is incomplete or its manifest is damaged ({error})"
    return f"the manifest does not list {sorted(missing)}" if missing else None


def save_best(state: TrainState, folder: Path, world: World) -> None:
    """Keep the trained weights of the best epoch so far, in `checkpoints/best-EPOCH`."""
    if world.is_main:
        _write(folder / CHECKPOINTS / f"best-{state.best_epoch}", trained_tensors(state.model), {})
    world.barrier()


def restore_best(state: TrainState, folder: Path, world: World) -> None:
    """Put the best epoch's weights back into the model."""
    best = folder / CHECKPOINTS / f"best-{state.best_epoch}"
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
    temporary = target.with_name(f"{target.name}.incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary / TENSORS)
    (temporary / PROGRESS).write_text(json.dumps(progress, indent=1), encoding="utf-8")
    manifest = {name: _sha256(temporary / name) for name in (TENSORS, PROGRESS)}
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in (*temporary.iterdir(), temporary):
        _flush(path)
    if target.exists():  # the same step or epoch, repeated after an interruption
        shutil.rmtree(target)
    os.replace(temporary, target)
    _flush(target.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _newest_first(root: Path, kind: str) -> list[tuple[int, Path]]:
    """(N, folder) of the folders named KIND-N, largest N first; anything else is none of ours."""
    found = [(int(match[1]), path) for path in (root.iterdir() if root.is_dir() else ())
             if (match := re.fullmatch(rf"{kind}-(\d+)", path.name)) and path.is_dir()]  # fmt: skip
    return sorted(found, reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _random_state(world: World) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """This process's generators: what JSON can hold, and tensors named by rank."""
    tensors = {f"random.torch.{world.rank}": torch.get_rng_state()}
    if world.device.type == "cuda":
        tensors[f"random.cuda.{world.rank}"] = torch.cuda.get_rng_state()
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    numpy_state = [kind, np.asarray(keys).tolist(), position, has_gauss, gauss]
    return {"python": random.getstate(), "numpy": numpy_state}, tensors


def _set_random_state(plain: dict[str, Any], tensors: dict[str, Tensor], world: World) -> None:
    torch.set_rng_state(tensors[f"random.torch.{world.rank}"])
    if world.device.type == "cuda":
        torch.cuda.set_rng_state(tensors[f"random.cuda.{world.rank}"])
    version, values, gauss = plain["python"]
    random.setstate((version, tuple(values), gauss))
    np.random.set_state(tuple(plain["numpy"]))  # noqa: NPY002
