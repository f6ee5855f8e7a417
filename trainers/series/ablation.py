"""Classifiers trained in several ways, each with several seeds: one table with intervals, one of memory, and pictures.

A comparison (`compare.py`) puts single runs side by side; an ablation repeats each way of training, because on small
data two seeds differ as much as two methods.
"""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from lora_core.files import write_json, write_text
from trainers.config import RunConfig
from trainers.experiment import run
from trainers.processes.distributed import World
from trainers.results.significance import half_width
from trainers.run_folder import Run, read_run
from trainers.show import duration, markdown_table

PRELOADED = ["trainers.experiment", "trainers.cli", "torch._dynamo"]
"""Modules that every run or example imports; torch's optimisers bring in the last one."""
METHODS = {"full": "full", "head": "head only", "lora": "LoRA"}


@dataclass(frozen=True)
class Variant:
    """One way of training."""

    model: str
    """What is trained, for the table: "small ViT, random weights"."""
    configs: Sequence[RunConfig]
    """One run for each seed; they differ in nothing else that matters."""


@dataclass(frozen=True)
class Estimate:
    """The mean over seeds, and half the width of its 95 % t-interval (None for a single seed)."""

    mean: float
    half_width: float | None


@dataclass(frozen=True)
class AblationRow:
    """One line of the table. Scores are on the test split (validation where there is none), from 0 to 1."""

    data: str
    """The data of the runs, as the settings name it."""
    split: str
    model: str
    method: str
    r: int | None
    lora_alpha: float | None
    trainable: int
    total: int
    accuracy: Estimate
    f1: Estimate
    loss: Estimate
    seconds: float
    """Mean duration of training."""
    peak_memory_bytes: int
    """Most of any seed."""
    labels: tuple[str, ...]
    confusion: list[list[int]]
    """Sum over the seeds; rows are true labels."""
    folders: tuple[Path, ...]
    """The runs."""


def run_ablation(variants: Sequence[Variant], world: World) -> list[AblationRow]:
    """Train every variant with every seed; under torchrun every process calls this. Finished runs are read.

    With a world of one, each run has a process of its own, in which no earlier run has left memory behind.
    """
    start = run if world.size > 1 else run_apart
    return [ablation_row(variant, [start(config) for config in variant.configs]) for variant in variants]


def run_apart(config: RunConfig) -> Run:
    """``run`` in a fresh process. It is forked from a server that has imported what runs need and done nothing else."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(run, config).result()


def ablation_row(variant: Variant, runs: Sequence[Run]) -> AblationRow:
    """One line of the table from the finished runs of a variant."""
    config, first = variant.configs[0], runs[0].result
    split = "test" if "test" in first else "validation"
    for each in runs:
        if "confusion" not in each.result[split]:
            raise ValueError(
                f"{each.folder} did {each.result.get('problem_type', config.task)}: an ablation needs runs with one "
                "label for each text or image."
            )
    scores = [run.result[split] for run in runs]
    lora = config.method == "lora"
    alpha = config.r if config.lora_alpha is None else config.lora_alpha
    return AblationRow(
        data=config.data,
        split=split,
        model=variant.model,
        method=METHODS[config.method] if config.epochs != 0 else "none",
        r=config.r if lora else None,
        lora_alpha=alpha if lora else None,
        trainable=first["trainable"] if config.epochs != 0 else 0,
        total=first["total"],
        accuracy=estimate([score["accuracy"] for score in scores]),
        f1=estimate([score["f1"] for score in scores]),
        loss=estimate([score["loss"] for score in scores]),
        seconds=float(np.mean([run.result["seconds"] for run in runs])),
        peak_memory_bytes=max(run.result["peak_memory_bytes"] for run in runs),
        labels=tuple(first["labels"]),
        confusion=np.sum([score["confusion"] for score in scores], axis=0).tolist(),
        folders=tuple(run.folder for run in runs),
    )


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and half width of the t-interval of independent values."""
    return Estimate(float(np.mean(values)), half_width(values))


