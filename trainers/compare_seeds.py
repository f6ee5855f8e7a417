"""Runs that differ in nothing but their seed, taken together: is a difference of F1 more than the chance of a seed?

The interval is Welch's (1947, Biometrika 34): two means of independent runs, whose variances may differ. It knows the
chance of the seed and not that of the test examples; `significance.py` knows the latter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainers.config import RESUME_MAY_CHANGE
from trainers.runs import Run
from trainers.tables import markdown_table

FREE = {"seed", *RESUME_MAY_CHANGE}
"""Settings in which runs of one group may differ."""
LEVEL = 0.95


@dataclass(frozen=True)
class SeedGroup:
    """Two or more runs with the same settings. Scores are from 0 to 1."""

    names: tuple[str, ...]
    """The runs' names in the comparison."""
    f1: float
    """Mean."""
    deviation: float
    """Standard deviation over the runs."""
    interval: tuple[float, float] | None
    """95% interval of the mean F1 minus that of the first group, in points; None for that group."""


def seed_groups(runs: Sequence[Run], names: Sequence[str], f1: Sequence[float], baseline: int) -> list[SeedGroup]:
    """The groups of runs, that of `runs[baseline]` first; none unless it and another have two runs or more."""
    settings = [{name: value for name, value in run.config.items() if name not in FREE} for run in runs]
    groups: list[list[int]] = []
    for number in sorted(range(len(runs)), key=lambda number: number != baseline):
        own = next((group for group in groups if settings[group[0]] == settings[number]), None)
        if own is None:
            groups.append([number])
        else:
            own.append(number)
    several = [sorted(group) for group in groups if len(group) > 1]
    if len(several) < 2 or baseline not in several[0]:
        return []
    scores = [np.array([f1[number] for number in group]) for group in several]
    return [
        SeedGroup(tuple(names[number] for number in group), float(own.mean()), float(own.std(ddof=1)),
                  None if position == 0 else welch_interval(100 * own, 100 * scores[0]))
        for position, (group, own) in enumerate(zip(several, scores, strict=True))
    ]  # fmt: skip


def welch_interval(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """95% interval of mean(one) - mean(other), of two or more independent values each."""
    from scipy.stats import t

    difference = float(one.mean() - other.mean())
    parts = [float(values.var(ddof=1)) / len(values) for values in (one, other)]
    if not sum(parts):
        return difference, difference
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(one) - 1) + parts[1] ** 2 / (len(other) - 1))
    half_width = float(t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(sum(parts))
    return difference - half_width, difference + half_width


def seeds_table(groups: Sequence[SeedGroup]) -> str:
    """A Markdown table; F1 in percent."""
    rows = []
    for group in groups:
        difference = "baseline" if group.interval is None else f"{100 * (group.f1 - groups[0].f1):+.2f}"
        interval = "" if group.interval is None else "{:+.2f} to {:+.2f}".format(*group.interval)
        f1 = [f"{100 * value:.2f}" for value in (group.f1, group.deviation)]
        rows.append([", ".join(group.names), *f1, difference, interval])
    table = markdown_table(["runs with the same settings", "mean F1", "deviation", "difference", "95% interval"], rows)
    return f"{table}\n\nInterval: Welch's, over the seeds.\n"
