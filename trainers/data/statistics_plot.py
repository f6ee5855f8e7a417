"""The picture of a corpus: entities by type, lengths of sentences, and how much of it is entities."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainers.figures import COLOURS, blank_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from trainers.data.statistics import Statistics

MAX_TYPES = 20
"""Entity types with bars of their own; more would not be readable."""


def plot_statistics(counted: Statistics, path: str | Path) -> None:
    """Write the picture as a PNG file.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    types = counted.types[:MAX_TYPES]
    figure = blank_figure(13.0, 3.2 + 0.2 * max(len(types), 6))
    bars, lengths, coverage = figure.subplots(1, 3, width_ratios=[5, 4, 3])
    _plot_types(counted, types, bars)
    _plot_lengths(counted, lengths)
    _plot_coverage(counted, coverage)
    for axes in (bars, lengths, coverage):
        plain_axes(axes, "x" if axes is bars else "y")
    figure.legend(*lengths.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)


def _plot_types(counted: Statistics, types: tuple[str, ...], axes: Axes) -> None:
    left = np.zeros(len(types))
    for colour, split in zip(COLOURS, counted.splits.values(), strict=False):
        values = np.array([split.entities[kind] for kind in types], dtype=float)
        axes.barh(np.arange(len(types)), values, left=left, color=colour, height=0.7)
        left += values
    names = [kind if len(kind) <= 32 else f"{kind[:17]}…{kind[-14:]}" for kind in types]
    axes.set_yticks(np.arange(len(types)), names, fontsize="small")
    axes.invert_yaxis()
    shown = (
        "type" if len(types) == len(counted.types) else f"the {len(types)} most frequent of {len(counted.types)} types"
    )
    axes.set(title=f"Entities by {shown}", xlabel="entities")
    for place, total in enumerate(left):
        axes.annotate(f" {total:,.0f}", (total, place), va="center", fontsize="small")
    axes.margins(x=0.15)


def _plot_lengths(counted: Statistics, axes: Axes) -> None:
    for colour, (name, split) in zip(COLOURS, counted.splits.items(), strict=False):
        shares = 100 * np.array(split.length_histogram) / split.sentences
        label = f"{name} ({split.sentences:,})"
        axes.stairs(shares, np.arange(0, 201, 10), color=colour, linewidth=1.5, label=label)
    longest = max(max(np.flatnonzero(split.length_histogram)) for split in counted.splits.values())
    more = " (the last step: 190 and more)" if longest == 19 else ""
    axes.set(title="Words of a sentence", xlabel=f"words{more}", ylabel="sentences (%)")
    axes.set_xlim(0, 10 * (longest + 1))


def _plot_coverage(counted: Statistics, axes: Axes) -> None:
    splits = list(counted.splits.values())
    width = 0.8 / len(splits)
    for index, (colour, split) in enumerate(zip(COLOURS, splits, strict=False)):
        places = np.arange(2) + (index - (len(splits) - 1) / 2) * width
        shares = [100 * split.sentence_coverage, 100 * split.token_coverage]
        axes.bar_label(axes.bar(places, shares, width=0.92 * width, color=colour), fmt="%.1f", fontsize="small")
    axes.set_xticks([0, 1], ["sentences\nwith entities", "words\ninside entities"])
    axes.set(title="Entity coverage", ylabel="share (%)")
