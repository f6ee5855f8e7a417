"""`lora-core bench`: a finished run in PyTorch against its ONNX exports, each measured in a process of its own."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnxruntime
import torch

from lora_core.export import read_metadata
from lora_core.export.session import activations_of
from lora_core.files import read_json_object, write_json
from trainers.data.splits import take
from trainers.finished import FinishedRun
from trainers.run_folder import RunFolder
from trainers.serve.bench_worker import WORK_FILE, Work
from trainers.serve.export import export_run, file_size, is_exported
from trainers.show import COLOURS, blank_figure, fitted_table, plain_axes, save_figure, score_text

CUDA = "CUDAExecutionProvider"
COMPARED = 500
"""Most examples whose predictions are compared."""
SAME_NUMBER = 0.01
"""How far apart two numbers are the same prediction, in standard deviations of the predictions."""


@dataclass(frozen=True)
class Variant:
    """One way to serve the run."""

    name: str
    source: Path
    """The run folder, or an ONNX file."""
    device: str


@dataclass(frozen=True)
class Measured:
    """The figures of one variant."""

    name: str
    device: str
    size_bytes: int
    """The ONNX file; for PyTorch the merged weights in fp32."""
    load_seconds: float
    """Imports do not count."""
    memory_bytes: int
    """What loading the model and predicting with it adds to the peak of the process that holds torch and the data."""
    process_bytes: int
    """Peak of the whole process."""
    device_memory_bytes: int | None
    """PyTorch on CUDA: peak of allocated memory there."""
    latency_p50_ms: float
    """Of one example at a time."""
    latency_p95_ms: float
    examples_per_second_unsorted: float
    """In batches of 16, as the data comes."""
    examples_per_second_sorted: float
    """In the pipeline's batches: sorted by length, under a token budget."""
    providers: list[str] | None
    """Of ONNX Runtime, as the session reports them."""
    scores: dict[str, float]
    identical: int
    """Of the compared examples, those with exactly PyTorch's predictions."""


@dataclass(frozen=True)
class Comparison:
    """All variants of one run; PyTorch on the CPU first."""

    run: str
    data: str
    split: str
    metric: str
    scored: int
    """Examples that the scores are computed on."""
    timed: int
    """Examples that speed is measured on, the first of the split."""
    compared: int
    """Examples whose predictions are compared with PyTorch's, the first of the split."""
    threads: int
    cuda_provider: bool
    """Whether ONNX Runtime has its CUDA provider here."""
    variants: tuple[Measured, ...]


def bench_run(
    folder: str | Path,
    *,
    split: str = "test",
    limit: int | None = None,
    timed: int = 500,
    rounds: int = 3,
    threads: int | None = None,
) -> Comparison:
    """Measure a finished run in PyTorch and as ONNX, exporting it first where `is_exported` does not hold.

    Args:
        split: the data to score and to time on.
        limit: score on the first so many examples; None: on all.
        timed: speed is measured on the first so many examples.
        rounds: passes over them, of which the fastest counts.
        threads: of each process; None: as many as torch takes.

    Raises:
        ValueError: the run is not finished, has no such split, or its export fails the checks.
    """
    folder = Path(folder)
    if any(number is not None and number < 1 for number in (limit, timed, rounds, threads)):
        raise ValueError("limit, timed, rounds and threads must be at least 1.")
    finished = FinishedRun.open(folder)
    config, dataset = finished.config, finished.split(split).in_memory()
    scored, timed = min(limit or len(dataset), len(dataset)), min(timed, len(dataset))
    if not is_exported(finished):
        export_run(folder)
    work = Work(
        config,
        finished.task,
        scored=finished.encode(take(dataset, np.arange(scored))),
        timed=finished.encode(take(dataset, np.arange(timed))),
        timed_examples=timed,
        threads=threads or torch.get_num_threads(),
        rounds=rounds,
    )
    weights = sum(tensor.numel() * 4 for name, tensor in finished.model.state_dict().items() if "lora_" not in name)
    variants = _variants(folder)
    measured: list[Measured] = []
    reference: list[np.ndarray] = []
    compared = min(COMPARED, scored)
    for variant in variants:
        figures, predictions = _in_own_process(variant, work)
        reference = reference or predictions
        same = same_predictions(predictions, reference)
        size = weights if variant.source == folder else file_size(variant.source)
        measured.append(Measured(variant.name, variant.device, size, identical=sum(same[:compared]), **figures))
    return Comparison(
        finished.run.name,
        Path(config.data).name,
        split,
        finished.metric,
        scored,
        timed,
        compared,
        work.threads,
        CUDA in onnxruntime.get_available_providers(),
        tuple(measured),
    )


def same_predictions(predictions: list[np.ndarray], reference: list[np.ndarray]) -> list[bool]:
    """Of each example whether it has the reference's labels, or a number within `SAME_NUMBER` of it."""
    if not np.issubdtype(reference[0].dtype, np.floating):
        return [np.array_equal(ours, theirs) for ours, theirs in zip(predictions, reference, strict=True)]
    ours, theirs = np.concatenate(predictions), np.concatenate(reference)  # (N,) each
    return (np.abs(ours - theirs) <= SAME_NUMBER * theirs.std()).tolist()


