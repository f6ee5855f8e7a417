"""What a run is about to do, as it is said before the first step."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import lora_core
from lora_core.models.task_model import TaskModel
from trainers.config import RunConfig
from trainers.data.images.batches import ImageBatches
from trainers.data.tokens.bio import OUTSIDE, entity_types
from trainers.data.tokens.windows import IGNORED_LABEL, TokenWindows
from trainers.processes.distributed import World
from trainers.recipes import recipe_of
from trainers.show import table_width
from trainers.training.batch_plan import BatchPlan

SHOWN_LABELS = 6
"""Labels that the plan names."""
METHODS = {"lora": "LoRA", "full": "all parameters", "head": "the head alone"}


@dataclass(frozen=True)
class Plan:
    """The plan of a run: what it learns from, what it trains, on what, and how far."""

    lines: tuple[tuple[str, str], ...]
    """(What, the words for it)."""
    unit: str
    """What rates count: tokens, or images."""
    scored_at_end: int
    """How many of them are scored when training is over."""

    def text(self, width: int | None = None) -> str:
        """The plan, a line for each thing, continued where it is wider than the terminal."""
        width = width or table_width()
        margin = max(len(what) for what, _ in self.lines) + 2
        return "\n".join(f"{what.ljust(margin)}{_wrapped(words, margin, width)}" for what, words in self.lines)


def plan_of(
    config: RunConfig, world: World, labels: tuple[str, ...], model: TaskModel, data: Mapping[str, Any]
) -> Plan:
    """The plan of a run.

    Args:
        data: the splits as the model takes them.
    """
    train = data["train"]
    noun, unit = _noun(train)
    counts = [f"{_count(split):,} {name}" for name, split in data.items()]
    trainable, total = lora_core.parameter_counts(model)
    how = METHODS[config.method]
    if config.method == "lora":
        how += f" of rank {config.r} on {', '.join(config.target_modules)}"
        how += " and the head" if config.train_head else ""
    batches = BatchPlan(train, config, world, None)
    steps, epochs = batches.total_steps, batches.epochs
    size = f"{config.batch_tokens:,} tokens" if config.batch_tokens else f"{config.batch_size} {noun}"
    encoder = type(model.base_model).__name__.removesuffix("Model").removesuffix("Encoder")
    lines = {
        "data": f"{config.data or 'in memory'}: {', '.join(counts)} {noun}{_with_entities(train, labels)}",
        "labels": _labels(train, labels),
        "model": f"{config.model}{f' ({encoder})' if encoder else ''}: {total:,} parameters, {trainable:,} of them "
        f"trained ({trainable / total:.2%}): {how}",
        "device": f"{_device(world)}, {config.precision}"
        + (f", frozen weights in {config.frozen}" if config.frozen else ""),
        "training": f"{steps:,} step{_s(steps)} in {epochs} epoch{_s(epochs)}; {size} a step; learning "
        f"rate {_rate(config)}; the best epoch is that of the best {config.metric}",
        "output": str(config.output_dir),
    }
    scored = [data[split].lengths.sum() for split in ("validation", "test") if split in data]
    return Plan(tuple(lines.items()), unit, int(sum(scored)))


def _rate(config: RunConfig) -> str:
    """The learning rate and its course, and whether it is what the recipe says."""
    usual = recipe_of(config).learning_rate == config.learning_rate
    whose = f" (default of method {config.method} for {config.task})" if usual else ""
    faster = f" ({config.lora_plus_ratio:g} times that for B)" if config.lora_plus_ratio not in (None, 1) else ""
    rise = f" after a warmup over {config.warmup:.0%} of the steps" if config.warmup else ""
    return f"{config.learning_rate:g}{faster}{whose}, {config.schedule}{rise}"


def _count(data: Any) -> int:
    """Sentences, texts or pictures of an encoded split."""
    if isinstance(data, TokenWindows):
        return int(data.sentence[-1]) + 1 if len(data) else 0
    return len(data.lengths)


def _noun(data: Any) -> tuple[str, str]:
    """What the examples are called, and what rates count."""
    if isinstance(data, ImageBatches):
        return "pictures", "images"
    return ("sentences" if isinstance(data, TokenWindows) else "texts"), "tokens"


def _with_entities(data: Any, labels: tuple[str, ...]) -> str:
    """The share of the training sentences that have an entity."""
    if not isinstance(data, TokenWindows) or OUTSIDE not in labels or not len(data):
        return ""
    inside = np.flatnonzero((data.labels != IGNORED_LABEL) & (data.labels != labels.index(OUTSIDE)))
    windows = np.unique(np.searchsorted(data.offsets, inside, side="right") - 1)
    return f"; {len(np.unique(data.sentence[windows])) / _count(data):.1%} of the training ones have entities"


def _labels(data: Any, labels: tuple[str, ...]) -> str:
    if isinstance(data, TokenWindows):
        types = entity_types(labels)
        return f"{len(labels)}, for {len(types)} types of entities: {_listed(types)}"
    targets = np.asarray(data.targets)
    if targets.dtype.kind == "f" and targets.ndim == 1:
        return f"a number, from {targets.min():g} to {targets.max():g}"
    counts = targets.sum(0) if targets.ndim == 2 else np.bincount(targets, minlength=len(labels))
    frequent = np.argsort(-counts, kind="stable")
    shares = [f"{labels[label]} ({counts[label] / len(targets):.1%})" for label in frequent]
    return f"{len(labels)}{', any number of them each' if targets.ndim == 2 else ''}: {_listed(shares)}"


def _listed(names: Any) -> str:
    names = list(names)
    more = len(names) - SHOWN_LABELS
    return ", ".join(names[:SHOWN_LABELS]) + (f" and {more} more" if more > 0 else "")


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _device(world: World) -> str:
    """The device, and how many work side by side."""
    many = f"{world.size} processes, each with " if world.size > 1 else ""
    if world.device.type == "cuda":
        return f"{many}{torch.cuda.get_device_name(world.device)}"
    threads = torch.get_num_threads()
    return f"{many}{world.device.type} ({platform.machine()}), {threads} thread{_s(threads)}"


def _wrapped(words: str, margin: int, width: int) -> str:
    """Words over as many lines as it takes, all but the first behind the margin."""
    lines = [""]
    for word in words.split(" "):
        if lines[-1] and margin + len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return f"\n{' ' * margin}".join(lines)
