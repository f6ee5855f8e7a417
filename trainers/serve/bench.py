"""`lora-core bench`: a finished run in PyTorch against its ONNX exports on the backends that are installed, each
measured in a process of its own; and which of them is the fastest at equal quality.
"""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import onnxruntime
import torch

from lora_core.export import PointsLost, read_metadata
from lora_core.export.openvino_engine import core
from lora_core.export.session import activations_of
from lora_core.files import read_json_object, write_json
from lora_core.whole import is_waiting
from trainers.data.splits import take
from trainers.finished import FinishedRun
from trainers.run_folder import RunFolder
from trainers.serve.backends import Backend, Finding, Way, best_line, digests_of, this_machine, write_finding
from trainers.serve.bench_worker import WORK_FILE, Work
from trainers.serve.export import POINTS_LOST, export_run, file_size, is_exported
from trainers.show import COLOURS, blank_figure, fitted_table, plain_axes, save_figure, score_text

logger = logging.getLogger("trainers")

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
    backend: Backend


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
    backend: str = ""
    """What `--backend` calls it; "" in files of earlier versions."""
    file: str = ""
    """The ONNX file's name; "" for PyTorch."""


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
    finding: str = ""
    """Which is the fastest at equal quality, in a line."""


def bench_run(
    folder: str | Path,
    *,
    split: str = "test",
    limit: int | None = None,
    timed: int = 500,
    rounds: int = 3,
    threads: int | None = None,
    points_lost: float = POINTS_LOST,
) -> Comparison:
    """Measure a finished run in PyTorch and as ONNX, exporting it first where `is_exported` does not hold.

    What is installed is tried: PyTorch in fp32, and in bf16 where the CPU computes it; ONNX Runtime; OpenVINO. Which is
    the fastest at equal quality is kept in the run's folder, where ``--backend auto`` finds it.

    Args:
        split: the data to score and to time on.
        limit: score on the first so many examples; None: on all.
        timed: speed is measured on the first so many examples.
        rounds: passes over them, of which the fastest counts.
        threads: of each process; None: as many as torch takes.
        points_lost: most points of the metric that a variant may lose against PyTorch and still be of equal quality.

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
        try:
            export_run(folder, points_lost=points_lost)
        except PointsLost as error:
            logger.warning("int8 is left out: %s", error)
    work = Work(
        config,
        finished.task,
        scored=finished.encode(take(dataset, np.arange(scored))),
        timed=finished.encode(take(dataset, np.arange(timed))),
        timed_examples=timed,
        threads=threads or torch.get_num_threads(),
        rounds=rounds,
    )
    named = finished.model.state_dict().items()
    weights = sum(tensor.numel() * 4 for name, tensor in named if "lora_" not in name and not is_waiting(name))
    variants = _variants(folder)
    measured: list[Measured] = []
    reference: list[np.ndarray] = []
    compared = min(COMPARED, scored)
    for variant in variants:
        try:
            figures, predictions = _in_own_process(variant, work)
        except ValueError as error:
            if not variant.backend.startswith("openvino"):
                raise
            logger.warning("%s is left out: %s", variant.name, error)  # not every model is for OpenVINO
            continue
        reference = reference or predictions
        same = same_predictions(predictions, reference)
        size = weights if variant.source == folder else file_size(variant.source)
        file = "" if variant.source == folder else variant.source.name
        given = {"identical": sum(same[:compared]), "backend": variant.backend, "file": file}
        measured.append(Measured(variant.name, variant.device, size, **given, **figures))
    finding = _finding(finished, split, work.threads, measured, points_lost)
    write_finding(finding, finished.files)
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
        best_line(finding),
    )


def _finding(
    finished: FinishedRun, split: str, threads: int, measured: Sequence[Measured], points_lost: float
) -> Finding:
    """The measured ways, to be kept with what their speed and results depend on."""
    metric = finished.guarded_metric
    reference = measured[0].scores[metric]
    ways = [
        Way(
            cast(Backend, each.backend),
            each.file,
            each.device,
            (reference - each.scores[metric]) * 100,
            each.examples_per_second_sorted,
        )
        for each in measured
    ]
    return Finding(this_machine(), threads, digests_of(finished.files), split, metric, points_lost, tuple(ways))


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
    return "\n".join([fitted_table(rows), notes, *([comparison.finding] if comparison.finding else [])])


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
    variants = [Variant("PyTorch", folder, "cpu", "torch"), Variant("ONNX fp32", files.onnx, "cpu", "onnx")]
    int8 = f"int8 {activations_of(read_metadata(files.int8_onnx))}" if files.int8_onnx.is_file() else ""
    if int8:
        variants.append(Variant(f"ONNX {int8}", files.int8_onnx, "cpu", "onnx"))
    capabilities = _openvino_capabilities()
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        variants.append(Variant("PyTorch bf16", folder, "cpu", "torch-bf16"))
    if capabilities:
        variants.append(Variant("OpenVINO fp32", files.onnx, "cpu", "openvino"))
        if int8:
            variants.append(Variant(f"OpenVINO {int8}", files.int8_onnx, "cpu", "openvino"))
    if "BF16" in capabilities:
        variants.append(Variant("OpenVINO bf16", files.onnx, "cpu", "openvino-bf16"))
        if int8:
            variants.append(Variant(f"OpenVINO {int8}, bf16", files.int8_onnx, "cpu", "openvino-bf16"))
    if torch.cuda.is_available():
        variants.append(Variant("PyTorch", folder, "cuda", "torch"))
    if CUDA in onnxruntime.get_available_providers():
        variants.append(Variant("ONNX fp32", files.onnx, "cuda", "onnx"))
    return variants


def _openvino_capabilities() -> list[str]:
    """What OpenVINO computes on this CPU; nothing where it is not installed, which is said."""
    try:
        return list(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    except ValueError as error:
        logger.info("not measured: %s", error)
        return []


def _in_own_process(variant: Variant, work: Work) -> tuple[dict[str, Any], list[np.ndarray]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / WORK_FILE).open("wb") as file:
            pickle.dump(work, file)
        command = [sys.executable, "-m", "trainers.serve.bench_worker", name, str(variant.source), variant.device]
        command.append(variant.backend)
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
    figure = blank_figure(11.0, 5.6 if len(variants) < 5 else 7.5)
    names = [variant.name if variant.device == "cpu" else f"{variant.name}\n{variant.device}" for variant in variants]
    names = [name.replace("int8 ", "int8\n") for name in names]  # in two lines, to stay below its own bar
    for axes, (title, values, label) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        bars = axes.bar(names, values, color=[SHADES[place % len(SHADES)] for place in range(len(values))])
        axes.bar_label(bars, [label.format(value) for value in values], padding=2)
        axes.tick_params("x", rotation=90 if len(names) > 4 else 0)
        axes.set_title(title, fontsize="medium")
        axes.set_ylim(0, 1.15 * max(values, default=1) or 1)
        plain_axes(axes, grid=None)
    figure.suptitle(f"{comparison.run} on {comparison.data}, threads: {comparison.threads}", fontweight="bold")
    save_figure(figure, path)
