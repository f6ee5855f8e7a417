"""Finding a model to predict with: a run, a folder or hub id in transformers' layout, or an ONNX file or its folder.

An ONNX file is served without torch.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from lora_core.kernels.cores import limit_threads
from trainers.data.labels import DECISION_FILE, Decision
from trainers.data.texts.encode import TEXT_PROCESSING_FILE, TextProcessing
from trainers.run_folder import RunFolder
from trainers.serve.backends import ONNX_SUFFIX, Chosen, choose
from trainers.serve.served_model import Served

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"


def load_served(
    source: str | Path,
    task: str | None = None,
    device: str | None = None,
    *,
    spinning: bool = True,
    threads: int | None = None,
    shared: Path | None = None,
    backend: Chosen | None = None,
) -> Served:
    """Load a model to predict with.

    Args:
        source: the folder of a finished run, or its adapter/ or best/, wherever that lies now; a model folder in
            transformers' layout; a hub id; an ONNX file that `lora-core export` wrote, or a folder with nothing else to
            serve, of which model.int8.onnx is taken before model.onnx.
        task: what it must do; None takes what the run, file or checkpoint says.
        device: such as "cpu" or "cuda"; None: CUDA where there is a device, else the CPU. For an ONNX file, which
            provider of ONNX Runtime computes; None: CUDA for fp32 where it is installed.
        threads: of the model's arithmetic; None: `usual_threads()` of an ONNX file, and what torch has of others.
        shared: where the processes of a service keep the weights of ONNX files (`OnnxSession`).
        spinning: whether the threads of an ONNX file wait for work at full load (`OnnxModel`).
        backend: what computes; "auto" is what `lora-core bench` found to be the fastest (`choose`). None: onnxruntime
            for an ONNX file, torch for all else.

    Raises:
        ValueError, OSError: there is no such model, it is damaged, or does another task (the message says which).
    """
    limit_threads()
    chosen = choose(_onnx_file(Path(source).expanduser()), backend, device, threads)
    path, device = chosen.path, chosen.device
    if path.suffix == ONNX_SUFFIX:
        served = _load_onnx(path, device, spinning, threads, shared, chosen.backend)
    elif RunFolder(path).metrics.is_file():
        served = _with_torch(source).load_run(path, device, threads)
    elif (path / "adapter_config.json").is_file():
        served = _with_torch(source).load_adapter(path, device, threads)
    else:
        served = _with_torch(source).load_checkpoint(source, task, device, threads)
    if chosen.backend == "torch-bf16":
        served = _with_torch(source).in_bfloat16(served)
    if task is not None and served.task != task:
        raise ValueError(f"{source} does {served.task}, not {task}.")
    return served


def _onnx_file(path: Path) -> Path:
    """The file to serve from a folder that holds exports and no model; else the path itself."""
    if not path.is_dir() or (path / CONFIG_FILE).is_file() or (path / "adapter_config.json").is_file():
        return path
    exports = RunFolder(path)
    return next((file for file in (exports.int8_onnx, exports.onnx) if file.is_file()), path)


def _with_torch(source: str | Path) -> ModuleType:
    """What loads runs and checkpoints."""
    try:
        from trainers.serve import served_torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(
            f"{source} is no ONNX file, so it needs torch: pip install torch, or give what lora-core export wrote of "
            "it, such as RUN/model.int8.onnx",
            name="torch",
        ) from error
    return served_torch


def _load_onnx(
    path: Path, device: str | None, spinning: bool, threads: int | None, shared: Path | None, backend: Any
) -> Served:
    from lora_core.export.session import CPU, CUDA, OnnxSession

    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. `lora-core export RUN` writes RUN/model.onnx.")
    place = None if device is None else re.fullmatch(r"(cpu|cuda)(:0)?", device)
    if device is not None and place is None:
        raise ValueError(
            f"device is {device!r}; ONNX files run on cpu or cuda, of several GPUs on the first that "
            "CUDA_VISIBLE_DEVICES names."
        )
    providers = None if place is None else [CPU] if place[1] == "cpu" else [CUDA, CPU]
    model = OnnxSession(path, threads=threads, spinning=spinning, providers=providers, shared=shared, backend=backend)
    if model.activations == "dynamic":
        logger.info("%s is int8 with dynamic scales: scores depend a little on the batch, unless max_tokens is 1", path)
    settings = model.metadata.get(TEXT_PROCESSING_FILE, "{}")
    processing = TextProcessing.from_json(settings, f"{path}: {TEXT_PROCESSING_FILE}")
    decision = Decision.from_json(model.metadata.get(DECISION_FILE, "{}"), f"{path}: {DECISION_FILE}")
    return Served(
        str(path),
        model,
        model.run,
        model.task,
        model.labels,
        "cpu",
        None,
        model.metadata,
        max_length=processing.longest(model.max_tokens),
        pad_token_id=int(model.metadata.get("pad_token_id", 0)),
        vocab_size=model.vocab_size,
        long_text=processing.long_text,
        pairs=processing.pairs,
        reading=processing.reading,
        segments=int(model.metadata.get("segments", 1)),
        problem_type=model.problem_type,
        thresholds=decision.thresholds,
    )
