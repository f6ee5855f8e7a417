"""One picture to 8-bit pixels, whatever it is handed over as and whatever camera, scanner or program made it.

Pillow is imported by those who decode, so that the command line starts without it.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from trainers.data.images.arrays import eight_bit_pixels, from_16_bits, from_floats, is_array

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    PictureSource = str | Path | bytes | IO[bytes] | Image | np.ndarray | torch.Tensor

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
"""Files with these endings are pictures of a data set; other files in its folders are passed over."""
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Formats that are decoded, whatever the file is called. None of them starts another program, as EPS does."""
MAX_PIXELS = 89_478_485
"""Largest picture, width x height; Pillow warns from here. A file of a few kilobytes can ask for far more."""
GREY, COLOUR = "L", "RGB"
"""Pillow's names of 8-bit grey and 8-bit red, green and blue."""
DAMAGE = (OSError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, struct.error, zlib.error)
"""What Pillow's decoders raise on damaged files, beside ValueError."""


def open_image(source: str | Path | bytes, name: str = "") -> Image:
    """Open a picture file, or its content, and read its header; the pixels are read by `decode`.

    Raises:
        ValueError: it is missing, empty, too large or no picture. The message begins with ``name``, else the path.
    """
    from PIL import Image, UnidentifiedImageError

    name = name or named(source)
    if isinstance(source, bytes):
        content, size = io.BytesIO(source), len(source)
    else:
        content = Path(source)
        if not content.is_file():  # neither a folder nor a device, which would never end
            raise ValueError(f"{name}: no such file")
        size = content.stat().st_size
    if not size:
        raise ValueError(f"{name}: the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked below, whatever the filters are
            image = Image.open(content, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: {error}. The limit is {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name}: not a picture in one of the formats {', '.join(FORMATS)}") from error
    except (*DAMAGE, ValueError) as error:
        raise ValueError(f"{name}: damaged ({error})") from error
    try:
        _check_size(image, name)
    except ValueError:
        image.close()
        raise
    return image


def _check_size(image: Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"{name}: {image.width} x {image.height} pixels, but the limit is {MAX_PIXELS:,} pixels. Make the picture "
            "smaller"
        )


def is_picture(value: object) -> bool:
    """Whether `decode` takes such a value as one picture."""
    if is_array(value):
        return value.ndim in (2, 3)
    return isinstance(value, (str, Path, bytes)) or hasattr(value, "convert") or hasattr(value, "read")


def named(source: object) -> str:
    """What messages call a picture: its path if it has one."""
    return str(source) if isinstance(source, (str, Path)) else "a picture"


def decode(source: PictureSource, name: str = "") -> Image:
    """The picture upright in 8 bits a channel: mode "L" when it is grey, else "RGB".

    A camera's note that it was held sideways (EXIF orientation) is obeyed. Transparent parts become white. 16-bit
    values are divided by 257, and floating-point numbers from 0 to 1 multiplied by 255, so that black and white keep
    their places; only of files of 16-bit colour Pillow gives the upper 8 bits, which may be 1 less. Of an animation
    the first picture counts.

    Args:
        source: a path; the content of a file, as bytes or as an open file; a Pillow image of any mode; or pixels as
            `eight_bit_pixels` takes them, a NumPy array or a tensor.
        name: what messages call it; by default its path.

    Raises:
        ValueError: it cannot be decoded. The message begins with the name.
    """
    name = name or named(source)
    if is_array(source):
        from PIL import Image

        try:
            return _eight_bits(Image.fromarray(eight_bit_pixels(source)))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    if hasattr(source, "convert"):
        _check_size(source, name)  # pyright: ignore[reportArgumentType]
        return _decoded(source, name)  # pyright: ignore[reportArgumentType]
    if hasattr(source, "read"):
        source = source.read()  # pyright: ignore[reportAttributeAccessIssue]
        if not isinstance(source, bytes):
            raise ValueError(f"{name}: the file was opened as text. Open it with mode 'rb'")
    if not isinstance(source, (str, Path, bytes)):
        raise ValueError(
            f"{name}: {type(source).__name__} is no picture: expected a path, bytes, a Pillow image, "
            "an array or a tensor"
        )
    with open_image(source, name) as image:
        return _decoded(image, name)


def _decoded(image: Image, name: str) -> Image:
    """The pixels of a picture that is open."""
    from PIL import ImageOps

    try:
        image.load()
        return _eight_bits(ImageOps.exif_transpose(image))
    except DAMAGE as error:
        raise ValueError(f"{name}: damaged or cut short ({error})") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _eight_bits(image: Image) -> Image:
    """The picture in mode "L" or "RGB"."""
    from PIL import Image

    if image.mode in (GREY, COLOUR) and "transparency" not in image.info:
        return image
    if image.mode == "1":
        return image.convert(GREY)
    if image.mode.startswith("I"):  # 16-bit grey comes as I;16, I;16B or I
        return Image.fromarray(from_16_bits(np.asarray(image)))
    if image.mode == "F":
        return Image.fromarray(from_floats(np.asarray(image)))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        pixels = image.convert("RGBA")
        white = Image.new("RGBA", pixels.size, "white")
        return Image.alpha_composite(white, pixels).convert(GREY if image.mode[0] == "L" else COLOUR)
    return image.convert(COLOUR)  # palette, CMYK, YCbCr, LAB, HSV
