"""What people read and look at: aligned tables for the terminal and for Markdown, durations, and plain figures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lora_core.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
"""Colours that colour-blind readers tell apart (Okabe and Ito, "Color Universal Design", 2008); grey for their yellow,
which is too light for lines."""
RIGHT, WRONG = COLOURS[2], COLOURS[1]
"""Of predictions."""


def text_table(rows: Sequence[Sequence[str]], *, left: int | Collection[int] = 1) -> str:
    """A table for the terminal: aligned columns, two spaces apart.

    Args:
        rows: the cells, all rows as long as the first, which is the header.
        left: how many columns from the first on stand to the left, or the numbers of those that do; the others stand
            to the right.
    """
    return "\n".join("  ".join(row).rstrip() for row in _aligned(rows, left))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int | Collection[int] = 1) -> str:
    """A table in Markdown that reads well in a terminal too.

    Args:
        header: the columns' titles.
        rows: the cells, all rows as long as the header.
        left: how many columns from the first on stand to the left, or the numbers of those that do; the others stand
            to the right.
    """
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in (header, *rows)]
    titles, *lines = _aligned(escaped, left)
    rule = ["-" * len(title) for title in titles]
    rule = [dashes if _is_left(column, left) else f"{dashes[:-1]}:" for column, dashes in enumerate(rule)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, rule, *lines))


def duration(seconds: float) -> str:
    """Seconds as "7 s", "3 min 20 s" or "2 h 05 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def blank_figure(width: float, height: float) -> Figure:
    """A figure of so many inches to draw on."""
    from matplotlib.figure import Figure

    # A Figure without pyplot draws with Agg and leaves no global state behind.
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: str | Path | IO[bytes], dpi: int = 150, *, tight: bool = False) -> None:
    """Write a figure as a PNG file, whole or not at all, whose folder is made if need be; or into a file in memory.

    Args:
        tight: whether it is cut, or widened, to what is drawn.
    """
    box = "tight" if tight else None
    if not isinstance(path, str | Path):
        figure.savefig(path, dpi=dpi, format="png", bbox_inches=box)
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=dpi, format="png", bbox_inches=box)


def plain_axes(axes: Axes, grid: str | None = "y") -> None:
    """Axes without a frame, over a light grid across ``grid`` (x or y; None: no grid)."""
    axes.spines[["top", "right"]].set_visible(False)
    if grid is not None:
        axes.grid(axis=grid, alpha=0.3)  # type: ignore[arg-type]
        axes.set_axisbelow(True)


def _aligned(rows: Sequence[Sequence[str]], left: int | Collection[int]) -> list[list[str]]:
    """The cells, those of a column all of one width."""
    columns = []
    for number, cells in enumerate(zip(*rows, strict=True)):
        width = max(map(len, cells))
        columns.append([cell.ljust(width) if _is_left(number, left) else cell.rjust(width) for cell in cells])
    return [list(row) for row in zip(*columns, strict=True)]


def _is_left(column: int, left: int | Collection[int]) -> bool:
    return column < left if isinstance(left, int) else column in left
