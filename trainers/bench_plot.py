"""The picture of a bench: size, memory, latency, throughput and score of every way to serve a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainers.figures import COLOURS, blank_figure, plain_axes

if TYPE_CHECKING:
    from trainers.bench import Comparison

SHADES = (COLOURS[-1], *COLOURS)
"""Grey for PyTorch, with which the others are compared."""


def plot_bench(comparison: Comparison, path: str | Path) -> None:
    """Write the picture as a PNG file.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    variants = comparison.variants
    panels = [
        ("size, MB", [variant.size_bytes / 1e6 for variant in variants], "{:.0f}"),
        ("memory, MB", [variant.memory_bytes / 1e6 for variant in variants], "{:.0f}"),
        ("latency of one example, ms (median)", [variant.latency_p50_ms for variant in variants], "{:.1f}"),
        ("examples a second, batches of 16", [v.examples_per_second_unsorted for v in variants], "{:.0f}"),
        ("examples a second, sorted by length", [v.examples_per_second_sorted for v in variants], "{:.0f}"),
        (f"{comparison.metric} on {comparison.split}", [v.scores[comparison.metric] for v in variants], "{:.4f}"),
    ]
    figure = blank_figure(11.0, 5.6)
    names = [variant.name if variant.device == "cpu" else f"{variant.name}\n{variant.device}" for variant in variants]
    for axes, (title, values, label) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        bars = axes.bar(names, values, color=[SHADES[place % len(SHADES)] for place in range(len(values))])
        axes.bar_label(bars, [label.format(value) for value in values], padding=2)
        axes.set_title(title, fontsize="medium")
        axes.set_ylim(0, 1.15 * max(values, default=1) or 1)
        plain_axes(axes, grid=None)
    figure.suptitle(f"{comparison.run} on {comparison.data}, threads: {comparison.threads}", fontweight="bold")
    figure.savefig(path, dpi=150)
