"""One picture, from a file or an array to 8-bit pixels, whatever the camera, scanner or drawing program made it.

Pillow is imported by those who decode, so that the command line starts without it.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
"""Files with these endings are pictures of a data set; other files in its folders are passed over."""
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Formats that are decoded, whatever the file is called. None of them starts another program, as EPS does."""
MAX_PIXELS = 89_478_485
"""Largest picture, width x height; Pillow warns from here. A file of a few kilobytes can ask for far more."""
GREY, COLOUR = "L", "RGB"
"""Pillow's names of 8-bit grey and 8-bit red, green and blue."""
DAMAGE = (OSError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, struct.error, zlib.error)
"""What Pillow's decoders raise on damaged files, beside ValueError."""


def open_image(path: str | Path) -> Image:
    """Open a picture and read its header; the pixels are read by `decode`.

    Raises:
        ValueError: it is missing, empty, too large or no picture. The message begins with the path.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():  # neither a folder nor a device, which would never end
        raise ValueError(f"{path}: no such file")
    if not path.stat().st_size:
        raise ValueError(f"{path}: the file is empty")
    try:
        image = Image.open(path, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path}: {error}. The limit is {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: not a picture in one of the formats {', '.join(FORMATS)}") from error
    except (*DAMAGE, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        image.close()
        raise ValueError(f"{path}: {size} pixels, but the limit is {MAX_PIXELS:,} pixels. Make the picture smaller")
    return image


def decode(source: str | Path | np.ndarray) -> Image:
    """The picture upright in 8 bits a channel: mode "L" when it is grey, else "RGB".

    An array is (H, W) or (H, W, 3) uint8. A camera's note that it was held sideways (EXIF orientation) is obeyed.
    Transparent parts become white. 16-bit grey values are divided by 257, so that black and white keep their places.
    Of an animation the first picture counts.

    Raises:
        ValueError: a file cannot be decoded. The message begins with its path.
    """
    from PIL import Image, ImageOps

    if isinstance(source, np.ndarray):
        return Image.fromarray(source)
    with open_image(source) as image:
        try:
            image.load()
            return _eight_bits(ImageOps.exif_transpose(image))
        except DAMAGE as error:
            raise ValueError(f"{source}: damaged or cut short ({error})") from error
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error


def _eight_bits(image: Image) -> Image:
    """The picture in mode "L" or "RGB"."""
    from PIL import Image

    if image.mode in (GREY, COLOUR) and "transparency" not in image.info:
        return image
    if image.mode == "1":
        return image.convert(GREY)
    if image.mode.startswith("I"):  # 16-bit grey comes as I;16, I;16B or I
        return Image.fromarray(_from_16_bits(np.asarray(image)))
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is unknown. Save it with 8 or 16 bits")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        pixels = image.convert("RGBA")
        white = Image.new("RGBA", pixels.size, "white")
        return Image.alpha_composite(white, pixels).convert(GREY if image.mode[0] == "L" else COLOUR)
    return image.convert(COLOUR)  # palette, CMYK, YCbCr, LAB, HSV


def _from_16_bits(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(
            f"its grey values run from {values.min()} to {values.max()}, expected 0 to 65535. Save it with 8 or 16 bits"
        )
    return ((values + 128) // 257).astype(np.uint8)
