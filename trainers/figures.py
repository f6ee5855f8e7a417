"""What all pictures share: an empty figure, and colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
"""Colours that colour-blind readers tell apart (Okabe and Ito, "Color Universal Design", 2008); grey for their yellow,
which is too light for lines."""
RIGHT, WRONG = COLOURS[2], COLOURS[1]
"""Of predictions."""


def blank_figure(width: float, height: float) -> Figure:
    """A figure of so many inches to draw on. Raises ModuleNotFoundError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Pictures need matplotlib: pip install 'lora-core[demo]'", name=error.name
        ) from error  # fmt: skip
    # A Figure without pyplot draws with Agg and leaves no global state behind.
    return Figure(figsize=(width, height), layout="constrained")


def plain_axes(axes: Axes, grid: str | None = "y") -> None:
    """Axes without a frame, over a light grid across ``grid`` (x or y; None: no grid)."""
    axes.spines[["top", "right"]].set_visible(False)
    if grid is not None:
        axes.grid(axis=grid, color="0.9")  # type: ignore[arg-type]
        axes.set_axisbelow(True)
