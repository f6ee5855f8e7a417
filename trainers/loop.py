"""The training loop: read this page first.

    for every step:           the global batch; each process takes its share, in parts
        for every part:       loss = sum over the part / labels in the global batch * processes    (DDP averages)
                              forward, backward
        clip, step, schedule  (a checkpoint, if one is due or the run is asked to stop)
    after every epoch:        evaluate, keep the best, write a checkpoint that resume continues from exactly

Losses are sums divided once by the number of labels in the whole batch, so the gradient does not depend on how
many processes and parts share the work.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainers.config import TrainConfig
from trainers.data.batches import Data, evaluation_batches, load_batches
from trainers.monitor.monitor import Monitor
from trainers.processes import interrupt
from trainers.processes.distributed import World
from trainers.processes.fsdp import is_sharded, put_away, shard
from trainers.processes.interrupt import Interrupted
from trainers.run_folder import MetricsLog
from trainers.show import progress_bar
from trainers.tasks.task import Task
from trainers.training.adversarial import build_adversary
from trainers.training.averaging import WeightAverage
from trainers.training.batch_plan import BatchPlan
from trainers.training.checkpoint_schedule import CheckpointSchedule
from trainers.training.checkpoints import load_checkpoint, restore_best, save_best
from trainers.training.kernel_check import check_kernels
from trainers.training.largest_batch import with_largest_batch
from trainers.training.learning_signs import warning_of
from trainers.training.memory import memory_errors
from trainers.training.numbers import check_some_step
from trainers.training.optim import build_optimizer, build_scheduler, take_step
from trainers.training.precision import (
    autocast,
    choose_kernels,
    compile_layers,
    grad_scaler,
    micro_batch_tokens,
    slow_precision,
)
from trainers.training.state import TrainState, seed_generators

logger = logging.getLogger(__name__)


@interrupt.deferred()
def fit(
    model: nn.Module,
    task: Task,
    train: Data,
    validation: Data,
    config: TrainConfig,
    world: World,
    folder: Path,
    resume_from: Path | None = None,
    monitor: Monitor | None = None,
    *,
    ends: bool = False,
) -> TrainState:
    """Train what requires grad in ``model``, and leave the best epoch's weights in it.

    The model keeps the layers that ``config.kernels`` chose; lora_core.kernels.fused.unfuse gives it the plain ones.
    With ``config.parallel`` fsdp its parameters stay shared out over the processes.

    Args:
        folder: the run folder; metrics.jsonl and checkpoints/ are written into it.
        resume_from: a checkpoint to continue from, exactly as if the run had not been interrupted.
        monitor: what shows how far the run is; None: one that prints a row for every evaluation.
        ends: whether training ends there: nothing more is learnt.

    Returns:
        The state at the end: steps, epochs, best epoch and score, seconds and tokens trained.

    Raises:
        ValueError: nothing is trainable, or the checkpoint belongs to another run.
        TooLittleMemoryError, DiskFullError: there is not enough memory, or disk for a checkpoint.
        FloatingPointError: a gradient is not finite (with fp16, such steps are skipped, but not without end).
        Interrupted: a signal has asked a process to stop; a checkpoint is written. It is a KeyboardInterrupt.
    """
    seed_generators(config.seed + world.rank)
    choose_kernels(model, config, world.device)
    capability = torch.cuda.get_device_capability(world.device) if world.device.type == "cuda" else None
    if world.is_main and (slow := slow_precision(config.precision, world.device.type, capability)):
        logger.warning(slow)
    compile_layers(model, config)
    if config.parallel == "fsdp" and world.size > 1:
        shard(model, world.device, world.size)
        if world.is_main:
            logger.info("The parameters are shared out over %d processes, for which the layers are plain.", world.size)
    model.to(world.device)
    check_kernels(model, world.device, says=world.is_main)
    config = with_largest_batch(model, task, train, config, world)
    plan = BatchPlan(train, config, world, micro_batch_tokens(model, config))
    optimizer = build_optimizer(model, config)
    scheduler = build_scheduler(optimizer, config, plan.total_steps)
    scaler, average = grad_scaler(config.precision, world.device), WeightAverage(model, config.ema_decay)
    state = TrainState(model, optimizer, scaler, scheduler, average)
    if resume_from is not None:
        load_checkpoint(state, resume_from, world)
    checkpoints = CheckpointSchedule(state, plan, config, folder, world)
    log = MetricsLog(folder, resume_at=state.step - state.batch, writes=world.is_main)  # where the last epoch ended
    parallel = world.wrap(model)
    adversary = build_adversary(model, config)
    monitor = monitor or Monitor(config, world)
    monitor.begin(state, plan, validation)

    while not ends and state.epoch < plan.epochs and not state.out_of_patience(config.patience):
        parallel.train()
        state.start_clock()
        with memory_errors(world.device, plan.pass_tokens), monitor.epoch(len(plan.batches(state.epoch))):
            for step in plan.steps(state.epoch, first=state.batch):
                for perturbed, parts in adversary.passes(step.parts):  # one pass, unless training is adversarial
                    for part in parts:
                        with world.accumulate(parallel, part.last):
                            with autocast(model, config.precision, world.device):
                                loss = task.training_loss_sum(parallel(**part.inputs), part.labels) * part.weight
                            state.scaler.scale(loss).backward()
                        if not perturbed:
                            state.add_loss(loss.detach() * (step.labels / world.size), part.examples)
                take_step(state, config.max_grad_norm, world, folder)
                state.end_step(step.labels, step.tokens)
                world.at_step(state.step)
                monitor.step()
                checkpoints.after_step()

        with checkpoints.before_evaluation(), average.in_model():
            scores = evaluate(model, task, validation, config, world)
        state.end_epoch()
        improved = state.record_score(scores, config.metric)
        rate = scheduler.get_last_lr()[0]
        place = {"epoch": state.epoch, "step": state.step, "learning_rate": rate}
        event = {**place, **state.pop_epoch(world), "validation": scores}
        log.write("epoch", **event)
        monitor.evaluated(event, best=improved)
        ended = state.epoch == plan.epochs or state.out_of_patience(config.patience)
        peak_rate = config.learning_rate or float(max(scheduler.base_lrs))
        if world.is_main and (warning := warning_of(log.epochs(), config.metric, peak_rate, ended)):
            logger.warning(warning)
        if improved:
            save_best(state, folder, world)
        checkpoints.after_epoch()
    check_some_step(state)
    if state.best_epoch:
        restore_best(state, folder, world)
    else:
        average.exchange()
    checkpoints.after_training()
    return state


def evaluate(model: nn.Module, task: Task, data: Data, config: TrainConfig, world: World) -> dict[str, Any]:
    """Mean loss and the task's scores over ``data``; every example counts once, however many processes share it."""
    loss, predictions = predict(model, task, data, config, world)
    return {"loss": loss, **task.metrics(predictions, data)}


