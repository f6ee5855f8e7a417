"""The picture of a comparison: validation F1 by epoch, and F1 by entity type."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainers.figures import COLOURS, blank_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from trainers.compare import Comparison

MAX_TYPES = 12
"""Entity types with bars of their own; more would not be readable."""
MARKERS = "osD^vPX*"
LINE_STYLES = ("-", "--", ":", "-.")


def plot_comparison(comparison: Comparison, path: str | Path) -> None:
    """Write the picture as a PNG file.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    types = list(comparison.support)[:MAX_TYPES]
    bars_width = min(max(6.0, 0.18 * len(types) * (len(comparison.rows) + 1)), 12.0)
    legend_lines = -(-len(comparison.rows) // 3)
    figure = blank_figure(6.0 + bars_width, (6.0 if _crowded(types) else 4.6) + 0.25 * legend_lines)
    curves, bars = figure.subplots(1, 2, width_ratios=[6.0, bars_width])
    _plot_curves(comparison, curves)
    curves.locator_params(axis="x", integer=True)
    _plot_types(comparison, types, bars)
    for axes in (curves, bars):
        plain_axes(axes)
    figure.suptitle(f"{Path(comparison.data).name}: {len(comparison.rows)} runs compared", fontweight="bold")
    figure.legend(*curves.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def _plot_curves(comparison: Comparison, axes: Axes) -> None:
    for index, row in enumerate(comparison.rows):
        axes.plot(
            list(row.validation_f1),
            [100 * f1 for f1 in row.validation_f1.values()],
            label=f"{row.name} (baseline)" if row.name == comparison.baseline else row.name,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            linestyle=LINE_STYLES[index // len(COLOURS) % len(LINE_STYLES)],
        )
    axes.set(title="F1 on the validation split", xlabel="epoch", ylabel="F1 (%)")


def _plot_types(comparison: Comparison, types: list[str], axes: Axes) -> None:
    places = np.arange(len(types))
    width = min(0.8 / len(comparison.rows), 0.3)
    for index, row in enumerate(comparison.rows):
        axes.bar(
            places + (index - (len(comparison.rows) - 1) / 2) * width,
            [100 * row.type_f1[name] for name in types],
            width=0.92 * width,
            color=COLOURS[index % len(COLOURS)],
            hatch=None if index < len(COLOURS) else "//",
            edgecolor="white",
            linewidth=0,
        )
    names = [f"{name if len(name) <= 26 else name[:25] + '…'}\n{comparison.support[name]:,}" for name in types]
    crowded = _crowded(types)
    axes.set_xticks(places, names, rotation=40 if crowded else 0, ha="right" if crowded else "center")
    shown = "type" if len(types) == len(comparison.support) else f"the {len(types)} most frequent types"
    axes.set(
        title=f"F1 on the {comparison.split} split by {shown}",
        xlabel="type, with its number of gold entities",
    )
    axes.set(ylabel="F1 (%)", ylim=(0, 100), xlim=(-0.6, len(types) - 0.4))


def _crowded(types: list[str]) -> bool:
    """Whether the names of the types need slanted text, and room for it."""
    return len(types) > 6 or any(len(name) > 16 for name in types)
