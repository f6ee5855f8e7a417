"""What serves MiniLM fastest on this CPU: PyTorch, ONNX Runtime and OpenVINO on the same files, in one run.

    LORA_DATA_DIR=... pytest benchmarks/test_backends.py

500 sentences of BioNLP2004's test split, or without it sentences made here in like lengths, in the pipeline's batches,
sorted by length, on one thread and on two. Each round takes every backend in turn; a ratio is the median over the
rounds of two times of one round: of the processor on one thread, of the clock on two. The head is drawn at random, on
which no time depends; `from fp32` is the mean distance of the logits from PyTorch's in fp32, in their standard
deviations. What rounding costs in points is `lora-core bench`'s subject.

Run it on a quiet machine; it takes about ten minutes. LORA_BENCHMARK_SIZE=small tries the file in one.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lora_core.export import OnnxSession, export_onnx, quantize_onnx
from lora_core.export.openvino_engine import computes_bf16
from lora_core.models import load_pretrained, resolve
from lora_core.models.task_model import TaskModel
from trainers.data.batches import evaluation_batches
from trainers.data.tokenizer import load_tokenizer
from trainers.serve.pipeline import MAX_TOKENS
from trainers.serve.served_torch import InBfloat16, Logits

openvino: Any = pytest.importorskip("openvino", reason="the opponent: pip install 'lora-core[openvino]'")

pytestmark = pytest.mark.timeout(1800)

SMALL = os.environ.get("LORA_BENCHMARK_SIZE") == "small"
SENTENCES = 20 if SMALL else 500
ROUNDS = 1 if SMALL else 7
CALIBRATION = 10 if SMALL else 300
LABELS = tuple(f"label {number}" for number in range(11))
AIM = 1.1
"""Throughput of our int8, of that of OpenVINO's fastest row."""

Batch = dict[str, np.ndarray]
Run = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def minilm() -> TaskModel:
    model = load_pretrained("embedded", "token-classification", LABELS)
    assert isinstance(model, TaskModel)
    return model.eval()


@pytest.fixture(scope="module")
def texts() -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of what is timed, and of other sentences, for calibration."""
    path = Path(os.environ.get("LORA_DATA_DIR", "/nowhere"), "bionlp2004", "test.json")
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        sentences = [" ".join(json.loads(line)["tokens"]) for line in lines[: SENTENCES + CALIBRATION]]
    else:
        random = np.random.default_rng(0)
        words = [
            "the",
            "expression",
            "of",
            "gene",
            "receptor",
            "in",
            "cells",
            "was",
            "activation",
            "protein",
            "binding",
        ]
        lengths = np.clip(random.lognormal(3.1, 0.5, SENTENCES + CALIBRATION), 3, 120).astype(int)
        sentences = [" ".join(random.choice(words, length)) for length in lengths]
    encoded = [each.ids for each in load_tokenizer(resolve("embedded")).encode_batch(sentences)]
    return encoded[:SENTENCES], encoded[SENTENCES:]


def batches_of(texts: list[list[int]]) -> list[Batch]:
    """The pipeline's batches, sorted by length."""
    found = []
    for rows in evaluation_batches(np.array([len(ids) for ids in texts]), MAX_TOKENS["cpu"]):
        width = max(len(texts[row]) for row in rows)
        ids = np.array([[*texts[row], *[0] * (width - len(texts[row]))] for row in rows])
        found.append({"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)})
    return found


def files_of(model: TaskModel, calibration: list[list[int]], folder: Path) -> dict[str, Path]:
    """fp32, int8 dynamic and int8 static."""
    fp32 = export_onnx(model, folder / "fp32.onnx")
    batches = [{name: torch.from_numpy(array) for name, array in each.items()} for each in batches_of(calibration)]
    return {
        "fp32": fp32,
        "int8 dynamic": quantize_onnx(fp32, folder / "dynamic.onnx"),
        "int8 static": quantize_onnx(fp32, folder / "static.onnx", batches),
    }


def ways(model: TaskModel, files: dict[str, Path], threads: int) -> dict[str, Run]:
    """What answers a batch, by name; those are left out that this CPU does not compute."""
    torch.set_num_threads(threads)
    host = torch.device("cpu")
    found: dict[str, Run] = {"PyTorch fp32": Logits(model, host)}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        half = load_pretrained("embedded", "token-classification", LABELS).eval()
        half.load_state_dict(model.state_dict())
        found["PyTorch bf16"] = Logits(InBfloat16(half), host)
    for name, path in files.items():
        found[f"ONNX Runtime {name}"] = OnnxSession(path, threads=threads).run
    for name, path in files.items():
        found[f"OpenVINO {name}"] = OnnxSession(path, threads=threads, backend="openvino").run
    if computes_bf16():
        for name in ("fp32", "int8 static"):
            title = "bf16" if name == "fp32" else f"{name}, bf16"
            found[f"OpenVINO {title}"] = OnnxSession(files[name], threads=threads, backend="openvino-bf16").run
    return found


def distances(runs: dict[str, Run], batches: list[Batch]) -> dict[str, float]:
    """Mean distance of the real tokens' logits from those of the first, in their standard deviations."""
    masks = [batch["attention_mask"] != 0 for batch in batches]
    logits = {
        name: np.concatenate([run(**batch)[mask] for batch, mask in zip(batches, masks, strict=True)])
        for name, run in runs.items()
    }
    reference = logits["PyTorch fp32"]
    return {name: float(np.abs(each - reference).mean() / reference.std()) for name, each in logits.items()}


@pytest.mark.parametrize("threads", [1, 2])
def test_backends(
    minilm: TaskModel,
    texts: tuple[list[list[int]], list[list[int]]],
    threads: int,
    tmp_path: Path,
    publish: Callable[[list[str]], None],
) -> None:
    before = torch.get_num_threads()
    try:
        runs = ways(minilm, files_of(minilm, texts[1], tmp_path), threads)
        batches = batches_of(texts[0])
        distance = distances(runs, batches)  # all shapes have been met now
        seconds = {name: np.zeros((ROUNDS, 2)) for name in runs}  # of the processor, of the clock
        for number in range(ROUNDS):
            for name, run in runs.items():
                started = time.process_time(), time.perf_counter()
                for batch in batches:
                    run(**batch)
                seconds[name][number] = time.process_time() - started[0], time.perf_counter() - started[1]
    finally:
        torch.set_num_threads(before)
    counted = 0 if threads == 1 else 1
    medians = {name: np.median(each, axis=0) for name, each in seconds.items()}
    ours = seconds["ONNX Runtime int8 static"][:, counted]
    lines = [f"{len(texts[0])} sentences, threads: {threads}   CPU s  clock s   of our int8   from fp32"]
    for name, (processor, clock) in medians.items():
        ratio = float(np.median(ours / seconds[name][:, counted]))
        lines.append(f"{name:<30}{processor:>8.2f}{clock:>9.2f}{ratio:>13.2f}x{distance[name]:>12.4f}")
    fastest = min((name for name in medians if name.startswith("OpenVINO")), key=lambda name: medians[name][counted])
    ratios = seconds[fastest][:, counted] / ours
    lines.append(
        f"our int8 against {fastest}, the fastest of OpenVINO: {np.median(ratios):.2f}x "
        f"({ratios.min():.2f} to {ratios.max():.2f}), aim {AIM}x"
    )
    publish(lines)
    assert max(each for name, each in distance.items() if name.endswith(" fp32")) < 1e-4
    assert max(distance.values()) < 0.25
