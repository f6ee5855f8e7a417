"""Finding a model to predict with: a run, a folder or hub id in transformers' layout, or an ONNX file or its folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

import lora_core
from lora_core.models import load_pretrained
from lora_core.models.encoders.build import TASKS, task_of_architectures
from lora_core.models.pretrained.source import CONFIG_FILE, read_config, resolve
from lora_core.models.task_model import ProblemType, TaskModel
from trainers.data.reading import AS_FOUND, Reading
from trainers.data.texts.encode import TEXT_PROCESSING_FILE, TextProcessing
from trainers.data.tokenizer import StatedLimits
from trainers.processes.devices import usable
from trainers.run_folder import RunFolder
from trainers.tasks.decision import DECISION_FILE, Decision

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from trainers.data.texts.encode import LongText

logger = logging.getLogger(__name__)

ONNX_SUFFIX = ".onnx"


@dataclass(frozen=True)
class Served:
    """A model ready to predict, and what its inputs must look like."""

    source: str
    """What the user named."""
    model: nn.Module
    """`model(input_ids, attention_mask)` or `model(pixel_values)` gives logits; in eval mode, adapters merged."""
    task: str
    labels: tuple[str, ...]
    device: torch.device
    folder: Path | None
    """Where tokenizer.json or preprocessor_config.json is; None: in `metadata`."""
    metadata: dict[str, str]
    """File name -> content, of an ONNX file."""
    max_length: int
    """Longest input in tokens, special tokens included; 0 for images."""
    pad_token_id: int
    vocab_size: int
    """Embeddings of the model; 0 for images."""
    long_text: LongText = "head"
    """What is kept of a text that exceeds `max_length`, where it is classified as a whole."""
    pairs: bool | None = None
    """Whether the model was trained on pairs of texts; None: it is not known."""
    segments: int = 1
    """Texts of a pair that the model tells apart by token_type_ids; 1: it takes none."""
    problem_type: ProblemType | None = None
    """What the logits of a text or an image are for; None: nothing tells, so it follows from their number."""
    reading: Reading = AS_FOUND
    """How the files that it was trained on were read."""
    thresholds: Mapping[str, float] | None = None
    """By label, the score from which on it is given; None: the default's. For multi_label_classification."""

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        from trainers.data.tokenizer import TOKENIZER_FILE, load_tokenizer, tokenizer_of_json

        if self.folder is not None:
            return load_tokenizer(self.folder)
        if TOKENIZER_FILE not in self.metadata:
            raise ValueError(f"{self.source} holds no tokenizer. Export it again: lora-core export RUN")
        tokenizer = tokenizer_of_json(self.metadata[TOKENIZER_FILE], f"{self.source}: its {TOKENIZER_FILE}")
        tokenizer.no_padding()  # as `load_tokenizer`: a published tokenizer.json may pad every text, and so every word
        tokenizer.no_truncation()
        return tokenizer


def load_served(
    source: str | Path, task: str | None = None, device: str | None = None, *, spinning: bool = True
) -> Served:
    """Load a model to predict with.

    Args:
        source: the folder of a finished run, or its adapter/ or best/; a model folder in transformers' layout; a hub
            id; an ONNX file that `lora-core export` wrote, or a folder with nothing else to serve, of which
            model.int8.onnx is taken before model.onnx.
        task: what it must do; None takes what the run, file or checkpoint says.
        device: such as "cpu" or "cuda"; None: CUDA where there is a device, else the CPU. For an ONNX file, which
            provider of ONNX Runtime computes; None: CUDA for fp32 where it is installed.
        spinning: whether the threads of an ONNX file wait for work at full load (`OnnxModel`).

    Raises:
        ValueError, OSError: there is no such model, it is damaged, or does another task (the message says which).
    """
    path = _onnx_file(Path(source).expanduser())
    if path.suffix == ONNX_SUFFIX:
        served = _load_onnx(path, device, spinning)
    elif RunFolder(path).metrics.is_file():
        served = _load_run(path, _device(device))
    elif (path / "adapter_config.json").is_file():
        if not RunFolder(path.parent).metrics.is_file():
            raise ValueError(
                f"{path} is an adapter without its run, which knows the base model and the labels. "
                "Give the run's folder, or merge the adapter and save the whole model."
            )
        served = _load_run(path.parent, _device(device))
    else:
        served = _load_checkpoint(source, task, _device(device))
    if task is not None and served.task != task:
        raise ValueError(f"{source} does {served.task}, not {task}.")
    return served


