"""The training loop: read this page first.

    for every global batch:   each process takes its share, in micro-batches
        loss = sum over the share / labels in the global batch * processes      (DDP averages over processes)
        backward, clip, step, schedule
    after every epoch:        evaluate, keep the best, write a checkpoint that resume continues from exactly

Losses are sums divided once by the number of labels in the whole batch, so the gradient does not depend on how
many processes and micro-batches share the work.
"""

import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from trainers.config import TrainConfig
from trainers.data.batches import (
    Data,
    epoch_batches,
    evaluation_batches,
    load_batches,
    share,
    share_by_tokens,
    total_steps,
)
from trainers.run_folder import MetricsLog
from trainers.tasks.task import Task
from trainers.training.adversarial import build_adversary
from trainers.training.checkpoints import load_checkpoint, restore_best, save_best, save_checkpoint
from trainers.training.distributed import World
from trainers.training.optim import build_optimizer, build_scheduler
from trainers.training.precision import autocast, choose_kernels, grad_scaler, micro_batch_tokens
from trainers.training.state import TrainState, seed_generators


def fit(
    model: nn.Module, task: Task, train: Data, validation: Data, config: TrainConfig, world: World, folder: Path,
    resume_from: Path | None = None,
) -> TrainState:  # fmt: skip
    """Train what requires grad in ``model``, and leave the best epoch's weights in it.

    The model keeps the layers that ``config.kernels`` chose; lora_core.kernels.fused.unfuse gives it the plain ones.

    Args:
        folder: the run folder; metrics.jsonl and checkpoints/ are written into it.
        resume_from: a checkpoint to continue from, exactly as if the run had not been interrupted.

    Returns:
        The state at the end: steps, epochs, best epoch and score, seconds and tokens trained.

    Raises:
        ValueError: nothing is trainable, or the checkpoint belongs to another run.
        FloatingPointError: the loss or a gradient is not finite (with fp16, such steps are skipped instead).
    """
    seed_generators(config.seed + world.rank)
    model.to(world.device)
    choose_kernels(model, config, world.device)
    most_tokens = micro_batch_tokens(model, config)
    recipe: dict[str, Any] = {"batch_size": config.batch_size, "seed": config.seed, "group": config.group_by_length,
                              "batch_tokens": config.batch_tokens}  # fmt: skip
    optimizer = build_optimizer(model, config)
    steps = total_steps(train.lengths, epochs=config.epochs, **recipe)
    scheduler = build_scheduler(optimizer, config, total_steps=steps)
    scaler = grad_scaler(config.precision, world.device)
    state = TrainState(model, optimizer, scaler, scheduler)
    if resume_from is not None:
        load_checkpoint(state, resume_from, world)
    log = MetricsLog(folder, resume_at=state.step, writes=world.is_main)
    parallel = world.wrap(model)
    adversary = build_adversary(model, config)

    while state.epoch < config.epochs and not state.out_of_patience(config.patience):
        batches = epoch_batches(train.lengths, epoch=state.epoch, **recipe)
        progress = tqdm(batches[state.batch :], f"epoch {state.epoch + 1}/{config.epochs}", len(batches),
                        initial=state.batch, disable=not world.is_main, unit="step", leave=False)  # fmt: skip
        shares = [_share(batch, train.lengths, config, most_tokens, world) for batch in batches[state.batch :]]
        # A process without examples of its own still takes part in the exchange of gradients.
        loaded = load_batches(train, [indices if len(indices) else batch[:1] for batch, micro in
                                      zip(batches[state.batch :], shares, strict=True) for indices in micro],
                              world.device, epoch=state.epoch, workers=config.workers)  # fmt: skip
        parallel.train()
        started = time.perf_counter()
        for batch, micro in zip(progress, shares, strict=True):
            labels_in_batch = max(1, int(train.label_counts[batch].sum()))
            for perturbed, parts in adversary.passes(islice(loaded, len(micro))):  # one, unless training is adversarial
                for number, (indices, (inputs, labels)) in enumerate(zip(micro, parts, strict=True)):
                    weight = world.size / labels_in_batch if len(indices) else 0.0
                    with world.accumulate(parallel, last=number == len(micro) - 1):
                        with autocast(model, config.precision, world.device):
                            loss = task.training_loss_sum(parallel(**inputs), labels) * weight
                        scaler.scale(loss).backward()
                    if not perturbed:
                        state.add_loss(loss.detach() * (labels_in_batch / world.size))
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm or float("inf"))
            if not scaler.is_enabled() and not norm.isfinite():
                raise FloatingPointError(
                    f"The gradient is not finite in step {state.step + 1} (epoch {state.epoch + 1}). Lower "
                    "learning_rate, add warmup, or use fp32; the checkpoint of the last epoch is intact."
                )
            scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            if scaler.get_scale() >= scale:  # a step that the scaler skipped does not count for the schedule
                scheduler.step()
            state.end_step(labels_in_batch, tokens=int(train.lengths[batch].sum()))
            if state.step % 20 == 0:
                progress.set_postfix(loss=f"{state.local_loss(world):.4f}")
        state.end_epoch(seconds=time.perf_counter() - started)

        scores = evaluate(model, task, validation, config, world)
        improved = state.record_score(scores, config.metric)
        log.write("epoch", epoch=state.epoch, step=state.step, learning_rate=scheduler.get_last_lr()[0],
                  **state.pop_epoch(world), validation=scores)  # fmt: skip
        if improved:
            save_best(state, folder, world)
        save_checkpoint(state, folder, config.keep_checkpoints, world)
    if state.best_epoch:
        restore_best(state, folder, world)
    return state


def _share(
    batch: np.ndarray, lengths: np.ndarray, config: TrainConfig, most_tokens: int | None, world: World
) -> list[np.ndarray]:
    """This process's micro-batches of a global batch."""
    if most_tokens is not None:
        return share_by_tokens(batch, lengths, world.rank, world.size, most_tokens)
    most = config.micro_batch_size or len(batch)
    return share(batch, world.rank, world.size, micro_batches=-(-len(batch) // (world.size * most)))


def evaluate(model: nn.Module, task: Task, data: Data, config: TrainConfig, world: World) -> dict[str, Any]:
    """Mean loss and the task's scores over ``data``; every example counts once, however many processes share it."""
    loss, predictions = predict(model, task, data, config, world)
    return {"loss": loss, **task.metrics(predictions, data)}


@torch.inference_mode()
def predict(
    model: nn.Module, task: Task, data: Data, config: TrainConfig, world: World
) -> tuple[float, list[np.ndarray]]:
    """Mean loss, and the prediction for each example of ``data`` in order, on every process."""
    model.eval()
    loss = torch.zeros((), dtype=torch.float64)
    found: dict[int, np.ndarray] = {}
    batches = evaluation_batches(data.lengths, config.evaluation_tokens(data.lengths), world.rank, world.size)
    loaded = load_batches(data, batches, world.device, workers=config.workers)
    progress = tqdm(loaded, "evaluate", len(batches), disable=not world.is_main, unit="batch", leave=False)
    for indices, (inputs, labels) in zip(batches, progress, strict=True):
        with autocast(model, config.precision, world.device):
            logits = model(**inputs)
        loss += task.loss_sum(logits, labels).double().cpu()
        found.update(zip(indices.tolist(), task.predict(logits, labels), strict=True))
    shares = world.gather((loss.item(), found))
    found = {index: prediction for _, part in shares for index, prediction in part.items()}
    mean = sum(part for part, _ in shares) / max(1, int(data.label_counts.sum()))
    return mean, [found[index] for index in range(len(data.lengths))]
