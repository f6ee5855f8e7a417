"""A run's figures for tools that track runs, beside metrics.jsonl: a protocol of three calls, and what is kept over a
resume.

A run keeps the id that it was begun with, in tracking.json of its folder, with how far each tracker has been told. What
a tracker has been told it is not told again: a run that goes on from a checkpoint repeats steps, with the same figures.
A tracker that joins later is told the epochs that it has missed. An exception of a tracker ends its part, not the run.
"""

import difflib
import importlib
import importlib.util
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

from lora_core.files import write_json
from trainers.config import RunConfig
from trainers.monitor import trackers
from trainers.processes.distributed import World
from trainers.processes.interrupt import Interrupted
from trainers.run_folder import RunFolder

logger = logging.getLogger("trainers")

Position = tuple[int, int]
"""How far a tracker has been told: the step, and 1 if that of an epoch's end, else 0."""
START: Position = (-1, 0)


class Tracker(Protocol):
    """A tool that tracks runs. Three methods make one; its class takes no arguments."""

    def start(self, run_id: str, name: str, config: Mapping[str, Any]) -> None:
        """A run begins, or goes on under the id that it had; `config` are its settings, with its folder, output_dir."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Figures after so many optimiser steps, such as train/loss and validation/f1. Steps never go back."""
        ...

    def finish(self, status: str) -> None:
        """The run is "finished", was "stopped" by a signal and may go on, or has "failed"."""
        ...


def check_trackers(track: str) -> None:
    """Check the setting `track` before any work.

    Raises:
        ValueError: a name is unknown, or a class is not there.
        ModuleNotFoundError: what a tracker needs is not installed.
    """
    for name in _names(track):
        _class_of(name)


def made_trackers(track: str, given: Sequence[Tracker] = ()) -> dict[str, Tracker]:
    """The trackers that the setting `track` names, and those that are given as objects, by name."""
    made: dict[str, Tracker] = {name: _class_of(name)() for name in _names(track)}
    for tracker in given:
        name = type(tracker).__name__
        made[name if name not in made else f"{name} {len(made)}"] = tracker
    return made


class Tracking:
    """The trackers of a run. Without any it does nothing."""

    def __init__(self, made: Mapping[str, Tracker] | None = None, config: RunConfig | None = None) -> None:
        """
        Args:
            made: the trackers by name.
            config: the settings of the run, whose folder is there.
        """
        self._trackers = dict(made or {})
        if not self._trackers:
            return
        assert config is not None
        self._files = RunFolder(config.output_dir)
        kept = self._files.read_tracking()
        self.run_id = str(kept.get("id") or uuid.uuid4().hex[:12])
        told = kept.get("told", {})
        self._told: dict[str, Position] = {name: cast(Position, tuple(told[name])) if name in told else START
                                           for name in {**told, **self._trackers}}  # fmt: skip
        self._keep()
        name = config.output_dir.resolve().name
        for tracker in tuple(self._trackers):
            self._ask(tracker, lambda one: one.start(self.run_id, name, config.to_dict()))
        for event in self._files.epochs():
            self.epoch(event)

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Track figures of a step within an epoch."""
        self._log((step, 0), values)

    def epoch(self, event: Mapping[str, Any]) -> None:
        """Track an `epoch` event of metrics.jsonl."""
        values = {f"train/{name.removeprefix('train_')}": event[name] for name in event
                  if name not in ("event", "step", "validation")}  # fmt: skip
        self._log((event["step"], 1), {**_numbers(values), **_numbers(event["validation"], "validation/")})

    def result(self, result: Mapping[str, Any]) -> None:
        """Track the result of a run: the scores of the weights that were kept."""
        values = _numbers(result.get("test", {}), "test/") | _numbers(result["validation"], "best/validation/")
        self._log((result["step"], 2), values)

    def finish(self, status: str) -> None:
        """Tell all trackers that the run is over, or stops."""
        for name in tuple(self._trackers):
            self._ask(name, lambda one: one.finish(status))

    def _log(self, position: Position, values: Mapping[str, float]) -> None:
        new = [name for name in self._trackers if position > self._told[name]]
        for name in new:
            self._ask(name, lambda one: one.log(position[0], values))
            self._told[name] = position
        if new:
            self._keep()

    def _ask(self, name: str, call: Callable[[Tracker], None]) -> None:
        """Call a tracker; one that fails is told nothing more."""
        try:
            call(self._trackers[name])
        except Exception as error:  # whatever it raises: the run is worth more than its curve
            del self._trackers[name]
            said = " ".join(str(error).split())[:300]
            logger.warning("The tracker %s has failed, and the run goes on without it: %s: %s",
                           name, type(error).__name__, said)  # fmt: skip

    def _keep(self) -> None:
        write_json(self._files.tracking, {"id": self.run_id, "told": self._told})


@contextmanager
def tracked(config: RunConfig, given: Sequence[Tracker], world: World) -> Iterator[Tracking]:
    """The trackers of a run while it lasts, on the process that talks to the user."""
    tracking = Tracking(made_trackers(config.track, given), config) if world.is_main else Tracking()
    try:
        yield tracking
    except Interrupted:
        tracking.finish("stopped")
        raise
    except BaseException:
        tracking.finish("failed")
        raise
    tracking.finish("finished")


def _names(track: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in track.split(",") if name.strip()))


def _class_of(name: str) -> Callable[[], Tracker]:
    """The class that a name of the setting `track` stands for."""
    module, _, attribute = name.partition(":")
    if attribute:
        found = getattr(importlib.import_module(module), attribute, None)
        if not callable(found):
            raise ValueError(f"--track {name}: {module} has no class {attribute}.")
        return cast(Callable[[], Tracker], found)
    if name not in trackers.TRACKERS:
        (near,) = difflib.get_close_matches(name, trackers.TRACKERS, n=1, cutoff=0)
        raise ValueError(
            f"--track {name}: did you mean {near}? There are {', '.join(trackers.TRACKERS)}, and classes of your own "
            "as module:Class."
        )
    made = trackers.TRACKERS[name]
    if importlib.util.find_spec(made.package) is None:
        raise ModuleNotFoundError(
            f"--track {name} needs the package {made.package}: pip install 'lora-core[{name}]'", name=made.package
        )
    return made


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The entries that are numbers."""
    return {
        f"{prefix}{name}": float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
