"""Optimiser, learning-rate schedule, and one step of both."""

import math
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from lora_core.adapters import hosts
from lora_core.extras.lora_plus import lora_plus_groups
from trainers.config import TrainConfig
from trainers.processes.distributed import World
from trainers.processes.fsdp import whole
from trainers.recipes import RECIPES
from trainers.training.numbers import count_skip, not_finite
from trainers.training.state import TrainState


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; vectors (biases, norms) are not decayed.

    A learning rate that is left open is that of texts, the most cautious; a run has its own recipe's by then.
    Of a model with adapters, B and what is trained in full may learn at other rates than A (LoRA+).
    """
    adapted = any(hosts(model))
    rate, ratio = config.learning_rate, config.lora_plus_ratio or 1.0
    if rate is None:
        cautious = RECIPES["lora" if adapted else "full", "text-classification"]
        rate, ratio = cautious.learning_rate, config.lora_plus_ratio or cautious.lora_plus_ratio
    if adapted and (ratio, config.head_rate_ratio) != (1, 1):
        head_rate = rate * config.head_rate_ratio
        return torch.optim.AdamW(lora_plus_groups(model, rate, ratio, head_rate, config.weight_decay), fused=True)
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("The model has no trainable parameter. Inject LoRA, or set requires_grad on what to train.")
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, fused=True)


def build_scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig, total_steps: int) -> LambdaLR:
    """Linear warmup, then linear or cosine decay to zero at ``total_steps``, or a constant rate."""
    warmup_steps = round((config.warmup or 0) * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}[config.schedule]

    return LambdaLR(optimizer, factor)


def take_step(state: TrainState, max_grad_norm: float, world: World, folder: Path) -> None:
    """Clip the gradients to ``max_grad_norm`` (0: not at all), let the optimiser step, and clear them.

    A step that fp16's scaler skips, for a gradient is not finite, does not count for the schedule; it is counted.

    Args:
        folder: the run's, of which an error says whether it has a checkpoint.

    Raises:
        FloatingPointError: on every process, before any weight is changed: a gradient is not finite; with fp16, too
            often in a row.
    """
    scaler = state.scaler
    scaler.unscale_(state.optimizer)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), max_grad_norm or float("inf"))
    norm = whole({"norm": norm})["norm"]
    if not scaler.is_enabled() and not norm.isfinite():
        raise not_finite(state, world, folder)
    scaler.step(state.optimizer)
    scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    before, state.loss_scale = state.loss_scale, scaler.get_scale()
    if state.loss_scale >= before:
        state.scheduler.step()
        state.average.update(state.scheduler.last_epoch)  # the number of steps that were taken
        state.skipped_in_row = 0
    else:
        count_skip(state, world, folder)
