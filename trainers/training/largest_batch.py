"""How many tokens one training pass may have, found by trying: `--micro-batch-tokens auto`."""

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from trainers.config import TrainConfig
from trainers.data.batches import Data, load_batches
from trainers.processes.distributed import World
from trainers.training.batch_plan import BatchPlan
from trainers.training.memory import TooLittleMemoryError, is_out_of_memory
from trainers.training.precision import autocast

logger = logging.getLogger("trainers")

NEAR = 1.1
"""The search ends when what fits and what does not are as near as this."""
SPARE = 0.9
"""Share of what fits that is taken: the allocator's pieces fit less well after many batches of many sizes."""


def with_largest_batch(model: nn.Module, task: Any, data: Data, config: TrainConfig, world: World) -> TrainConfig:
    """The settings with a number in the place of micro_batch_tokens "auto": the least of all processes.

    It is found once, before training, and said. On a CPU, whose memory is seldom what limits a pass, it is what None
    is. All processes call this.

    Args:
        task: has `training_loss_sum`, as trainers/tasks/task.py describes it.
        data: the training data.

    Raises:
        TooLittleMemoryError: not even the longest example fits.
    """
    if config.micro_batch_tokens != "auto":
        return config
    if world.device.type == "cpu":
        if world.is_main:
            logger.info("--micro-batch-tokens auto is for GPUs; on the CPU passes have their usual size")
        return dataclasses.replace(config, micro_batch_tokens=None)
    most = min(world.gather(tokens_that_fit(model, task, data, config, world)))
    if world.is_main:
        logger.info("--micro-batch-tokens auto: passes of up to %s tokens or images fit the memory", f"{most:,}")
    return dataclasses.replace(config, micro_batch_tokens=most)


def tokens_that_fit(model: nn.Module, task: Any, data: Data, config: TrainConfig, world: World) -> int:
    """Most tokens (or images), padding included, of a training pass of this process that fit its device's memory.

    Passes are tried on the longest examples, with the optimiser's moments in memory. Nothing is changed by it: neither
    the weights nor the random numbers that follow.
    """
    longest = int(max(data.lengths))
    unlimited = dataclasses.replace(config, micro_batch_tokens=None)
    whole = max(longest, BatchPlan(data, unlimited, world, None).pass_tokens)
    order = np.argsort(-np.asarray(data.lengths), kind="stable")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    devices = [world.device] if world.device.type == "cuda" else []

    def fits(tokens: int) -> bool:
        moments = []
        try:
            moments += [torch.empty_like(parameter) for parameter in trained for _ in range(2)]
            indices = np.resize(order, tokens // longest)
            ((inputs, labels),) = load_batches(data, [indices], world.device)
            with autocast(model, config.precision, world.device):
                loss = task.training_loss_sum(model(**inputs), labels)
            loss.backward()
            return True
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            model.zero_grad(set_to_none=True)

    model.train()
    with torch.random.fork_rng(devices):
        most = largest_that_fits(fits, longest, whole)
    if devices:
        torch.cuda.empty_cache()
    return most if most == whole else max(longest, int(most // longest * longest * SPARE))


def largest_that_fits(fits: Callable[[int], bool], lowest: int, highest: int) -> int:
    """A number from ``lowest`` to ``highest`` that fits, and is at most `NEAR` below one that does not, or the highest.

    Raises:
        TooLittleMemoryError: the lowest does not fit.
    """
    if fits(highest):
        return highest
    if lowest == highest or not fits(lowest):
        raise TooLittleMemoryError(
            f"Out of memory: not even one pass of {lowest} tokens (or images) fits, the longest example. Use "
            "--gradient-checkpointing, --precision bf16 (fp16 on a V100), a shorter --max-length or a smaller model."
        )
    while highest > max(lowest * NEAR, lowest + 1):
        middle = min(max(math.isqrt(lowest * highest), lowest + 1), highest - 1)
        if fits(middle):
            lowest = middle
        else:
            highest = middle
    return lowest