def bench_table(comparison: Comparison) -> str:
    """The comparison for the terminal; factors are relative to the first row."""
    first = comparison.variants[0]
    head = [
        "",
        "MB",
        "load s",
        "memory MB",
        "process MB",
        "p50 ms",
        "p95 ms",
        "unsorted/s",
        "sorted/s",
        "factor",
        comparison.metric,
        f"same of {comparison.compared}",
    ]
    rows = [head]
    for variant in comparison.variants:
        factor = variant.examples_per_second_sorted / first.examples_per_second_unsorted
        rows.append(
            [
                f"{variant.name}, {variant.device}",
                f"{variant.size_bytes / 1e6:.1f}",
                f"{variant.load_seconds:.2f}",
                f"{variant.memory_bytes / 1e6:.0f}",
                f"{variant.process_bytes / 1e6:.0f}",
                f"{variant.latency_p50_ms:.2f}",
                f"{variant.latency_p95_ms:.2f}",
                f"{variant.examples_per_second_unsorted:.1f}",
                f"{variant.examples_per_second_sorted:.1f}",
                f"{factor:.2f}x",
                score_text(comparison.metric, variant.scores[comparison.metric]),
                str(variant.identical),
            ]
        )
    cuda = "" if comparison.cuda_provider else "; ONNX Runtime has no CUDA provider here"
    notes = (
        f"{comparison.run} on {comparison.data} {comparison.split}: {comparison.scored} examples scored, "
        f"{comparison.timed} timed, threads: {comparison.threads}{cuda}. memory: what the model adds to the peak "
        "of a process that holds torch and the data. factor: sorted by length, against the first row unsorted in "
        "batches of 16. "
        "Scores in percent."
    )
    return f"{fitted_table(rows)}\n{notes}"


def read_bench(path: str | Path) -> Comparison:
    """What `write_bench` wrote.

    Raises:
        ValueError: the file is damaged, or of another version.
    """
    remedy = "Write it again with lora-core bench."
    values = read_json_object(Path(path), remedy)
    try:
        variants = tuple(Measured(**variant) for variant in values.pop("variants"))
        return Comparison(**values, variants=variants)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is of another version ({error}). {remedy}") from error


def write_bench(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Write bench.json and bench.png into a folder, and return their paths."""
    figures = write_json(Path(folder, "bench.json"), asdict(comparison))
    plot_bench(comparison, Path(folder, "bench.png"))
    return [figures, Path(folder, "bench.png")]


def _variants(folder: Path) -> list[Variant]:
    files = RunFolder(folder)
    variants = [
        Variant("PyTorch", folder, "cpu"),
        Variant("ONNX fp32", files.onnx, "cpu"),
        Variant(f"ONNX int8 {activations_of(read_metadata(files.int8_onnx))}", files.int8_onnx, "cpu"),
    ]
    if torch.cuda.is_available():
        variants.append(Variant("PyTorch", folder, "cuda"))
    if CUDA in onnxruntime.get_available_providers():
        variants.append(Variant("ONNX fp32", files.onnx, "cuda"))
    return variants


def _in_own_process(variant: Variant, work: Work) -> tuple[dict[str, Any], list[np.ndarray]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / WORK_FILE).open("wb") as file:
            pickle.dump(work, file)
        command = [sys.executable, "-m", "trainers.serve.bench_worker", name, str(variant.source), variant.device]
        # In a session of its own Ctrl-C does not reach it: it is ended by the one that waits for it.
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, start_new_session=True)
        if done.returncode != 0:
            raise ValueError(f"measuring {variant.name} on {variant.device} failed; its error stands above.")
        with np.load(folder / "predictions.npz", allow_pickle=False) as arrays:
            return json.loads(done.stdout.splitlines()[-1]), [arrays[key] for key in arrays.files]


SHADES = (COLOURS[-1], *COLOURS)
"""Grey for PyTorch, with which the others are compared."""


def plot_bench(comparison: Comparison, path: str | Path | IO[bytes], noun: str = "examples") -> None:
    """Write the picture as a PNG file; ``noun`` says what the examples are."""
    variants = comparison.variants
    panels = [
        ("size, MB", [variant.size_bytes / 1e6 for variant in variants], "{:.0f}"),
        ("memory, MB", [variant.memory_bytes / 1e6 for variant in variants], "{:.0f}"),
        ("latency of one example, ms (median)", [variant.latency_p50_ms for variant in variants], "{:.1f}"),
        (f"{noun} a second, batches of 16", [v.examples_per_second_unsorted for v in variants], "{:.0f}"),
        (f"{noun} a second, sorted by length", [v.examples_per_second_sorted for v in variants], "{:.0f}"),
        (
            f"{comparison.metric} on {comparison.split}, %",
            [100 * v.scores[comparison.metric] for v in variants],
            "{:.2f}",
        ),
    ]
    figure = blank_figure(11.0, 5.6)
    names = [variant.name if variant.device == "cpu" else f"{variant.name}\n{variant.device}" for variant in variants]
    names = [name.replace("int8 ", "int8\n") for name in names]  # in two lines, to stay below its own bar
    for axes, (title, values, label) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        bars = axes.bar(names, values, color=[SHADES[place % len(SHADES)] for place in range(len(values))])
        axes.bar_label(bars, [label.format(value) for value in values], padding=2)
        axes.set_title(title, fontsize="medium")
        axes.set_ylim(0, 1.15 * max(values, default=1) or 1)
        plain_axes(axes, grid=None)
    figure.suptitle(f"{comparison.run} on {comparison.data}, threads: {comparison.threads}", fontweight="bold")
    save_figure(figure, path)