def _onnx_file(path: Path) -> Path:
    """The file to serve from a folder that holds exports and no model; else the path itself."""
    if not path.is_dir() or (path / CONFIG_FILE).is_file() or (path / "adapter_config.json").is_file():
        return path
    exports = RunFolder(path)
    return next((file for file in (exports.int8_onnx, exports.onnx) if file.is_file()), path)


def _load_run(folder: Path, device: torch.device) -> Served:
    from trainers.finished import FinishedRun

    finished = FinishedRun.open(folder)
    model, config = finished.model, finished.config
    if config.method == "lora":
        lora_core.eject_lora(lora_core.merge_lora(model))
    return _of_model(str(folder), model, finished.weights_folder, device, finished.text_processing)


def _processing_of_checkpoint(folder: Path) -> TextProcessing:
    """How a checkpoint from elsewhere takes long texts."""
    if (folder / TEXT_PROCESSING_FILE).is_file():
        return TextProcessing.read(folder)
    limits = StatedLimits.read(folder)
    return TextProcessing(limits.max_length, "tail" if limits.keeps_end else "head")


def _load_checkpoint(source: str | Path, task: str | None, device: torch.device) -> Served:
    folder = resolve(source)
    model = load_pretrained(source, task or _task_of(folder))
    assert isinstance(model, TaskModel)
    if model.fresh_parameters:
        raise ValueError(f"{source} has no trained head for {model.task}: train it first, or give a fine-tuned model.")
    return _of_model(str(source), model, folder, device, _processing_of_checkpoint(folder))


def _of_model(source: str, model: TaskModel, folder: Path, device: torch.device, processing: TextProcessing) -> Served:
    reads_text = model.base_model.reads == "text"
    decision = Decision.read(folder)
    return Served(
        source,
        model.eval().to(device),
        model.task,
        model.labels,
        device,
        folder,
        {},
        max_length=_longest(source, processing, model.config.max_tokens) if reads_text else 0,
        pad_token_id=model.config.pad_token_id if reads_text else 0,
        vocab_size=model.config.vocab_size if reads_text else 0,
        long_text=processing.long_text,
        pairs=processing.pairs,
        reading=processing.reading,
        segments=model.base_model.segments,
        problem_type=model.problem_type or decision.problem_type,
        thresholds=decision.thresholds,
    )


def _longest(source: str, processing: TextProcessing, positions: int) -> int:
    """Most tokens of an input; it is said where the model has room for more."""
    longest = min(processing.max_length or positions, positions)
    if longest < positions:
        logger.info(
            "%s reads at most %d tokens at a time, as it says; it has positions for %d", source, longest, positions
        )
    return longest


def _load_onnx(path: Path, device: str | None, spinning: bool) -> Served:
    from lora_core.export import OnnxModel
    from lora_core.export.runtime import CPU, CUDA

    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. `lora-core export RUN` writes RUN/model.onnx.")
    place = None if device is None else _parsed(device)
    if place is not None and (place.type not in ("cpu", "cuda") or place.index):
        raise ValueError(
            f"device is {device!r}; ONNX files run on cpu or cuda, of several GPUs on the first that "
            "CUDA_VISIBLE_DEVICES names."
        )
    providers = None if place is None else [CPU] if place.type == "cpu" else [CUDA, CPU]
    model = OnnxModel(path, spinning=spinning, providers=providers).eval()
    if model.activations == "dynamic":
        logger.info("%s is int8 with dynamic scales: scores depend a little on the batch, unless max_tokens is 1", path)
    settings = model.metadata.get(TEXT_PROCESSING_FILE, "{}")
    processing = TextProcessing.from_json(settings, f"{path}: {TEXT_PROCESSING_FILE}")
    decision = Decision.from_json(model.metadata.get(DECISION_FILE, "{}"), f"{path}: {DECISION_FILE}")
    return Served(
        str(path),
        model,
        model.task,
        model.labels,
        torch.device("cpu"),
        None,
        model.metadata,
        max_length=_longest(str(path), processing, model.max_tokens),
        pad_token_id=int(model.metadata.get("pad_token_id", 0)),
        vocab_size=model.vocab_size,
        long_text=processing.long_text,
        pairs=processing.pairs,
        reading=processing.reading,
        segments=int(model.metadata.get("segments", 1)),
        problem_type=model.problem_type,
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


def _device(name: str | None) -> torch.device:
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
