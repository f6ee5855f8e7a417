"""When training writes checkpoints: after so many steps or minutes, after every epoch, and when it is asked to stop."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from trainers.config import TrainConfig
from trainers.processes import interrupt
from trainers.processes.distributed import World
from trainers.processes.interrupt import Interrupted
from trainers.run_folder import RunFolder
from trainers.training.batch_plan import BatchPlan
from trainers.training.checkpoints import remove_older, save_checkpoint
from trainers.training.state import TrainState


class CheckpointSchedule:
    """Writes the checkpoints of a run at the borders of its steps, on all processes at the same one."""

    def __init__(self, state: TrainState, plan: BatchPlan, config: TrainConfig, folder: Path, world: World) -> None:
        """
        Args:
            folder: the run folder.
        """
        self._state, self._plan, self._folder, self._world = state, plan, folder, world
        self._steps, self._seconds = config.checkpoint_steps, 60 * config.checkpoint_minutes
        self._keep = config.keep_checkpoints
        self._since = time.monotonic()
        self._written: int | None = None  # the step of the last one
        self._vote = _Vote(world)

    def after_step(self) -> None:
        """Write a checkpoint if one is due.

        Raises:
            Interrupted: a process was asked to stop. The checkpoint is written.
        """
        signum, late = self._vote.largest(interrupt.requested(), self._is_late())
        if signum:
            self._stop(signum)
        if late or (self._steps and self._state.step % self._steps == 0):
            self._write()

    @contextmanager
    def before_evaluation(self) -> Iterator[None]:
        """An evaluation that a signal ends within it leaves a checkpoint: the epoch's steps are done, and resuming
        evaluates again."""
        try:
            yield
        except Interrupted as interrupted:
            self._stop(interrupted.signum)

    def after_epoch(self) -> None:
        """Write the checkpoint of a finished epoch."""
        self._write()

    def after_training(self) -> None:
        """Remove older checkpoints that are still there: the process that wrote the last one may have been killed
        before it had removed them, and resumed with nothing left to train."""
        if self._world.is_main:
            remove_older(RunFolder(self._folder), self._state.step, self._keep)

    def _is_late(self) -> bool:
        """Whether so many minutes have passed; True once, for the checkpoint is then on its way. The first process's
        clock counts."""
        now = time.monotonic()
        late = self._world.is_main and bool(self._seconds) and now - self._since >= self._seconds
        if late:
            self._since = now
        return late

    def _write(self) -> None:
        # What comes after the last step of an epoch, its evaluation, is written to the same step-N. While that is
        # replaced the one before must be there.
        evaluated_next = self._state.batch == len(self._plan.batches(self._state.epoch))
        save_checkpoint(self._state, self._folder, self._keep + evaluated_next, self._world)
        self._written, self._since = self._state.step, time.monotonic()
        self._state.start_clock()

    def _stop(self, signum: int) -> None:
        if self._written != self._state.step:
            self._write()
        step, epoch = self._state.step, self._state.epoch + 1
        raise Interrupted(
            signum,
            f"after step {step} (epoch {epoch}), with a checkpoint in {self._folder}",
            "To go on: the same with --resume auto, without --overwrite.",
        )


class _Vote:
    """Two numbers of which all processes learn the largest, a call later.

    An exchange runs while the next step does, between processors even if training is on GPUs: nothing waits for it.
    """

    def __init__(self, world: World) -> None:
        self._alone = world.size == 1
        self._group = world.group
        self._answer, self._exchange = torch.zeros(2, dtype=torch.int64), None

    def largest(self, signum: int, late: bool) -> tuple[int, bool]:
        """The largest of what all processes gave in the call before; of one process, of what it gives now."""
        if self._alone:
            return signum, late
        if self._exchange is not None:
            self._exchange.wait()
        answer = self._answer.tolist()
        self._answer = torch.tensor([signum, late], dtype=torch.int64)
        self._exchange = dist.all_reduce(self._answer, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return answer[0], bool(answer[1])
