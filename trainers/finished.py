"""The examples that a finished run was scored on, beside what it said of them."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lora_core.models.task_model import TaskModel
from trainers.config import RunConfig
from trainers.data.batches import evaluation_batches, load_batches
from trainers.data.tokens.windows import IGNORED_LABEL
from trainers.loop import evaluate
from trainers.model import load_model
from trainers.run_folder import (
    Run,
    has_predictions,
    read_predictions,
    read_run,
)
from trainers.tasks import kind_of
from trainers.tasks.task import Dataset
from trainers.training.distributed import distributed
from trainers.training.precision import autocast, choose_kernels

# DOC """Finished runs of text or image classification, loaded to look into: their texts, probabilities and vectors.
#
# Shapes: N examples, L labels.
# """

# DOC """A whole run: data, model, adapters, training, test scores, and the run folder."""


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


@dataclass(frozen=True)
class ClassifierRun:
    """A run with its model, in eval mode, and its data."""

    run: Run
    config: RunConfig
    labels: tuple[str, ...]
    model: TaskModel
    datasets: dict[str, Any]
    """The splits as they were read, with the run's label ids."""
    device: torch.device

    @classmethod
    def load(cls, folder: str | Path) -> "ClassifierRun":
        """Load a finished run.

        Raises:
            ValueError: the folder is not that of a finished run that classifies texts or images.
        """
        run = read_run(folder)
        config = dataclasses.replace(RunConfig.from_dict(run.config, str(folder)), output_dir=Path(folder))
        if config.task == "token-classification":
            raise ValueError(f"{folder} did {config.task}: expected a run that classifies texts or images.")
        labels = tuple(run.result["labels"])
        datasets: dict[str, Dataset] = kind_of(config.task).load(config)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = load_model(config, labels).to(device)
        choose_kernels(model, config, device)
        datasets = {name: dataset.with_labels(labels) for name, dataset in datasets.items()}
        return cls(run, config, labels, model, datasets, device)

    def split(self, name: str) -> Any:
        """A split as it was read.

        Raises:
            ValueError: there is none, or it is not what the run was scored on.
        """
        if name not in self.datasets:
            raise ValueError(f"{self.config.data} has no {name} split; it has {', '.join(self.datasets)}.")
        dataset = self.datasets[name]
        if has_predictions(self.run, name):
            gold = read_predictions(self.run.folder, name)[1]
            check_unchanged(self.run, gold, dataset.targets, dataset.source)
        return dataset

    def batches(self, dataset: Any) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        """(The example of each row, the model's keyword arguments on its device) of every batch.

        An example has several rows where texts are cut into windows.
        """
        data = kind_of(self.config.task).encode(dataset, self.model, self.config)
        batches = evaluation_batches(data.lengths, self.config.evaluation_tokens(data.lengths))
        for indices, (inputs, labels) in zip(batches, load_batches(data, batches, self.device), strict=True):
            yield indices[(labels != IGNORED_LABEL).cumsum(0).cpu().numpy() - 1], inputs

    @torch.inference_mode()
    def probabilities(self, dataset: Any) -> np.ndarray:
        """Softmax of the logits of each example (their mean over its windows), (N, L) float64."""
        found, rows = torch.zeros(len(dataset), len(self.labels), dtype=torch.float64), torch.zeros(len(dataset), 1)
        for indices, inputs in self.batches(dataset):
            with autocast(self.model, self.config.precision, self.device):
                logits = self.model(**inputs).double().cpu()
            found.index_add_(0, torch.from_numpy(indices), logits)
            rows.index_add_(0, torch.from_numpy(indices), torch.ones(len(indices), 1))
        return (found / rows).softmax(-1).numpy()


def evaluate_run(folder: str | Path, data: str = "", split: str = "test") -> dict[str, Any]:
    """Scores of a finished run's model on a split of its own data, or of other data with the same label names.

    Raises:
        ValueError: the folder is not that of a finished run, or the data lacks the split or has other labels.
    """
    finished = read_run(folder)
    config = dataclasses.replace(RunConfig.from_dict(finished.config, str(folder)), output_dir=Path(folder))
    if data:
        config = dataclasses.replace(config, data=data)
    kind = kind_of(config.task)
    datasets = kind.load(config)
    if split not in datasets:
        raise ValueError(f"{config.data} has no {split} split; it has {', '.join(datasets)}.")
    labels = tuple(finished.result["labels"])
    dataset = datasets[split].with_labels(labels)
    model = load_model(config, labels)
    encoded = kind.encode(dataset, model, config)
    with distributed() as world:
        choose_kernels(model.to(world.device), config, world.device)
        return evaluate(model, kind.task(labels, config), encoded, config, world)
