"""A finished run, opened: its settings, labels, data, model and predictions. All that looks at one starts here.

Shapes: N examples, L labels.
"""

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lora_core.models.host import on_host
from lora_core.models.labels import ProblemType
from lora_core.models.task_model import TaskModel
from trainers.config import RunConfig
from trainers.data.batches import Data, evaluation_batches, load_batches
from trainers.data.images.processing import PREPROCESSOR_FILE
from trainers.data.splits import sample
from trainers.data.texts.encode import TextProcessing, first_windows
from trainers.data.tokenizer import TOKENIZER_FILE
from trainers.data.tokens.reader import TokenFile
from trainers.inputs import say_if_changed
from trainers.loop import evaluate
from trainers.model import load_model
from trainers.processes.devices import usable
from trainers.processes.distributed import World, distributed
from trainers.run_folder import Run, RunFolder, has_predictions, read_predictions, read_run
from trainers.show import progress_bar
from trainers.tasks import kind_of, with_problem_type
from trainers.tasks.classification import MultiLabelClassification
from trainers.tasks.task import Kind, Task
from trainers.tasks.token import text_processing
from trainers.training.kernel_check import check_kernels
from trainers.training.precision import autocast, choose_kernels

CPU = torch.device("cpu")

logger = logging.getLogger("trainers")


