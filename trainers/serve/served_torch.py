"""Runs and checkpoints to predict with: models that torch computes. served.py imports this when it is asked for one."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import lora_core
from lora_core.models import load_pretrained
from lora_core.models.encoders.build import TASKS, task_of_architectures
from lora_core.models.host import put
from lora_core.models.pretrained.source import CONFIG_FILE, read_config, resolve
from lora_core.models.task_model import TaskModel
from trainers.data.labels import Decision
from trainers.data.texts.encode import TEXT_PROCESSING_FILE, TextProcessing
from trainers.data.tokenizer import StatedLimits
from trainers.finished import FinishedRun
from trainers.processes.devices import usable
from trainers.run_folder import RunFolder
from trainers.serve.served_model import Served
from trainers.sharing.alone import HEAD_FILE, load_alone, moves_alone

logger = logging.getLogger(__name__)


class Logits:
    """A module as a function of arrays."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model = model
        self.device = device
        self._process = os.getpid()

    @torch.inference_mode()
    def __call__(self, **inputs: np.ndarray) -> np.ndarray:
        if os.getpid() != self._process:
            self._settle_in_child()
        tensors = {name: put(torch.from_numpy(array), self.device) for name, array in inputs.items()}
        return self.model(**tensors).float().cpu().numpy()

    def _settle_in_child(self) -> None:
        """In a forked process torch's threads are gone, and it would wait for them for ever: it goes on with one."""
        self._process = os.getpid()
        if torch.get_num_threads() > 1:
            torch.set_num_threads(1)
            logger.warning(
                "this process was forked after its pipeline was made: torch computes with one thread here. For more, "
                "make the pipeline in each process, or start them with the method spawn."
            )


class InBfloat16(nn.Module):
    """A model whose weights and activations are bfloat16, for inputs and logits in fp32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.to(torch.bfloat16)

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """The logits in float32."""
        halved = {name: given.to(torch.bfloat16) if given.is_floating_point() else given
                  for name, given in inputs.items()}  # fmt: skip
        return self.model(**halved).float()


def in_bfloat16(served: Served) -> Served:
    """The same with torch in bfloat16."""
    model = InBfloat16(served.model)
    return replace(served, model=model, logits=Logits(model, torch.device(served.device)))


def load_run(folder: Path, device: str | None, threads: int | None) -> Served:
    """A finished run.

    Raises:
        ValueError, OSError: as `load_served`.
    """
    place = _device(device, threads)
    finished = FinishedRun.open(folder)
    model, config = finished.model, finished.config
    if config.method == "lora":
        lora_core.eject_lora(lora_core.merge_lora(model))
    return _of_model(str(folder), model, finished.weights_folder, place, finished.text_processing)


def load_adapter(folder: Path, device: str | None, threads: int | None) -> Served:
    """An adapter's folder, wherever it lies: by itself, or with the run that it belongs to.

    Raises:
        ValueError, OSError: as `load_served`.
    """
    if moves_alone(folder):
        place = _device(device, threads)
        model = lora_core.eject_lora(lora_core.merge_lora(load_alone(folder)))
        assert isinstance(model, TaskModel)
        return _of_model(str(folder), model, folder, place, TextProcessing.read(folder))
    if RunFolder(folder.parent).metrics.is_file():
        return load_run(folder.parent, device, threads)
    raise ValueError(
        f"{folder} is an adapter without its run and without {HEAD_FILE}, which know the labels. "
        "Give the run's folder; or load it into its model in Python and save that whole: load_adapter, merge_lora, "
        "eject_lora, save_pretrained."
    )


def _processing_of_checkpoint(folder: Path) -> TextProcessing:
    """How a checkpoint from elsewhere takes long texts."""
    if (folder / TEXT_PROCESSING_FILE).is_file():
        return TextProcessing.read(folder)
    limits = StatedLimits.read(folder)
    return TextProcessing(limits.max_length, "tail" if limits.keeps_end else "head")


def load_checkpoint(source: str | Path, task: str | None, device: str | None, threads: int | None) -> Served:
    """A model folder in transformers' layout, or a hub id.

    Raises:
        ValueError, OSError: as `load_served`.
    """
    place = _device(device, threads)
    folder = resolve(source)
    model = load_pretrained(source, task or _task_of(folder))
    assert isinstance(model, TaskModel)
    if model.fresh_parameters:
        raise ValueError(f"{source} has no trained head for {model.task}: train it first, or give a fine-tuned model.")
    return _of_model(str(source), model, folder, place, _processing_of_checkpoint(folder))


def _of_model(source: str, model: TaskModel, folder: Path, device: torch.device, processing: TextProcessing) -> Served:
    reads_text = model.base_model.reads == "text"
    decision = Decision.read(folder)
    return Served(
        source,
        model.eval().to(device),
        Logits(model, device),
        model.task,
        model.labels,
        str(device),
        folder,
        {},
        max_length=processing.longest(model.config.max_tokens) if reads_text else 0,
        pad_token_id=model.config.pad_token_id if reads_text else 0,
        vocab_size=model.config.vocab_size if reads_text else 0,
        long_text=processing.long_text,
        pairs=processing.pairs,
        reading=processing.reading,
        segments=model.base_model.segments,
        problem_type=model.problem_type or decision.problem_type,
        thresholds=decision.thresholds,
    )


def _task_of(folder: Path) -> str:
    """The task that a checkpoint's config.json names by its architecture."""
    architectures = read_config(folder).get("architectures") or []
    task = task_of_architectures(architectures)
    if task is not None:
        return task
    raise ValueError(
        f"{folder / CONFIG_FILE} names the architectures {architectures}, which tell no task of "
        f"{', '.join(TASKS[1:])}. Name the task."
    )


def _device(name: str | None, threads: int | None) -> torch.device:
    """The device of a name; with ``threads``, torch computes with so many from now on."""
    if threads is not None:
        torch.set_num_threads(threads)
    device = _parsed(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device is {name!r}, but torch {torch.__version__} finds {torch.cuda.device_count()} CUDA "
            "devices here. Leave it out to take what there is."
        )
    return usable(device)


def _parsed(name: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}; expected one such as cpu, cuda or cuda:1.") from error
