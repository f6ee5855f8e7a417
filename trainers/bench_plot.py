"""The picture of a bench: size, memory, latency, throughput and score of every way to serve a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainers.bench import Comparison

# Okabe and Ito, "Color Universal Design" (2008), which colour-blind readers tell apart.
COLOURS = ("#7F7F7F", "#0072B2", "#D55E00", "#56B4E9", "#E69F00")


def plot_bench(comparison: Comparison, path: str | Path) -> None:
    """Write the picture as a PNG file.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The picture of a bench needs matplotlib: pip install 'lora-core[demo]'", name=error.name
        ) from error
    variants = comparison.variants
    panels = [
        ("size, MB", [variant.size_bytes / 1e6 for variant in variants], "{:.0f}"),
        ("memory, MB", [variant.memory_bytes / 1e6 for variant in variants], "{:.0f}"),
        ("latency of one example, ms (median)", [variant.latency_p50_ms for variant in variants], "{:.1f}"),
        ("examples a second, batches of 16", [v.examples_per_second_unsorted for v in variants], "{:.0f}"),
        ("examples a second, sorted by length", [v.examples_per_second_sorted for v in variants], "{:.0f}"),
        (f"{comparison.metric} on {comparison.split}", [v.scores[comparison.metric] for v in variants], "{:.4f}"),
    ]
    # A Figure without pyplot draws with Agg and leaves no global state behind.
    figure = Figure(figsize=(11.0, 5.6), layout="constrained")
    names = [variant.name if variant.device == "cpu" else f"{variant.name}\n{variant.device}" for variant in variants]
    for axes, (title, values, label) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        bars = axes.bar(names, values, color=[COLOURS[place % len(COLOURS)] for place in range(len(values))])
        axes.bar_label(bars, [label.format(value) for value in values], padding=2)
        axes.set_title(title, fontsize="medium")
        axes.set_ylim(0, 1.15 * max(values, default=1) or 1)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{comparison.run} on {comparison.data}, threads: {comparison.threads}", fontweight="bold")
    figure.savefig(path, dpi=150)