@dataclass(frozen=True)
class FinishedRun:
    """A finished run. Its data and its model are read when they are first asked for."""

    run: Run
    """What its files tell."""
    config: RunConfig
    """Its settings, with the folder that it lies in now."""
    device: torch.device = CPU
    """Where its model computes."""
    kernels: bool = False
    """Whether its model has the layers and the precision that it was trained with; if not, it is plain and in fp32."""

    @classmethod
    def open(cls, folder: str | Path) -> "FinishedRun":
        """A run whose model is as it was saved: plain layers in fp32 on the CPU, what exports are compared with.

        Raises:
            ValueError: the folder is not that of a finished run.
        """
        run = read_run(folder)
        return cls(run, dataclasses.replace(_settled(run), precision="fp32", workers=0))

    @classmethod
    def open_fast(cls, folder: str | Path, data: str = "", device: torch.device | None = None) -> "FinishedRun":
        """A run whose model computes as it did in training, on CUDA where there is a device.

        Args:
            data: other data with the same label names; by default the run's own.
            device: where the model computes instead.

        Raises:
            ValueError: the folder is not that of a finished run.
        """
        run = read_run(folder)
        config = _settled(run)
        if data:
            config = dataclasses.replace(config, data=data)
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(run, config, usable(device), kernels=True)

    @property
    def files(self) -> RunFolder:
        """The places of its files."""
        return self.run.files

    @property
    def weights_folder(self) -> Path:
        """Where it saved what it trained, and what inference needs beside."""
        return self.files.weights(self.config.method)

    @property
    def kind(self) -> Kind:
        """All that its task has of its own."""
        return kind_of(self.config.task)

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in the order of the logits."""
        return tuple(self.run.result["labels"])

    @property
    def metric(self) -> str:
        """The score that selected the best epoch; F1 where that was the loss, of a regression Pearson's correlation."""
        if self.config.metric != "loss":
            return self.config.metric
        return "pearson" if self.problem_type == "regression" else "f1"

    @property
    def guarded_metric(self) -> str:
        """The score that the model must keep in another form. No correlation sees a shift or a factor, R2 does."""
        return "r2" if self.problem_type == "regression" else self.metric

    @property
    def problem_type(self) -> ProblemType | None:
        """What the label of a text or an image is; None for labelled words."""
        return None if self.config.problem_type == "auto" else self.config.problem_type

    @property
    def scored_split(self) -> str:
        """The split that its scores are of: test, or validation where there is none."""
        return "test" if "test" in self.run.result else "validation"

    @cached_property
    def datasets(self) -> dict[str, Any]:
        """The splits of its data, as they are read."""
        if not self.config.data:
            raise ValueError(f"The data of {self.run.folder} was given in memory, so it cannot be read again.")
        return self.kind.load(self.config)

    def split(self, name: str) -> Any:
        """A split as it is read, with the run's label ids.

        Raises:
            ValueError: the data is gone or lacks the split, or has labels that the run does not know.
        """
        if name not in self.datasets:
            raise ValueError(f"{self.config.data} has no {name} split; it has {', '.join(self.datasets)}.")
        return self.datasets[name].with_labels(self.labels)

    def examples(self, name: str) -> Any:
        """A split in memory, with the run's label ids.

        Raises:
            ValueError: as `split`, or it is not what the run was scored on.
        """
        dataset = self.split(name).in_memory()
        if has_predictions(self.run, name):
            gold = np.concatenate(self.predictions(name)[1])
            if not np.array_equal(gold, self.kind.label_ids(dataset)):
                raise ValueError(
                    f"{dataset.source} does not hold the examples that {self.run.folder} was scored on: it has changed."
                )
        return dataset

    def predictions(self, name: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Predicted and true label ids of each sentence, text or image of a split, as the run saved them.

        Raises:
            ValueError: it saved none.
        """
        return read_predictions(self.run.folder, name)

    @cached_property
    def model(self) -> TaskModel:
        """Its model in eval mode, with the best epoch's weights."""
        with torch.inference_mode(False):  # first asked for while predicting, it may yet be asked for gradients
            model = load_model(self.config, self.labels).to(self.device)
            if self.kernels:
                choose_kernels(model, self.config, self.device)
                check_kernels(model, self.device)
        return model

    @property
    def task(self) -> Task:
        """The loss and the scores, with the thresholds that the run chose."""
        task = self.kind.task(self.labels, self.config)
        if isinstance(task, MultiLabelClassification):
            return dataclasses.replace(task, thresholds=self.run.result.get("thresholds"))
        return task

    def encode(self, dataset: Any) -> Data:
        """A data set as the model takes it: in the tokens, or as the pictures, that it was trained on."""
        return self.kind.encode(dataset, self.model, self.config, self.inputs_folder)

    @cached_property
    def inputs_folder(self) -> Path | None:
        """Where the run saved how its model takes inputs, whatever has become of its checkpoint's files since.

        None: an old run saved nothing, so that the checkpoint's files count, which is said.
        """
        if any((self.weights_folder / name).is_file() for name in (TOKENIZER_FILE, PREPROCESSOR_FILE)):
            return self.weights_folder
        logger.warning("%s has saved no %s or %s: its inputs are prepared as %s says today", self.weights_folder,
                       TOKENIZER_FILE, PREPROCESSOR_FILE, self.config.model)  # fmt: skip
        return None

    @property
    def text_processing(self) -> TextProcessing:
        """How its model takes long texts, and whether it takes pairs of them."""
        return text_processing(self.config, self.weights_folder)

    def sample(self, name: str, limit: int) -> Data:
        """At most ``limit`` examples of a split, drawn with the run's seed, as the model takes them."""
        dataset, seed = self.split(name), self.config.seed
        return self.encode(
            dataset.drawn(limit, seed) if isinstance(dataset, TokenFile) else sample(dataset, limit, seed)
        )

    def score(self, model: nn.Module, data: Data) -> float:
        """`guarded_metric` of a model on encoded data, in this process alone."""
        world = World(rank=0, size=1, device=self.device)
        return float(evaluate(model, self.task, data, self.config, world)[self.guarded_metric])

    def batches(self, dataset: Any) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        """(The example of each row, the model's keyword arguments on its device) of every batch.

        An example has several rows where texts are cut into windows. For tasks with one label for each example.
        """
        data = self.encode(dataset)
        batches = evaluation_batches(data.lengths, self.config.evaluation_tokens(data.lengths))
        loaded = load_batches(data, batches, self.device)
        with progress_bar("predict", len(batches), unit="batch") as progress:
            for indices, (inputs, labels) in zip(batches, loaded, strict=True):
                yield indices[first_windows(on_host(labels)).cumsum(0).numpy() - 1], inputs
                progress.update()

    @torch.inference_mode()
    def probabilities(self, dataset: Any) -> np.ndarray:
        """Softmax of the logits of each example (their mean over its windows), (N, L) float64.

        Raises:
            ValueError: the run's task has more than one label for an example.
        """
        self.check_one_label()
        found, rows = torch.zeros(len(dataset), len(self.labels), dtype=torch.float64), torch.zeros(len(dataset), 1)
        for indices, inputs in self.batches(dataset):
            with autocast(self.model, self.config.precision, self.device):
                logits = self.model(**inputs).double().cpu()
            found.index_add_(0, torch.from_numpy(indices), logits)
            rows.index_add_(0, torch.from_numpy(indices), torch.ones(len(indices), 1))
        return (found / rows).softmax(-1).numpy()

    def check_one_label(self) -> None:
        """Raise ValueError unless each example has one label."""
        if self.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"{self.run.folder} did {self.problem_type}: expected a run with one label for each example."
            )
        if not self.kind.ONE_LABEL:
            raise ValueError(
                f"{self.run.folder} did {self.config.task}: expected a run that classifies texts or images."
            )


def _settled(run: Run) -> RunConfig:
    """The settings of a run in the folder that it lies in now, with the problem type that it found in its data."""
    config = dataclasses.replace(RunConfig.from_dict(run.config, str(run.folder)), output_dir=run.folder)
    types = kind_of(config.task).PROBLEM_TYPES
    return with_problem_type(config, run.result.get("problem_type", types[0])) if types else config


def evaluate_run(folder: str | Path, data: str = "", split: str = "test") -> dict[str, Any]:
    """Scores of a finished run's model on a split of its own data, or of other data with the same label names.

    Under torchrun every process calls this.

    Raises:
        ValueError: the folder is not that of a finished run, or the data lacks the split or has other labels.
    """
    with distributed() as world:
        finished = FinishedRun.open_fast(folder, data, world.device)
        encoded = finished.encode(finished.split(split))
        if not data and world.is_main:
            say_if_changed(finished.files, split, encoded)
        return evaluate(finished.model, finished.task, encoded, finished.config, world)
