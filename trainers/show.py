"""What people read and look at: scores, durations, tables that fit the terminal and tables for Markdown, bars of
progress, and plain figures.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lora_core.files import replacing
from trainers.processes.failure import is_main

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from tqdm import tqdm

OFF_TERMINAL = 100
"""Columns of tables that do not go to a terminal."""
IN_OWN_UNIT = ("loss", "mse", "mae")
"""What is measured beside the scores, which are from 0 to 1 (correlations and R2 may be below)."""
GAP = "  "
"""Between the columns of a table for the terminal."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
"""Colours that colour-blind readers tell apart (Okabe and Ito, "Color Universal Design", 2008); grey for their yellow,
which is too light for lines."""
RIGHT, WRONG = COLOURS[2], COLOURS[1]
"""Of predictions."""


def score_text(name: str, value: float) -> str:
    """A score as people read it: in percent with two decimals, a loss or an error as it is. Files hold all digits."""
    return f"{value:.4f}" if name in IN_OWN_UNIT else f"{100 * value:.2f}"


def table_width() -> int:
    """Columns that a table may take: those of the terminal."""
    return shutil.get_terminal_size((OFF_TERMINAL, 24)).columns


def progress_bar(
    name: str, total: int | None = None, *, unit: str = "it", delay: float = 0, shown: bool = True, **more: Any
) -> tqdm:
    """A bar on standard error that goes when the work is done; nothing off a terminal, or within `hushed`.

    Args:
        delay: seconds of work after which it shows.
        shown: whether there is to be one; but of several processes the first alone has bars.
        more: other arguments of tqdm.
    """
    from tqdm import tqdm

    hidden = None if shown and is_main() and not _HUSHED.get() else True  # None: tqdm asks whether there is a terminal
    return tqdm(desc=name, total=total, unit=unit, delay=delay, disable=hidden, leave=False, file=sys.stderr, **more)


REPEATED = 600.0
"""Seconds after which a line that says the same again says something new."""


class LogHandler(logging.StreamHandler):
    """Writes log lines to standard error, above a progress bar that stands there, and not what it has just written:
    several runs of one data set have the same to say of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._written: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool | logging.LogRecord:
        line = str((record.levelno, record.msg, record.args))
        if record.exc_info is None and record.created - self._written.get(line, -REPEATED) < REPEATED:
            return False
        self._written = {said: when for said, when in self._written.items() if record.created - when < REPEATED}
        self._written[line] = record.created
        return super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")
        with tqdm.tqdm.external_write_mode(file=self.stream) if tqdm else nullcontext():
            super().emit(record)


_HUSHED: ContextVar[bool] = ContextVar("hushed", default=False)


@contextmanager
def hushed(quiet: bool = True) -> Iterator[None]:
    """Within it there are no bars, and of what is logged only warnings and errors; if ``quiet``."""
    if not quiet:
        yield
        return
    before, token = logging.root.manager.disable, _HUSHED.set(True)
    logging.disable(max(before, logging.INFO))
    try:
        yield
    finally:
        logging.disable(before)
        _HUSHED.reset(token)


def fitted_table(rows: Sequence[Sequence[str]], *, left: int | Collection[int] = 1, width: int | None = None) -> str:
    """A `text_table` that stays within a width where that can be: one that is too wide is turned on its side, so that
    its rows are columns; where that is too wide as well it is split into several, each with the first column.

    Args:
        rows: as for `text_table`; the first column names the rows.
        left: as for `text_table`.
        width: columns of the terminal; None: those that it has.
    """
    width = width or table_width()
    table = text_table(rows, left=left)
    if _widest(table) <= width:
        return table
    turned = list(zip(*rows, strict=True))
    table = text_table(turned)
    return table if _widest(table) <= width else "\n\n".join(_split(turned, width))


def _split(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Tables of the first column and as many of the others, at least one, as fit side by side."""
    columns = list(zip(*rows, strict=True))
    tables, own = [], [columns[0]]
    for column in columns[1:]:
        if len(own) > 1 and _widest(text_table(list(zip(*own, column, strict=True)))) > width:
            tables.append(own)
            own = [columns[0]]
        own.append(column)
    return [text_table(list(zip(*own, strict=True))) for own in (*tables, own)]


def _widest(text: str) -> int:
    return max(map(len, text.splitlines()), default=0)


def text_table(rows: Sequence[Sequence[str]], *, left: int | Collection[int] = 1) -> str:
    """A table for the terminal: aligned columns, two spaces apart.

    Args:
        rows: the cells, all rows as long as the first, which is the header.
        left: how many columns from the first on stand to the left, or the numbers of those that do; the others stand
            to the right.
    """
    return "\n".join(GAP.join(row).rstrip() for row in _aligned(rows, left))


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
