"""Arrays and tensors of one picture as 8-bit pixels, in the one way that is right, or refused.

Shapes: C channels (1 grey, 3 colour, 4 colour and opacity), H x W pixels.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

if TYPE_CHECKING:
    import torch

CHANNELS = (1, 3, 4)
"""How many channels a picture can have: grey, colour, colour and opacity."""


def is_array(value: object) -> TypeGuard[np.ndarray | torch.Tensor]:
    """Whether it is an array or a tensor; torch is not imported for the question."""
    torch = sys.modules.get("torch")
    return isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor))


def eight_bit_pixels(values: np.ndarray | torch.Tensor) -> np.ndarray:
    """The pixels as (H, W), (H, W, 3) or (H, W, 4) uint8.

    16 bits are divided by 257 and numbers with a point, which must lie between 0 and 1, multiplied by 255, both
    rounded; so black and white keep their places. True is white. Channels may stand last or first. A shape that can
    be read in both ways, such as (3, 50, 3), is refused; only of pictures of at most 4 x 4 pixels an array is
    (H, W, C) and a tensor (C, H, W), as their libraries have it.

    Raises:
        ValueError: the shape or the type does not tell what the picture is, or a value is out of range.
    """
    if isinstance(values, np.ndarray):
        pixels = _channels_last(values, first=False)
    else:
        tensor = values.detach().cpu()
        half = str(tensor.dtype) == "torch.bfloat16"  # numpy has no such type
        pixels = _channels_last((tensor.float() if half else tensor).numpy(), first=True)
    if not pixels.size:
        raise ValueError(f"its shape is {tuple(values.shape)}: it has no pixels")
    return np.ascontiguousarray(_to_8_bits(pixels))


def from_16_bits(values: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 to 65535 as uint8.

    Raises:
        ValueError: a value is out of range.
    """
    values = values.astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(
            f"its grey values run from {values.min()} to {values.max()}, expected 0 to 65535. Save it with 8 or 16 bits"
        )
    return ((values + 128) // 257).astype(np.uint8)


def from_floats(values: np.ndarray) -> np.ndarray:
    """Numbers from 0 to 1 as uint8.

    Raises:
        ValueError: a value is out of range, or no number.
    """
    least, most = float(values.min()), float(values.max())
    if not (least >= 0 and most <= 1):  # also where one is no number
        raise ValueError(
            f"its pixels are floating-point numbers from {least:g} to {most:g}, expected 0 to 1. Divide them by what "
            "white is, or give 8-bit pixels (uint8)"
        )
    return np.rint(values.astype(np.float64) * 255).astype(np.uint8)


def _channels_last(array: np.ndarray, *, first: bool) -> np.ndarray:
    """(H, W) or (H, W, C) of (H, W), (H, W, C) or (C, H, W); ``first``: where both can be meant, channels are first."""
    shape = tuple(array.shape)
    if array.ndim == 2:
        return array
    can_be_first = array.ndim == 3 and shape[0] in CHANNELS
    can_be_last = array.ndim == 3 and shape[2] in CHANNELS
    if can_be_first and can_be_last and max(shape) > max(CHANNELS):
        raise ValueError(
            f"its shape is {shape}, which can be {shape[1]} x {shape[2]} pixels with channels first or {shape[0]} x "
            f"{shape[1]} with channels last. Give a Pillow image"
        )
    if can_be_first and (first or not can_be_last):
        array = array.transpose(1, 2, 0)
    elif not can_be_last:
        raise ValueError(f"its shape is {shape}, expected (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels")
    return array[:, :, 0] if array.shape[2] == 1 else array


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels * np.uint8(255)
    if pixels.dtype == np.uint16:
        return from_16_bits(pixels)
    if pixels.dtype.kind == "f":
        return from_floats(pixels)
    raise ValueError(
        f"its pixels are {pixels.dtype}, which does not tell what white is: expected uint8, uint16, or floating-point "
        "numbers from 0 to 1"
    )
