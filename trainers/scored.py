"""The examples that a finished run was scored on, beside what it said of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.config import RunConfig
from trainers.data.windows import IGNORED_LABEL
from trainers.runs import Run, read_predictions
from trainers.tasks.kinds import kind_of


@dataclass(frozen=True)
class Scored:
    """One split with its predictions. Legend: N sentences, texts or images."""

    dataset: Any
    """The split in memory, with the label ids of the run."""
    predicted: list[np.ndarray]
    """N arrays of label ids: one for each scored word of a sentence, or one of a text or image."""
    gold: list[np.ndarray]
    """The true ones, in the same shape."""


def scored_examples(run: Run, split: str = "test") -> Scored:
    """Read a split of the run's data again.

    Raises:
        ValueError: the run has no predictions for the split, or its data is gone or has changed since.
    """
    config = RunConfig.from_dict(run.config, str(run.folder))
    predicted, gold = read_predictions(run.folder, split)
    datasets = kind_of(config.task).load(config)
    if split not in datasets:
        raise ValueError(f"{config.data} has no {split} split any more; it has {', '.join(datasets)}.")
    dataset = datasets[split].with_labels(tuple(run.result["labels"])).in_memory()
    if config.task == "token-classification":
        ids = [tag for sentence in dataset.tags for tag in sentence if tag != IGNORED_LABEL]
    else:
        ids = dataset.targets
    check_unchanged(run, gold, ids, dataset.source)
    return Scored(dataset, predicted, gold)


def check_unchanged(run: Run, gold: list[np.ndarray], ids: np.ndarray | list[int], source: str) -> None:
    """ValueError unless the label ids read from ``source`` are those that the run was scored on."""
    if not np.array_equal(np.concatenate(gold), ids):
        raise ValueError(f"{source} does not hold the examples that {run.folder} was scored on: it has changed.")
