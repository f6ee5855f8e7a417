"""Where a run is seen: lines on a terminal or in a file, a table that grows in a notebook, or nowhere."""

import html
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from trainers.show import table_width


class Screen(Protocol):
    """What a run is shown on."""

    def say(self, text: str) -> None:
        """Show lines of text."""
        ...

    def row(self, cells: Sequence[str], widths: Sequence[int]) -> None:
        """Show the next row of a table; its first row is the header.

        Args:
            widths: characters of the columns, for screens that cannot know the rows to come.
        """
        ...

    def status(self, text: str) -> None:
        """Show for the moment how far the run is, where there is no bar."""
        ...


class Lines:
    """Standard output, a line after the other without control characters. The bars of a terminal stand below.

    Who reads them may leave (`| head`), or the file's disk be full: the run goes on, and says no more.
    """

    def __init__(self) -> None:
        self._is_lost = False

    def say(self, text: str) -> None:
        from tqdm import tqdm

        if self._is_lost:
            return
        try:
            tqdm.write(plain(text, sys.stdout.encoding), file=sys.stdout)  # a bar that stands there makes room
            sys.stdout.flush()
        except OSError:
            self._is_lost = True

    def row(self, cells: Sequence[str], widths: Sequence[int]) -> None:
        gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= table_width() else " "
        self.say(gap.join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())

    def status(self, text: str) -> None:
        """Nothing: the bar says it."""


class Notebook:
    """The output of a notebook's cell: one table to which rows are added, and below it how far the run is."""

    def __init__(self) -> None:
        self._rows: list[Sequence[str]] = []
        self._status, self._handle = "", None

    def say(self, text: str) -> None:
        print(text, flush=True)
        self._rows, self._handle = [], None  # what comes next stands below

    def row(self, cells: Sequence[str], widths: Sequence[int]) -> None:
        self._rows.append(cells)
        self._show()

    def status(self, text: str) -> None:
        self._status = text
        self._show()

    def _show(self) -> None:
        from IPython.display import HTML, display  # pyright: ignore[reportMissingImports]

        content = HTML(_html_table(self._rows, self._status))
        if self._handle is None:
            self._handle = display(content, display_id=True)
        else:
            self._handle.update(content)


class Silent:
    """No screen: of a process that does not talk to the user, or that is told to be quiet."""

    def say(self, text: str) -> None:
        """Nothing."""

    def row(self, cells: Sequence[str], widths: Sequence[int]) -> None:
        """Nothing."""

    def status(self, text: str) -> None:
        """Nothing."""


def plain(text: str, encoding: str | None) -> str:
    """The text without what a terminal obeys, or its encoding cannot spell; names of labels may hold anything."""
    shown = "".join(sign if sign.isprintable() or sign == "\n" else "\ufffd" for sign in text)
    return shown.encode(encoding or "utf-8", "backslashreplace").decode(encoding or "utf-8")


def screen_of(*, shown: bool) -> Screen:
    """The screen of this process."""
    if not shown:
        return Silent()
    return Notebook() if in_notebook() else Lines()


def in_notebook() -> bool:
    """Whether the code is that of a notebook's cell, whose kernel takes what it displays."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


def _html_table(rows: Sequence[Sequence[str]], status: str) -> str:
    """The rows, the first of them as the header, with a line below."""
    lines = []
    for number, cells in enumerate(rows):
        tag = "td" if number else "th"
        lines.append("<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>")
    below = f"<p>{html.escape(status)}</p>" if status else ""
    return f"<table>{''.join(lines)}</table>{below}" if lines else below
