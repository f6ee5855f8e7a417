"""The tasks that a run can have: the registry of their kinds, and which settings fit which.

A kind (task.py has the protocol) is all that a run must know about its task; a new one is a module here, a row in
`KINDS` and a name in the setting `task`. May import trainers.data, trainers.model and trainers.training; the loop and
what lies above it import it.
"""

import dataclasses
import logging
from typing import Any

from trainers.config import RunConfig
from trainers.tasks import image, text, token
from trainers.tasks.task import Kind

KINDS: dict[str, Kind] = {"token-classification": token, "text-classification": text, "image-classification": image}


def kind_of(task: str) -> Kind:
    """Raises ValueError for a task that has no kind."""
    if task not in KINDS:
        raise ValueError(f"task {task!r} cannot be trained; there are {', '.join(KINDS)}.")
    return KINDS[task]


def load(config: RunConfig) -> dict[str, Any]:
    """The splits of the run's data.

    Raises:
        ValueError: they cannot be read. Where another task could read them, the message says so.
    """
    try:
        return kind_of(config.task).load(config)
    except ValueError as error:
        fitting = [task for task in KINDS if task != config.task and _can_load(config, task)]
        if not fitting:
            raise
        raise ValueError(
            f"{error} The data can be read for another task: did you forget --task {' or '.join(fitting)}?"
        ) from error


def _can_load(config: RunConfig, task: str) -> bool:
    """Whether the data suits a task. What its reader says meanwhile is not the user's concern."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        return bool(KINDS[task].load(dataclasses.replace(config, task=task)))
    except (ValueError, OSError, ModuleNotFoundError):
        return False
    finally:
        logging.disable(before)


def check_settings(config: RunConfig) -> None:
    """Refuse what would be noticed late or never: a setting that the task does not use, a metric that it lacks.

    Raises:
        ValueError: with the names of the tasks that use the setting, or of the metrics that there are.
    """
    kind, default = kind_of(config.task), RunConfig()
    for name in sorted({name for other in KINDS.values() for name in other.SETTINGS} - kind.SETTINGS):
        value = getattr(config, name)
        if value != getattr(default, name):
            users = " and ".join(task for task, other in KINDS.items() if name in other.SETTINGS)
            raise ValueError(f"{name} is {value} with task {config.task}: it is for {users}. Leave it out.")
    if config.metric != "loss" and config.metric not in kind.METRICS:
        raise ValueError(f"metric is {config.metric!r}; {config.task} has {', '.join((*kind.METRICS, 'loss'))}.")