def predict(
    model: nn.Module, task: Task, data: Data, config: TrainConfig, world: World
) -> tuple[float, list[np.ndarray]]:
    """Mean loss, and the prediction for each example of ``data`` in order, on every process.

    Raises:
        Interrupted: within `interrupt.deferred`, a signal has asked a process to stop.
    """
    with torch.no_grad() if is_sharded(model) else torch.inference_mode():  # FSDP keeps tensors that it makes here
        found = _predict(model, task, data, config, world)
    put_away(model)
    return found


def _predict(
    model: nn.Module, task: Task, data: Data, config: TrainConfig, world: World
) -> tuple[float, list[np.ndarray]]:
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=world.device)
    found: dict[int, np.ndarray] = {}
    most = config.evaluation_tokens(data.lengths)
    batches = evaluation_batches(data.lengths, most, world.rank, world.size)
    counted = len(batches)
    if is_sharded(model):  # all processes take part in every pass; the first one has most
        passes = len(evaluation_batches(data.lengths, most, 0, world.size))
        batches += [np.arange(1)] * (passes - counted)
    loaded = load_batches(data, batches, world.device, workers=config.workers)
    bar = progress_bar("evaluate", len(batches), unit="batch", shown=world.is_main)
    with memory_errors(world.device, most // 4), bar as progress:
        for number, (indices, (inputs, labels)) in enumerate(zip(batches, loaded, strict=True)):
            with autocast(model, config.precision, world.device):
                logits = model(**inputs)
            if number >= counted:
                continue
            loss += task.loss_sum(logits, labels)
            found.update(zip(indices.tolist(), task.predict(logits, labels), strict=True))
            progress.update()
            if interrupt.requested() and not is_sharded(model):
                break  # the other processes hear of it when they have done their shares
    shares = world.gather((loss.item(), found, interrupt.requested()))
    if signum := max(signum for _, _, signum in shares):
        raise Interrupted(signum, "in evaluation")
    found = {index: prediction for _, part, _ in shares for index, prediction in part.items()}
    mean = sum(part for part, _, _ in shares) / max(1, int(data.label_counts.sum()))
    return mean, [found[index] for index in range(len(data.lengths))]