def ablation_table(rows: Sequence[AblationRow], caption: str = "") -> str:
    """A Markdown table; scores in percent, with their intervals when there are several seeds."""
    header = ["model", "training", "r", "alpha", "trainable", "accuracy", "F1", "loss", "time", "peak memory"]
    lines = [
        [
            row.model,
            row.method,
            *("" if value is None else f"{value:g}" for value in (row.r, row.lora_alpha)),
            f"{row.trainable:,} ({row.trainable / row.total:.2%})",
            _shown(row.accuracy, 100),
            _shown(row.f1, 100),
            _shown(row.loss, 1),
            duration(row.seconds),
            f"{row.peak_memory_bytes / 1e9:.2f} GB",
        ]
        for row in rows
    ]
    seeds = len(rows[0].folders)
    of_seeds = f" Mean and 95 % t-interval of {seeds} seeds; time is that of one." if seeds > 1 else ""
    data = f"{Path(rows[0].data).name}, {rows[0].split} split"
    note = f"{data}. Accuracy and macro F1 in percent.{of_seeds} {caption}".strip()
    return f"{markdown_table(header, lines, left=2)}\n\n{note}\n"


def write_ablation(rows: Sequence[AblationRow], folder: str | Path, caption: str = "") -> list[Path]:
    """Write ablation.md, ablation.json and confusion.png into `folder`; return their paths."""
    from trainers.results.confusion import confusion_picture

    folder = Path(folder)
    table = write_text(folder / "ablation.md", ablation_table(rows, caption))
    figures = write_json(folder / "ablation.json", [_plain(row) for row in rows])
    picture = folder / "confusion.png"
    confusion_picture({_title(row): row.confusion for row in rows}, rows[0].labels, picture)
    return [table, figures, picture]


def _title(row: AblationRow) -> str:
    rank = "" if row.r is None else f" r {row.r}"
    return f"{row.model}\n{row.method}{rank}"


def _plain(row: AblationRow) -> dict[str, Any]:
    return {**dataclasses.asdict(row), "folders": [str(folder) for folder in row.folders]}


def _shown(value: Estimate, factor: float) -> str:
    digits = 2 if factor == 100 else 3
    half_width = "" if value.half_width is None else f" ± {factor * value.half_width:.{digits}f}"
    return f"{factor * value.mean:.{digits}f}{half_width}"


COLUMNS = {"allocated": "GPU allocated", "reserved": "GPU reserved", "resident": "peak RSS"}
NOTE = (
    "Peaks of training, most of any seed. Peak RSS is that of the main process, its libraries included. Runs have a "
    "process each, except under torchrun with several processes, where earlier runs leave memory behind."
)


def memory_table(rows: Sequence[AblationRow], reference: int = 0) -> str:
    """A Markdown table of peak memory; every figure also as a share of that of `rows[reference]`.

    Raises:
        ValueError: a run was made by a version that did not write these figures.
    """
    peaks = [_peaks([read_run(folder) for folder in row.folders]) for row in rows]
    columns = [name for name in COLUMNS if any(name in peak for peak in peaks)]
    lines = []
    for row, peak in zip(rows, peaks, strict=True):
        cells = [
            f"{peak[name] / 1e9:.2f} GB ({peak[name] / peaks[reference][name]:.0%})" if name in peak else ""
            for name in columns
        ]
        lines.append([row.model, row.method, *cells])
    table = markdown_table(["model", "training", *(COLUMNS[name] for name in columns)], lines, left=2)
    return f"{table}\n\n{NOTE} In brackets: against {rows[reference].model}.\n"


def _peaks(runs: Sequence[Run]) -> dict[str, int]:
    for each in runs:
        if "memory" not in each.result:
            raise ValueError(f"The run in {each.folder} has no figures of its memory: repeat it with this version.")
    return {name: max(run.result["memory"][name] for run in runs) for name in runs[0].result["memory"]}
