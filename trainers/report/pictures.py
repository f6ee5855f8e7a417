"""Pictures in two colour schemes: as PNG files beside the page, and as data URIs within it."""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from PIL import Image

from lora_core.files import replacing
from trainers.report.section import Picture
from trainers.show import COLOURS, blank_figure, plain_axes, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
SHOWN = 0.62
"""Pixels of the page for each of a picture: letters are then about as large as those of the page."""
PANEL = (4.8, 3.3)
"""Inches of a picture that can be read on a phone."""
SCHEMES = {
    "light": {"ground": "#ffffff", "ink": "#1b1f24", "line": "#8c959f"},
    "dark": {"ground": "#12171d", "ink": "#e6edf3", "line": "#768390"},
}
"""The page's own colours (page.css), light and dark."""
MARKERS = "osD^vPX*"


@dataclass(frozen=True)
class Embedded:
    """A picture in the page."""

    light: str
    """As a data URI."""
    dark: str
    width: int
    """Pixels of the page, fewer than it has itself, so that it is sharp on fine screens."""
    height: int


@contextmanager
def colours_of(scheme: str) -> Iterator[None]:
    """Within it, matplotlib draws in the colours of a scheme."""
    from matplotlib import rc_context

    colours = SCHEMES[scheme]
    ground, ink, line = colours["ground"], colours["ink"], colours["line"]
    values: dict[str, Any] = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), ground)
    values |= dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.labelcolor", "ytick.labelcolor"), ink
    )
    values |= dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), line)
    with rc_context(values):  # pyright: ignore[reportArgumentType]
        yield


def embed(picture: Picture, folder: Path) -> Embedded:
    """Write a picture into a folder, in the light colours, and return it for the page."""
    drawn = {scheme: _drawn(picture, scheme) for scheme in SCHEMES}
    with replacing(folder / f"{picture.name}.png") as unfinished:
        unfinished.write_bytes(drawn["light"])
    width, height = Image.open(io.BytesIO(drawn["light"])).size
    return Embedded(data_uri(drawn["light"]), data_uri(drawn["dark"]), round(SHOWN * width), round(SHOWN * height))


def data_uri(content: bytes) -> str:
    """A PNG file as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def panel(width: float = PANEL[0], height: float = PANEL[1]) -> "tuple[Figure, Axes]":
    """A figure with one field to draw on."""
    figure = blank_figure(width, height)
    axes = figure.subplots()
    plain_axes(axes)
    return figure, axes


def save(figure: "Figure", file: IO[bytes]) -> None:
    """Write a figure, as `Picture.draw` does."""
    save_figure(figure, file, DPI)


def colour(place: int) -> str:
    """Of the series with this number, from 0: visible on both grounds."""
    from matplotlib import rcParams

    found = COLOURS[place % len(COLOURS)]
    return rcParams["text.color"] if found == "#000000" else found


def legend(axes: "Axes", **options: Any) -> None:
    """A legend on the ground of the field, where there is more than one thing to tell apart."""
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(edgecolor="none", framealpha=0.85, fontsize="small", **options)


def legend_below(figure: "Figure", axes: "Axes") -> None:
    """A legend under the field, in the way of nothing."""
    handles = axes.get_legend_handles_labels()
    columns = min(3, len(handles[0]))
    figure.legend(*handles, loc="outside lower center", ncols=columns, frameon=False, fontsize="small")


def _drawn(picture: Picture, scheme: str) -> bytes:
    """The PNG file, with a palette, which makes it a third as large."""
    with colours_of(scheme), io.BytesIO() as file:
        picture.draw(file)
        image = Image.open(file).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    packed = io.BytesIO()
    image.save(packed, format="PNG", optimize=True)
    return packed.getvalue()
