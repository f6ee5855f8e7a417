"""Everything that a run needs to continue exactly, in one object."""

import logging
import math
import random
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from trainers.processes.distributed import World
from trainers.processes.fsdp import copy_tensors, part_like, whole
from trainers.training.averaging import WeightAverage

logger = logging.getLogger("trainers")

COUNTERS = (
    *("epoch", "batch", "step", "best_score", "best_loss", "best_epoch", "skipped", "skipped_in_row"),
    *("epoch_labels", "epoch_tokens", "epoch_seconds", "tokens", "seconds"),
)
"""Fields of TrainState that a checkpoint holds as they are; they are the same on every process."""


@dataclass
class TrainState:
    """The training run at the border between two steps."""

    model: nn.Module
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    scheduler: LRScheduler
    average: WeightAverage
    """What is scored and kept; of no weights, where the settings want no average."""
    epoch: int = 0
    """Epochs finished."""
    batch: int = 0
    """Global batches done in the current epoch; with the seed it is the position in the data."""
    step: int = 0
    """Optimiser steps done."""
    skipped: int = 0
    """Steps of the current epoch that fp16's scaler has skipped."""
    skipped_in_row: int = 0
    """Steps that it has skipped since the last that it took."""
    best_score: float | None = None
    best_loss: float | None = None
    """The validation loss of the best epoch."""
    best_epoch: int = 0
    epoch_loss: float = 0.0
    """Sum of this process's losses in the current epoch."""
    epoch_labels: int = 0
    epoch_tokens: int = 0
    """Useful tokens (padding not counted), over all processes, in the current epoch."""
    epoch_seconds: float = 0.0
    """Training time of the current epoch; evaluation and checkpoints are not counted."""
    tokens: int = 0
    seconds: float = 0.0
    """Training time of all finished epochs."""

    def __post_init__(self) -> None:
        self._losses: list[Tensor] = []
        self.loss_scale = self.scaler.get_scale()
        """fp16's, after the last step: a GPU is asked for it once a step."""
        self.step_losses: list[tuple[np.ndarray, Tensor]] = []
        """For each micro-batch of this process in the current step, its examples and their summed loss."""
        self.start_clock()

    def start_clock(self) -> None:
        """What follows is training: from here to the end of the next step, time is counted."""
        self._clock = time.perf_counter()

    def add_loss(self, loss_sum: Tensor, examples: np.ndarray) -> None:
        """Count a micro-batch's summed loss; the tensor is read later, so no GPU waits here."""
        self._losses.append(loss_sum)
        self.step_losses.append((examples, loss_sum))

    def end_step(self, labels: int, tokens: int) -> None:
        """Count one optimiser step over a global batch of so many labels and useful tokens."""
        self.step += 1
        self.batch += 1
        self.step_losses.clear()
        self.epoch_labels += labels
        self.epoch_tokens += tokens
        self.epoch_seconds += time.perf_counter() - self._clock
        self.start_clock()

    def end_epoch(self) -> None:
        """Count a finished epoch."""
        self.epoch += 1
        self.batch = 0
        self.seconds += self.epoch_seconds
        self.tokens += self.epoch_tokens

    def local_loss(self, world: World) -> float:
        """This process's mean loss in the epoch so far, for the progress bar."""
        return self.read_loss() * world.size / max(1, self.epoch_labels)

    def pop_epoch(self, world: World) -> dict[str, float]:
        """The finished epoch's mean training loss, time and rate; its counters start anew."""
        figures = {
            "train_loss": sum(world.gather(self.read_loss())) / max(1, self.epoch_labels),
            "seconds": self.epoch_seconds,
            "tokens_per_second": self.epoch_tokens / self.epoch_seconds,
        }
        if self.scaler.is_enabled():
            figures["skipped_steps"] = self.skipped
            if self.skipped and world.is_main:
                logger.info("epoch %d: fp16 skipped %d steps, whose gradients overflowed", self.epoch, self.skipped)
        self.skipped = 0
        self.epoch_loss, self.epoch_labels, self.epoch_tokens, self.epoch_seconds = 0.0, 0, 0, 0.0
        return figures

    def record_score(self, scores: dict[str, Any], metric: str) -> bool:
        """Remember the epoch if its validation score is the best so far; whether it is. Of equal scores, which few
        examples give, that with the lower loss is better."""
        if not isinstance(scores.get(metric), (int, float)):
            known = sorted(name for name, value in scores.items() if isinstance(value, (int, float)))
            raise ValueError(f"metric {metric!r} is not among the validation scores: {', '.join(known)}.")
        score = -scores[metric] if metric == "loss" else scores[metric]
        if math.isnan(score):
            raise FloatingPointError(f"The validation score {metric!r} is not a number after epoch {self.epoch}.")
        loss = scores.get("loss")
        improved = self.best_score is None or score > self.best_score
        if score == self.best_score and loss is not None and self.best_loss is not None:
            improved = loss < self.best_loss
        if improved:
            self.best_score, self.best_loss, self.best_epoch = score, loss, self.epoch
        return improved

    def out_of_patience(self, patience: int | None) -> bool:
        """Whether the score has not improved for ``patience`` epochs."""
        return patience is not None and self.epoch - self.best_epoch >= patience

    def tensors(self) -> dict[str, Tensor]:
        """Trained weights, optimiser moments and the average, by parameter name, whole. All processes must call it
        together."""
        tensors = {f"model.{name}": tensor for name, tensor in trained_tensors(self.model).items()}
        for name, parameter in self.model.named_parameters():
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{slot}.{name}"] = torch.as_tensor(value)
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}
        return whole(tensors)

    def progress(self) -> dict[str, Any]:
        """All that is not a tensor and the same on every process, as JSON."""
        plain = {name: getattr(self, name) for name in COUNTERS}
        return {**plain, "scheduler": self.scheduler.state_dict(), "scaler": self.scaler.state_dict()}

    def restore(self, tensors: dict[str, Tensor], progress: dict[str, Any], world: World) -> None:
        """Continue from what ``tensors`` and ``progress`` returned, with every process's ``random_state`` and
        ``epoch_losses`` in them.

        Raises:
            ValueError: other parameters are trained here than there.
        """
        trained = trained_tensors(self.model)
        stored = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
        different = list(trained.keys() ^ stored.keys())
        different += [name for name in trained.keys() & stored.keys() if trained[name].shape != stored[name].shape]
        if different:
            raise ValueError(
                f"holds other trained parameters than this run: {sorted(different)[:5]} differ. "
                "Resume with the settings of the first run."
            )
        copy_tensors(stored, trained)
        average = {key.removeprefix("average."): value for key, value in tensors.items() if key.startswith("average.")}
        self.average.restore(average)
        for name, parameter in self.model.named_parameters():
            slots = {
                key.split(".")[1]: value
                for key, value in tensors.items()
                if key.startswith("optimizer.") and key.split(".", 2)[2] == name
            }
            if slots:  # copies: the tensors of a file are parts of it, which would stay open
                self.optimizer.state[parameter] = {
                    slot: part_like(value, parameter).clone() for slot, value in slots.items()
                }
        progress = dict(progress)
        randoms = progress.pop("random")
        losses = progress.pop("epoch_losses", [0.0] * len(randoms))
        progress.pop("epoch_loss", None)  # of older checkpoints, which were written between epochs only: 0
        self.scheduler.load_state_dict(progress.pop("scheduler"))
        scaler = progress.pop("scaler")
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(scaler)
            self.loss_scale = self.scaler.get_scale()
        for name, value in progress.items():
            setattr(self, name, value)
        if self.batch == 0:  # older checkpoints still hold the time of the epoch before
            self.epoch_seconds = 0.0
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        if len(randoms) != world.size:
            self.epoch_loss = sum(losses) if world.is_main else 0.0
            logger.warning(
                "The run was begun by %d processes and is resumed by %d: the data order is the same, dropout is not.",
                len(randoms),
                world.size,
            )
        else:
            self.epoch_loss = losses[world.rank]
            set_random_state(randoms[world.rank], tensors, world)

    def read_loss(self) -> float:
        """``epoch_loss``, up to date. Added one by one: when it was read before does not change a bit of it."""
        if self._losses:
            for loss in torch.stack(self._losses).double().tolist():
                self.epoch_loss += loss
            self._losses.clear()
        return self.epoch_loss


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


def random_state(world: World) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """This process's generators: what JSON can hold, and tensors named by rank."""
    tensors = {f"random.torch.{world.rank}": torch.get_rng_state()}
    if world.device.type == "cuda":
        tensors[f"random.cuda.{world.rank}"] = torch.cuda.get_rng_state()
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    numpy_state = [kind, np.asarray(keys).tolist(), position, has_gauss, gauss]
    return {"python": random.getstate(), "numpy": numpy_state}, tensors


def set_random_state(plain: dict[str, Any], tensors: dict[str, Tensor], world: World) -> None:
    torch.set_rng_state(tensors[f"random.torch.{world.rank}"])
    if world.device.type == "cuda":
        torch.cuda.set_rng_state(tensors[f"random.cuda.{world.rank}"])
    version, values, gauss = plain["python"]
    random.setstate((version, tuple(values), gauss))
    np.random.set_state(tuple(plain["numpy"]))  # noqa: NPY002
