"""The tasks that a run can have: the registry of their kinds, and which settings fit which.

A kind (task.py has the protocol) is all that a run must know about its task; a new one is a module here, a row in
`KINDS` and a name in the setting `task`. May import trainers.data, trainers.model and trainers.training; the loop and
what lies above it import it.
"""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from lora_core.models.labels import ProblemType
from trainers.config import RunConfig
from trainers.tasks import image, text, token
from trainers.tasks.label_scores import METRICS_OF
from trainers.tasks.task import Kind
from trainers.training.losses import regression_loss

logger = logging.getLogger("trainers")

KINDS: dict[str, Kind] = {"token-classification": token, "text-classification": text, "image-classification": image}
DETAILS = {
    "adversarial_epsilon": ("adversarial", "none"),
    "augment_share": ("text_augment", "none"),
    "confusing_penalty": ("confusing_words", ""),
}
"""Settings of which nothing comes while another has the value beside it."""


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
    """Refuse what would be noticed late or never: a setting that the task or the other settings do not use, a metric
    that the task lacks.

    Raises:
        ValueError: with the names of the tasks that use the setting, or of the metrics that there are.
    """
    kind, default = kind_of(config.task), RunConfig()
    for name in sorted({name for other in KINDS.values() for name in other.SETTINGS} - kind.SETTINGS):
        value = getattr(config, name)
        if value != getattr(default, name):
            users = " and ".join(task for task, other in KINDS.items() if name in other.SETTINGS)
            raise ValueError(f"{name} is {value} with task {config.task}: it is for {users}. Leave it out.")
    for name, (other, off) in DETAILS.items():
        if getattr(config, name) != getattr(default, name) and getattr(config, other) == off:
            raise ValueError(
                f"{name} is {getattr(config, name)}, but {other} is not set, so nothing uses it. Set {other}, or leave "
                f"{name} out."
            )
    if config.model == default.model and kind is image:
        raise ValueError(
            f"model is {config.model!r}, which reads texts. Name a model of images with --model: "
            "google/vit-base-patch16-224, or a folder."
        )
    if config.metric != "loss" and config.metric not in kind.METRICS:
        raise ValueError(f"metric is {config.metric!r}; {config.task} has {', '.join((*kind.METRICS, 'loss'))}.")
    if config.problem_type != "auto":
        _check_problem(with_problem_type(config, config.problem_type))


def with_problem_type(config: RunConfig, problem_type: ProblemType) -> RunConfig:
    """The settings of a run whose problem type is known, "auto" no more; a regression has pearson for the metric f1."""
    metric = METRICS_OF[problem_type][0] if config.metric == RunConfig().metric else config.metric
    return dataclasses.replace(config, problem_type=problem_type, metric=metric)


def settle(config: RunConfig, datasets: Mapping[str, Any]) -> tuple[RunConfig, dict[str, Any]]:
    """The settings and the splits with the problem type that the settings name, or else the training split has.

    Raises:
        ValueError: a split cannot be read so, or a setting does not fit.
    """
    for name in ("text_column", "pair_column"):  # found by names that are usual, they are kept for inference
        if not getattr(config, name) and getattr(datasets["train"], name, ""):
            config = dataclasses.replace(config, **{name: getattr(datasets["train"], name)})
    types = kind_of(config.task).PROBLEM_TYPES
    if not types:
        return config, dict(datasets)
    problem_type, settled = config.problem_type, dict(datasets)
    if problem_type == "auto":
        problem_type = types[0] if len(types) == 1 else datasets["train"].problem_type
    if len(types) > 1:
        settled = {split: dataset.with_problem_type(problem_type) for split, dataset in datasets.items()}
    found = with_problem_type(config, problem_type)
    _check_problem(found)
    if found.metric != config.metric:
        logger.info("the data is for a regression: the best epoch is selected by %s (--metric)", found.metric)
    labels = settled["train"].labels
    if problem_type == "single_label_classification" and len(labels) == 1:
        raise ValueError(
            f"{settled['train'].source} has one label, {labels[0]!r}: there is nothing to tell apart. Give examples of "
            "two labels at least, or numbers to predict."
        )
    return found, settled


def _check_problem(config: RunConfig) -> None:
    """Raise ValueError for settings that do not fit the problem type, which is known."""
    assert config.problem_type != "auto"
    types = kind_of(config.task).PROBLEM_TYPES
    if config.problem_type not in types:
        raise ValueError(
            f"problem_type is {config.problem_type}, but {config.task} is trained for {' and '.join(types)} only; "
            "models of other types can be served. Leave it out."
        )
    metrics = METRICS_OF[config.problem_type]
    if config.metric not in (*metrics, "loss"):
        raise ValueError(f"metric is {config.metric!r}; {config.problem_type} has {', '.join((*metrics, 'loss'))}.")
    if config.problem_type == "regression":
        regression_loss(config)
