"""One way of training with several seeds: a run for each, and the mean of their scores with its interval."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_core.files import write_json, write_text
from trainers.config import RunConfig
from trainers.experiment import run
from trainers.results.significance import half_width
from trainers.run_folder import Run
from trainers.show import duration, markdown_table

logger = logging.getLogger("trainers")


def run_seeds(config: RunConfig, seeds: int) -> list[Run]:
    """Train and test with the seeds ``config.seed``, the next one, and so on, each in the folder ``seed-N`` of its own.

    Under torchrun every process calls this. An interrupted series goes on with resume="auto": finished runs are read.

    Args:
        config: settings of all runs; ``output_dir`` holds their folders.
        seeds: how many.

    Raises:
        ValueError: there is no run to make, or what `run` raises.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, but it is {seeds}.")
    return [
        run(dataclasses.replace(config, seed=seed, output_dir=config.output_dir / f"seed-{seed}"))
        for seed in range(config.seed, config.seed + seeds)
    ]


@dataclasses.dataclass(frozen=True)
class Mean:
    """A score over seeds, from 0 to 1 where it is a share."""

    mean: float
    deviation: float | None
    """Standard deviation over the runs; None of a single one."""
    half_width: float | None
    """Half the width of the 95% t interval of the mean; None of a single one."""


def means(runs: Sequence[Run]) -> dict[str, Mean]:
    """The scores that are one number, by name, on the test split (validation where there is none)."""
    scores = [run.result[split_of(runs)] for run in runs]
    names = [name for name, value in scores[0].items() if isinstance(value, (int, float))]
    found = {}
    for name in names:
        values = [score[name] for score in scores]
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        found[name] = Mean(float(np.mean(values)), deviation, half_width(values))
    return found


def split_of(runs: Sequence[Run]) -> str:
    """The split that all runs have scores of: test, or validation where one has no test scores."""
    return "test" if all("test" in run.result for run in runs) else "validation"


def seeds_report(runs: Sequence[Run]) -> str:
    """A Markdown table, a row for each score, of the mean and the runs; in percent, but for losses and correlations."""
    split, found = split_of(runs), means(runs)
    seeds = [f"seed {run.config['seed']}" for run in runs]
    rows = []
    for name, mean in found.items():
        spread = ["", ""]
        if mean.deviation is not None and mean.half_width is not None:
            spread = [_shown(name, mean.deviation), f"±{_shown(name, mean.half_width)}"]
        rows.append([name, _shown(name, mean.mean), *spread, *(_shown(name, run.result[split][name]) for run in runs)])
    rows.append(["time", duration(sum(run.result["seconds"] for run in runs) / len(runs)), "", "", *map(_time, runs)])
    table = markdown_table([f"{split} split", "mean", "deviation", "95% interval", *seeds], rows)
    return f"{table}\n\nScores in percent; the interval is the t interval of the mean of {len(runs)} seeds.\n"


def write_seeds(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write seeds.md and seeds.json into the folder that holds the runs; return their paths."""
    figures: dict[str, Any] = {name: dataclasses.asdict(mean) for name, mean in means(runs).items()}
    table = write_text(folder / "seeds.md", seeds_report(runs))
    return [
        table,
        write_json(
            folder / "seeds.json",
            {"split": split_of(runs), "runs": [str(run.folder) for run in runs], "scores": figures},
        ),
    ]


AS_THEY_ARE = ("loss", "pearson", "spearman", "mse", "r2")
"""Figures that are no shares."""


def _shown(name: str, value: float) -> str:
    return f"{value:.4f}" if name in AS_THEY_ARE else f"{100 * value:.2f}"


def _time(run: Run) -> str:
    return duration(run.result["seconds"])
