"""Random changes of training pictures, a function of (seed, epoch, example) alone, so that a run can resume."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from trainers.data.image_processing import ImageProcessing

if TYPE_CHECKING:
    from PIL.Image import Image

Augment = Literal["none", "flip", "crop"]
CROP_AREA = (0.4, 1.0)
"""Smallest and largest share of the picture that a crop keeps. ImageNet training goes down to 0.08; what shows a
disease or a defect is easily lost there."""
CROP_ASPECT = (3 / 4, 4 / 3)
"""Most upright and flattest shape of a crop, as width / height relative to the picture's own."""


def augmented(image: Image, processing: ImageProcessing, augment: Augment, seed: int, epoch: int, index: int) -> Image:
    """The picture in the model's size, changed as `augment` says.

    "flip" mirrors one picture in two left to right. "crop" takes a random part and mirrors likewise. "none" is
    what evaluation does; it is right where left and right mean something, as in letters, digits and X-rays.
    """
    if augment == "none":
        return processing.fitted(image)
    from PIL.Image import Transpose

    random = np.random.default_rng((seed, epoch, index))
    if augment == "crop":
        height, width = processing.size
        box = _random_box(image.width, image.height, random)
        image = image.resize((width, height), processing.resample, box=box)  # pyright: ignore[reportArgumentType]
    else:
        image = processing.fitted(image)
    return image.transpose(Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image


def _random_box(width: int, height: int, random: np.random.Generator) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a part of the picture, in pixels."""
    share = math.sqrt(random.uniform(*CROP_AREA))
    aspect = math.exp(random.uniform(*np.log(CROP_ASPECT)) / 2)
    part_width, part_height = min(1.0, share * aspect) * width, min(1.0, share / aspect) * height
    left, top = random.uniform(0, width - part_width), random.uniform(0, height - part_height)
    return left, top, min(left + part_width, width), min(top + part_height, height)
