"""Which examples make up each step of the optimiser, and what of it this process computes, pass after pass.

All that training asks of its data: the loop reads `for step in plan.steps(epoch)`, `for part in step.parts`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor

from trainers.config import TrainConfig
from trainers.data.batches import Data, epoch_batches, load_batches, share, share_by_tokens, total_steps
from trainers.processes.distributed import World
from trainers.recipes import usual_epochs


@dataclass(frozen=True)
class Part:
    """What one forward and backward pass computes."""

    inputs: dict[str, Tensor]
    """The model's keyword arguments, on the device."""
    labels: Tensor
    weight: float
    """Factor of the part's summed loss, with which the gradients of all parts on all processes add up to the mean over
    the labels of the whole batch: the processes (DDP averages over them) / labels. 0 for a process without examples of
    its own, which still takes part in the exchange of gradients."""
    last: bool
    """Whether it is this process's last part of the step, in which gradients are exchanged."""
    examples: np.ndarray
    """The places of its examples in the training data, counted from 0."""


@dataclass(frozen=True)
class Step:
    """A global batch: one step of the optimiser."""

    parts: Iterator[Part]
    """This process's share. To be read to its end, once."""
    labels: int
    """Labels of the whole batch over all processes, at least 1."""
    tokens: int
    """Useful tokens (padding not counted) of the whole batch."""


class BatchPlan:
    """The steps of a whole training, as the settings cut them. They depend on the seed and the epoch alone."""

    def __init__(self, data: Data, config: TrainConfig, world: World, most_tokens: int | None) -> None:
        """
        Args:
            most_tokens: of one pass, padding included; None: `micro_batch_size` counts.
        """
        self.data, self.world, self.most_tokens = data, world, most_tokens
        self.most_examples, self.workers = config.micro_batch_size, config.workers
        self.in_step = config.parallel == "fsdp"  # the processes then exchange parameters in every pass
        self._recipe: dict[str, Any] = {
            "batch_size": config.batch_size,
            "seed": config.seed,
            "group": config.group_by_length,
            "batch_tokens": config.batch_tokens,
        }
        in_one = total_steps(data.lengths, epochs=1, **self._recipe)
        self.epochs = usual_epochs(config, in_one) if config.epochs is None else config.epochs

    @property
    def total_steps(self) -> int:
        """Steps of all epochs."""
        return total_steps(self.data.lengths, epochs=self.epochs, **self._recipe)

    @property
    def pass_tokens(self) -> int:
        """Most tokens (or images) in one pass, padding included."""
        if self.most_tokens is not None:
            return self.most_tokens
        examples = self.most_examples or max(1, self._recipe["batch_size"] // self.world.size)
        most = examples * int(max(self.data.lengths, default=1))
        whole = self._recipe["batch_tokens"]
        return min(most, whole) if whole and self.most_examples else whole or most

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The global batches of an epoch: for each the indices of its examples, the same on every process."""
        return epoch_batches(self.data.lengths, epoch=epoch, **self._recipe)

    def steps(self, epoch: int, first: int = 0) -> Iterator[Step]:
        """The steps of an epoch, from its batch number ``first`` on."""
        batches = self.batches(epoch)[first:]
        shares = [self._share(batch) for batch in batches]
        read = [
            indices if len(indices) else batch[:1]  # a process without examples computes one, with weight 0
            for batch, parts in zip(batches, shares, strict=True)
            for indices in parts
        ]
        loaded = load_batches(self.data, read, self.world.device, epoch=epoch, workers=self.workers)
        examples = iter(read)
        for batch, parts in zip(batches, shares, strict=True):
            labels = max(1, int(self.data.label_counts[batch].sum()))
            weights = [self.world.size / labels if len(indices) else 0.0 for indices in parts]
            yield Step(
                (
                    Part(inputs, targets, weight, last=number == len(weights), examples=next(examples))
                    for number, (weight, (inputs, targets)) in enumerate(
                        zip(weights, islice(loaded, len(weights)), strict=True), start=1
                    )
                ),
                labels,
                tokens=int(self.data.lengths[batch].sum()),
            )

    def _share(self, batch: np.ndarray) -> list[np.ndarray]:
        """This process's part of a global batch, for each of its passes."""
        world = self.world
        if self.most_tokens is not None:
            shares = [
                share_by_tokens(batch, self.data.lengths, rank, world.size, self.most_tokens)
                for rank in (range(world.size) if self.in_step else [world.rank])
            ]
            mine = shares[world.rank if self.in_step else 0]
            return mine + [batch[:0]] * (max(map(len, shares)) - len(mine))
        most = self.most_examples or len(batch)
        return share(batch, world.rank, world.size, micro_batches=-(-len(batch) // (world.size * most)))
