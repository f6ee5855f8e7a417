"""Markdown tables that read well in a terminal too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# DOC """What all pictures share: an empty figure, and colours."""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A table with aligned columns: the first `left` to the left, the others to the right."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    rule = ["-" * width if column < left else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    padded = [
        [cell.ljust(width) if column < left else cell.rjust(width)
         for column, (cell, width) in enumerate(zip(row, widths, strict=True))]
        for row in cells
    ]  # fmt: skip
    return "\n".join("| " + " | ".join(row) + " |" for row in (padded[0], rule, *padded[1:]))


def duration(seconds: float) -> str:
    """Seconds as "7 s", "3 min 20 s" or "2 h 05 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


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
