"""From pictures to what an image model takes: resize, crop, rescale and normalise as preprocessor_config.json says.

The same numbers as transformers' ViTImageProcessor with Pillow. Shapes: B pictures, C channels, H x W pixels.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_core.files import json_object, read_json_object, write_json
from lora_core.patterns import shown
from trainers.data.images.decode import COLOUR, GREY, decode, named

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from trainers.data.images.decode import PictureSource

PREPROCESSOR_FILE = "preprocessor_config.json"
BILINEAR, BICUBIC = 2, 3
"""Pillow's codes of the two usual ways to resize."""
LONGEST_SIDE = 1 << 14
"""Pixels of a side that pictures are brought to."""
RESAMPLING = range(6)
"""All of Pillow's codes."""


@dataclass(frozen=True)
class ImageProcessing:
    """How every picture is brought to one size and range. The defaults are ViT's: pixels from -1 to 1."""

    size: tuple[int, int] = (224, 224)
    """Height and width that the model takes."""
    resize_to: tuple[int, int] | None = (224, 224)
    """Height and width that pictures are stretched to, before the centre is cut out if they differ from `size`.
    None: they are taken as they are, and must have `size`."""
    shortest_edge: int | None = None
    """In the place of `resize_to`: the length of the shorter side, the other in proportion, before the centre is cut
    out."""
    resample: int = BILINEAR
    """Pillow's code of the interpolation."""
    rescale_factor: float = 1 / 255
    """What pixels from 0 to 255 are multiplied by first."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Subtracted from each channel; a single number for models of grey pictures."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """What each channel is divided by then."""

    @property
    def channels(self) -> int:
        """1 for models of grey pictures, 3 for colour."""
        return len(self.mean)

    def __call__(self, sources: Sequence[PictureSource]) -> Tensor:
        """`pixel_values` as a tensor."""
        import torch

        return torch.from_numpy(self.pixel_values(sources))

    def pixel_values(self, sources: Sequence[PictureSource]) -> np.ndarray:
        """Pixel values (B, C, H, W) float32 of pictures, each whatever `decode` takes.

        Raises:
            ValueError: a picture cannot be decoded; the message begins with its path.
        """
        pixels = self.empty(len(sources))
        for row, source in zip(pixels, sources, strict=True):
            self.fill(row, self.fitted(decode(source)), named(source))
        return self.normalised(pixels)

    def empty(self, count: int) -> np.ndarray:
        """Room for so many pictures, (B, H, W, C) uint8."""
        return np.empty((count, *self.size, self.channels), dtype=np.uint8)

    def fitted(self, image: Image) -> Image:
        """The picture resized, and its centre cut out if need be."""
        resize_to = self.resize_to
        if self.shortest_edge is not None:
            sides = image.height, image.width
            height, width = (
                self.shortest_edge if side == min(sides) else int(self.shortest_edge * side / min(sides))
                for side in sides
            )
            resize_to = height, width
        if resize_to is not None:
            height, width = resize_to
            if (width, height) != image.size:
                image = image.resize((width, height), self.resample)  # pyright: ignore[reportArgumentType]
            if resize_to != self.size:
                left, top = (width - self.size[1]) // 2, (height - self.size[0]) // 2
                image = image.crop((left, top, left + self.size[1], top + self.size[0]))
        return image

    def fill(self, row: np.ndarray, image: Image, name: str) -> None:
        """Write a picture of the right size into its place (H, W, C) of a batch; grey is repeated for C = 3."""
        if image.size != (self.size[1], self.size[0]):
            raise ValueError(
                f"{name}: {image.width} x {image.height} pixels, but the model takes {self.size[1]} x {self.size[0]} "
                f"and its {PREPROCESSOR_FILE} says not to resize. Resize the pictures, or set do_resize to true there"
            )
        if self.channels == 1 and image.mode != GREY:
            image = image.convert(GREY)
        values = np.asarray(image)
        row[...] = values if image.mode == COLOUR else values[:, :, None]

    def normalised(self, pixels: np.ndarray) -> np.ndarray:
        """Pixel values (B, C, H, W) float32 of pixels (B, H, W, C) uint8."""
        scale = (self.rescale_factor / np.array(self.std)).astype(np.float32)
        shift = (np.array(self.mean) / np.array(self.std)).astype(np.float32)
        count, height, width, channels = pixels.shape
        values = np.empty((count, channels, height, width), dtype=np.float32)
        for channel in range(channels):
            np.multiply(pixels[..., channel], scale[channel], out=values[:, channel])
            values[:, channel] -= shift[channel]
        return values

    def with_size(self, height: int, width: int) -> ImageProcessing:
        """The same for a model of another size; what is cut off at the borders stays in proportion."""
        ratio = (height / self.size[0], width / self.size[1])
        if self.shortest_edge is not None:
            return replace(self, size=(height, width), shortest_edge=round(self.shortest_edge * max(ratio)))
        if self.resize_to is None:
            return replace(self, size=(height, width))
        resize_to = (round(self.resize_to[0] * ratio[0]), round(self.resize_to[1] * ratio[1]))
        return replace(self, size=(height, width), resize_to=resize_to)

    def to_dict(self) -> dict[str, Any]:
        """The content of preprocessor_config.json, as transformers reads it."""
        height, width = self.resize_to or self.size
        cropped = self.shortest_edge is not None or self.resize_to not in (None, self.size)
        crop = {"do_center_crop": True, "crop_size": {"height": self.size[0], "width": self.size[1]}} if cropped else {}
        kind, size = "DeiTImageProcessor" if cropped else "ViTImageProcessor", {"height": height, "width": width}
        if self.shortest_edge is not None:
            kind, size = "BitImageProcessor", {"shortest_edge": self.shortest_edge}
        return {
            "image_processor_type": kind,
            "do_resize": self.resize_to is not None or self.shortest_edge is not None,
            "size": size,
            **crop,
            "resample": self.resample,
            "do_rescale": True,
            "rescale_factor": self.rescale_factor,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def save(self, folder: str | Path) -> None:
        """Write preprocessor_config.json into a folder."""
        write_json(Path(folder) / PREPROCESSOR_FILE, self.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageProcessing:
        """From the content of preprocessor_config.json; what it does not say is as in ViT.

        Raises:
            ValueError: a value is malformed or asks for something that is not implemented.
        """
        edge = _shortest_edge(values)
        resize_to = _size(values.get("size", 224), "size") if edge is None else (edge, edge)
        size = _size(values.get("crop_size", 224), "crop_size") if _flag(values, "do_center_crop", False) else resize_to
        if size[0] > resize_to[0] or size[1] > resize_to[1]:
            raise ValueError(f"crop_size {size} is larger than size {resize_to}")
        resample = values.get("resample", BILINEAR)
        if type(resample) is not int or resample not in RESAMPLING:
            raise ValueError(f"resample is {shown(resample)}, expected one of Pillow's codes 0 to {RESAMPLING[-1]}")
        factor = _numbers(values.get("rescale_factor", 1 / 255), "rescale_factor")[0]
        mean = _numbers(values.get("image_mean", cls.mean), "image_mean")
        std = _numbers(values.get("image_std", cls.std), "image_std")
        if len(mean) not in (1, 3) or len(mean) != len(std) or not all(number > 0 for number in std):
            raise ValueError(
                f"image_mean is {shown(mean)} and image_std {shown(std)}: expected three numbers each, std above 0"
            )
        if not _flag(values, "do_normalize", True):
            mean, std = (0.0,) * len(mean), (1.0,) * len(std)
        return cls(
            size=size,
            resize_to=resize_to if edge is None and _flag(values, "do_resize", True) else None,
            shortest_edge=edge,
            resample=resample,
            rescale_factor=factor if _flag(values, "do_rescale", True) else 1.0,
            mean=mean,
            std=std,
        )

    @classmethod
    def from_json(cls, text: str, where: str) -> ImageProcessing:
        """From the content of preprocessor_config.json, as text.

        Raises:
            ValueError: as `from_dict`. The message begins with ``where``.
        """
        values = json_object(text, where)
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{where}: {error}.") from error

    @classmethod
    def read(cls, folder: str | Path) -> ImageProcessing | None:
        """From preprocessor_config.json in a model's folder; None when there is none.

        Raises:
            ValueError: the file is damaged or asks for something that is not implemented.
        """
        path = Path(folder) / PREPROCESSOR_FILE
        if not path.is_file():
            return None
        values = read_json_object(path, "Fetch it again.")
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}.") from error


def _size(value: Any, name: str) -> tuple[int, int]:
    height, width = (value.get("height"), value.get("width")) if isinstance(value, dict) else (value, value)
    sides = [side for side in (height, width) if type(side) is int and 1 <= side <= LONGEST_SIDE]
    if len(sides) < 2:
        raise ValueError(
            f"{name} is {shown(value)}, expected a number of pixels, at most {LONGEST_SIDE}, or "
            '{"height": ..., "width": ...}'
        )
    return sides[0], sides[1]


def _shortest_edge(values: Mapping[str, Any]) -> int | None:
    """The length of the shorter side, where the pictures are brought to that; the centre must be cut out of them."""
    size = values.get("size")
    if not isinstance(size, dict) or "shortest_edge" not in size or not _flag(values, "do_resize", True):
        return None
    edge = size["shortest_edge"]
    if type(edge) is not int or edge < 1:
        raise ValueError(f"size is {size!r}, expected a number of pixels as its shortest_edge")
    if not _flag(values, "do_center_crop", False):
        raise ValueError(f"size is {size!r} without do_center_crop: pictures would have many sizes, models take one")
    return edge


def _numbers(value: Any, name: str) -> tuple[float, ...]:
    numbers = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    known = [type(number) in (int, float) and abs(number) <= sys.float_info.max for number in numbers]
    if not numbers or not all(known):  # NaN is above nothing
        raise ValueError(f"{name} is {shown(value)}, expected numbers")
    return tuple(map(float, numbers))


def _flag(values: Mapping[str, Any], name: str, default: bool) -> bool:
    value = values.get(name, default)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {shown(value)}, expected true or false")
    return value
