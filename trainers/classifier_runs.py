"""Finished runs of text or image classification, loaded to look into: their texts, probabilities and vectors.

Shapes: N examples, L labels.
"""

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
from trainers.data.batches import evaluation_batches
from trainers.data.loading import load_batches
from trainers.data.windows import IGNORED_LABEL
from trainers.experiment import load_model
from trainers.precision import autocast, choose_kernels
from trainers.runs import Run, has_predictions, read_predictions, read_run
from trainers.scored import check_unchanged
from trainers.tasks import Dataset
from trainers.tasks.kinds import kind_of


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
