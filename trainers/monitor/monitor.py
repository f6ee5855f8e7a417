"""What the loop tells of a run, and who is told: the screen, the progress bar, and tools that track runs.

It costs a counter a step; what must be read or written waits for the clock. Only the first process shows anything.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from lora_core.kernels.cores import OtherWork
from trainers.config import TrainConfig
from trainers.data.batches import Data
from trainers.monitor.forecast import Forecast
from trainers.monitor.plan import Plan
from trainers.monitor.rows import EvaluationRows, clock_text, ending
from trainers.monitor.screen import screen_of
from trainers.monitor.tracking import Tracking
from trainers.processes.distributed import World
from trainers.run_folder import Run
from trainers.show import duration, progress_bar
from trainers.training.batch_plan import BatchPlan
from trainers.training.memory import peak_memory_bytes
from trainers.training.state import TrainState

logger = logging.getLogger("trainers")

REFRESH = 1.0
"""Seconds between two readings of the loss for the bar."""
WORTH_TELLING = 10.0
"""Seconds that a run must still take for a line that says so."""
TRACKED_STEPS = 20
"""Steps between two losses that are tracked within an epoch."""
CROWD = 0.5
"""Cores that others must use, and that must be lacking, for a line that says so."""
LEGEND = "Losses in training and validation; scores in percent; * best {metric} so far."


class Monitor:
    """One run, as it is watched. The loop calls `begin`, `epoch`, `step`, `evaluated`; what is around it the rest."""

    def __init__(
        self, config: TrainConfig, world: World, *, quiet: bool = False, tracking: Tracking | None = None
    ) -> None:
        """
        Args:
            config: the settings of the loop.
            world: only its first process shows and tracks anything.
            quiet: show nothing.
            tracking: where figures go beside metrics.jsonl.
        """
        self.config, self.world = config, world
        self.shown = world.is_main and not quiet
        self.screen, self.tracking = screen_of(shown=self.shown), tracking or Tracking()
        self.unit, self._scored_at_end = "tokens", 0
        self._rows: EvaluationRows | None = None
        self._told = False
        self._left_epoch: float | None = None

    def plan(self, plan: Plan) -> None:
        """Show what the run is about to do."""
        self.unit, self._scored_at_end = plan.unit, plan.scored_at_end
        self.screen.say(f"{plan.text()}\n")

    def begin(self, state: TrainState, plan: BatchPlan, validation: Data) -> None:
        """Training begins, or goes on from where ``state`` is."""
        self.state, self._steps, self._epochs = state, plan.total_steps, plan.epochs
        tokens = int(plan.data.lengths.sum()), int(validation.lengths.sum())
        self._forecast = Forecast(tokens[0], self._epochs, tokens[1], self._scored_at_end)
        self._began = self._refreshed = self._forecast.now()
        self._others = OtherWork()
        self._loss_before = self._labels_before = 0.0
        if state.step and self.shown:
            self.screen.say(f"Going on from step {state.step:,} of {self._steps:,}, in epoch {state.epoch + 1}.\n")

    @contextmanager
    def epoch(self, steps: int) -> Iterator[None]:
        """An epoch of so many steps: its bar, and the time that its evaluation takes."""
        state = self.state
        self._steps_of_epoch = steps
        self._loss_before, self._labels_before = state.read_loss(), state.epoch_labels
        if self._left_epoch is not None:
            self._forecast.evaluated(self._forecast.now() - self._left_epoch)
        name = f"epoch {state.epoch + 1}/{self._epochs}"
        with progress_bar(name, steps, unit="step", shown=self.shown) as self._bar:
            self._bar.update(state.batch)
            yield
        self._left_epoch = self._forecast.now()

    def step(self) -> None:
        """The loop has done a step."""
        if not self.world.is_main:
            return
        state = self.state
        self._bar.update()
        self._forecast.step(state.tokens + state.epoch_tokens, state.seconds + state.epoch_seconds)
        now = self._forecast.now()
        if now - self._refreshed >= REFRESH:
            self._refreshed = now
            self._refresh()
        if self.tracking and state.step % TRACKED_STEPS == 0 and state.batch < self._steps_of_epoch:
            self._track_step()

    def evaluated(self, event: Mapping[str, Any], *, best: bool) -> None:
        """An epoch is over and scored.

        Args:
            event: the `epoch` event of metrics.jsonl.
            best: whether it is the best so far.
        """
        if not self.world.is_main:
            return
        metric = self.config.metric
        if self._rows is None:
            self._rows = EvaluationRows(metric, event["validation"], self._epochs, self._steps, self.unit)
            self.screen.say(LEGEND.format(metric=metric))
            self.screen.row(self._rows.header, self._rows.widths)
        elapsed = self._forecast.now() - self._began
        self.screen.row(self._rows.cells(event, elapsed, best), self._rows.widths)
        self.tracking.epoch(event)

    def ending(self, run: Run) -> None:
        """The run is over: show its scores, and where everything is."""
        self.screen.say(f"\n{ending(run)}\n")
        self.tracking.result(run.result)

    def _refresh(self) -> None:
        """Show the loss, and when the run will be over; for the first time in a line of its own, with the memory."""
        state, end = self.state, self._forecast.end(self.state.epoch)
        loss = f"loss {state.local_loss(self.world):.4f}"
        self._bar.set_postfix_str(f"{loss}, ends {end}" if end else loss, refresh=False)
        self.screen.status(
            f"epoch {state.epoch + 1}/{self._epochs}, step {state.step:,} of {self._steps:,}, {loss}, "
            f"{clock_text(self._forecast.now() - self._began)}{f', ends {end}' if end else ''}"
        )
        left = self._forecast.left(state.epoch)
        if left is not None and left >= WORTH_TELLING and not self._told and self._rows is None:
            self._told = True
            memory = peak_memory_bytes(self.world.device) / 1e9
            patience = "" if self.config.patience is None else " at most"
            self.screen.say(
                f"About {duration(left)} left{patience}, until {end}; memory {memory:.2f} GB so far.\n{self._crowd()}"
            )

    def _crowd(self) -> str:
        """A line where other processes keep cores busy that the threads of this one count on."""
        threads, others = torch.get_num_threads(), self._others.cores()
        alone = self.world.size == 1 and not self.config.workers  # else the others are its own
        crowded = threads > 1 and others >= CROWD and others + threads > (os.cpu_count() or 1) + CROWD
        if self.world.device.type != "cpu" or not (alone and crowded):
            return ""
        return (
            f"Other processes keep {others:.1f} of the {os.cpu_count()} cores busy, and threads wait for the slowest:\n"
            "OMP_NUM_THREADS=1 may be several times as fast.\n"
        )

    def _track_step(self) -> None:
        """Track the mean loss of the steps since the last time, as this process has them."""
        state = self.state
        loss, labels = state.read_loss(), state.epoch_labels
        share = (labels - self._labels_before) / self.world.size
        values = {"train/step_loss": (loss - self._loss_before) / max(1.0, share),
                  "train/learning_rate": state.scheduler.get_last_lr()[0]}  # fmt: skip
        self._loss_before, self._labels_before = loss, labels
        self.tracking.step(state.step, values)
