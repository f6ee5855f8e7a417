"""One measurement of `lora-core bench`, in a process of its own: `python -m trainers.serve.bench_worker FOLDER
MODEL DEVICE BACKEND`.

FOLDER holds work.pickle, which bench.py wrote; MODEL is a run folder or an ONNX file; BACKEND what --backend takes.
The result goes to standard output as JSON, the predictions to FOLDER.
"""

import json
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from trainers.config import RunConfig
from trainers.data.batches import Data, evaluation_batches
from trainers.loop import predict
from trainers.processes.distributed import World
from trainers.serve.backends import Backend
from trainers.serve.pipeline import MAX_TOKENS
from trainers.serve.served import load_served
from trainers.tasks.task import Task
from trainers.training.memory import peak_memory_bytes, reset_peak_memory

WORK_FILE = "work.pickle"
WARM_UP = 10
"""Examples that run before anything is timed."""
UNSORTED_BATCH = 16
"""The batch of the users' own scripts: examples as they come, padded to the longest."""


@dataclass(frozen=True)
class Work:
    """What every measured process gets."""

    config: RunConfig
    task: Task
    scored: Data
    """The examples that the score is computed on."""
    timed: Data
    """The examples that speed is measured on."""
    timed_examples: int
    """Sentences, texts or images in `timed` (long ones may be several windows)."""
    threads: int
    rounds: int


def main(arguments: Sequence[str]) -> None:
    folder, (source, device, backend) = Path(arguments[0]), arguments[1:]
    with (folder / WORK_FILE).open("rb") as file:
        work: Work = pickle.load(file)  # written by the process that started this one, into a folder of its own
    torch.set_num_threads(work.threads)
    try:
        figures, predictions = measure(work, source, device, cast(Backend, backend))
    except ValueError as error:
        sys.exit(str(error))
    np.savez(folder / "predictions.npz", *predictions)
    print(json.dumps(figures))


@torch.inference_mode()
def measure(
    work: Work, source: str, device: str, backend: Backend | None = None
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The figures of one model, and its predictions for every scored example."""
    host = torch.device("cpu")
    reset_peak_memory(host)
    before = peak_memory_bytes(host)
    if source.endswith(".onnx"):
        from lora_core.export.runtime import OnnxModel  # its memory counts, the time of importing it does not
    else:
        import trainers.experiment  # noqa: F401
    started = time.perf_counter()
    served = load_served(source, device=device, backend=backend, threads=work.threads)
    load_seconds = time.perf_counter() - started
    model = served.model
    if source.endswith(".onnx"):
        model = OnnxModel.of(model)
    data, where = work.timed, torch.device(served.device)  # an ONNX file takes its inputs from the CPU

    def run(indices: np.ndarray) -> None:
        inputs, _ = data.collate(indices)
        model(**{name: tensor.to(where) for name, tensor in inputs.items()}).cpu()

    order = np.arange(len(data.lengths))
    for index in order[:WARM_UP]:
        run(order[index : index + 1])
    latencies = [_seconds(run, [order[index : index + 1]]) for index in order]
    unsorted = [order[start : start + UNSORTED_BATCH] for start in range(0, len(order), UNSORTED_BATCH)]
    seconds_unsorted = min(_seconds(run, unsorted) for _ in range(work.rounds))
    by_length = _sorted_batches(data, where)
    seconds_sorted = min(_seconds(run, by_length) for _ in range(work.rounds))
    memory = peak_memory_bytes(host)
    world = World(rank=0, size=1, device=where)
    _, found = predict(model, work.task, work.scored, work.config, world)
    scores = work.task.metrics(found, work.scored)
    predictions, _ = work.task.examples(found, work.scored)
    figures = {
        "load_seconds": load_seconds,
        "memory_bytes": memory - before,
        "process_bytes": memory,
        "device_memory_bytes": torch.cuda.max_memory_allocated(where) if where.type == "cuda" else None,
        "latency_p50_ms": 1e3 * float(np.percentile(latencies, 50)),
        "latency_p95_ms": 1e3 * float(np.percentile(latencies, 95)),
        "examples_per_second_unsorted": work.timed_examples / seconds_unsorted,
        "examples_per_second_sorted": work.timed_examples / seconds_sorted,
        "providers": getattr(model, "providers", None),
        "scores": {name: value for name, value in scores.items() if isinstance(value, float)},
    }
    return figures, predictions


def _sorted_batches(data: Data, device: torch.device) -> list[np.ndarray]:
    """The batches of the pipeline; images, which have one length, in batches of the unsorted size."""
    if int(data.lengths.max()) == 1:
        order = np.arange(len(data.lengths))
        return [order[start : start + UNSORTED_BATCH] for start in range(0, len(order), UNSORTED_BATCH)]
    return evaluation_batches(data.lengths, MAX_TOKENS[device.type])


def _seconds(run: Callable[[np.ndarray], None], batches: Sequence[np.ndarray]) -> float:
    started = time.perf_counter()
    for indices in batches:
        run(indices)
    return time.perf_counter() - started


if __name__ == "__main__":
    # Under this name, and not as __main__, the pickled Work finds its class.

    from trainers.serve.bench_worker import main as run_main

    run_main(sys.argv[1:])
