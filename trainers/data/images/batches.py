"""Labelled pictures, and the batches that an image model trains on.

Random changes of training pictures are a function of (seed, epoch, example) alone, so that a run can resume.
Shapes: N pictures of a data set, B of a batch, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trainers.data.batches import Batch, as_tensors
from trainers.data.images.arrays import CHANNELS, is_array
from trainers.data.images.decode import decode, named, open_image
from trainers.data.images.processing import ImageProcessing
from trainers.data.images.tables import LABEL_COLUMNS, PICTURE_COLUMNS
from trainers.data.labels import labels_from_list, relabel
from trainers.data.table import column_of, rows_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from trainers.data.images.decode import PictureSource

Augment = Literal["none", "flip", "crop"]
CROP_AREA = (0.4, 1.0)
"""Smallest and largest share of the picture that a crop keeps. ImageNet training goes down to 0.08; what shows a
disease or a defect is easily lost there."""
CROP_ASPECT = (3 / 4, 4 / 3)
"""Most upright and flattest shape of a crop, as width / height relative to the picture's own."""


@dataclass(frozen=True)
class ImageDataset:
    """One split of an image classification data set: N pictures. Of your own pictures, `from_lists` and `from_table`
    make one."""

    images: np.ndarray | list[Path] | list[Any]
    """Pixels (N, H, W) or (N, H, W, 3) uint8, or N files, by their paths or their content, which are decoded when they
    are needed."""
    targets: np.ndarray
    """(N,) int64 label ids."""
    labels: tuple[str, ...]
    """Label names; the index is the id."""
    source: str
    """Where the split was read from."""

    @classmethod
    def from_lists(
        cls,
        images: np.ndarray | Iterable[PictureSource],
        labels: Iterable[str | int],
        *,
        names: Sequence[str] | None = None,
        source: str = "pictures in memory",
    ) -> ImageDataset:
        """A split of your own pictures.

        Args:
            images: N pictures, each a path or another form that `decode` takes; or one array (N, H, W), (N, H, W, C)
                or tensor (N, C, H, W) of all. Pillow images, arrays and tensors are held as 8-bit pixels.
            labels: N names of labels, or ids from 0.
            names: the names in order of their ids; None: those that occur, numbers by size, else by the alphabet.
            source: what messages call these pictures.

        Raises:
            ValueError: there is not one label for each picture, or no picture at all; the pixels have another shape or
                type; a file does not exist; a label is neither name nor id, or not among ``names``.
        """
        if isinstance(images, (str, Path, bytes)) or hasattr(images, "convert"):
            shown = str(images) if isinstance(images, (str, Path)) else type(images).__name__
            raise ValueError(f"{source}: the pictures are {shown!r}, expected a list of pictures.")
        if is_array(images) and images.ndim not in (3, 4):
            raise ValueError(f"{source} is {tuple(images.shape)}, expected pictures (N, H, W) or (N, H, W, C)")
        if isinstance(images, np.ndarray) and images.dtype == np.uint8 and _is_plain(images):
            check_pixels(images, source)
        else:
            images = [_kept(image, f"{source}, example {index}") for index, image in enumerate(images)]
        return cls(images, *labels_from_list(labels, names, len(images), source), source)

    @classmethod
    def from_table(
        cls,
        table: Any,
        *,
        image_column: str = "",
        label_column: str = "",
        folder: str | Path = "",
        names: Sequence[str] | None = None,
        source: str = "a table in memory",
    ) -> ImageDataset:
        """A split of your own table: a DataFrame, a datasets.Dataset, a list of dicts or a dict of lists.

        Args:
            table: the rows.
            image_column: the column of the pictures, each a path or another form that `decode` takes, or a dict with
                bytes and path as the hub stores them; by default names that are usual.
            label_column: the column of the labels, names or ids; by default names that are usual.
            folder: where paths begin that are relative.
            names: as in `from_lists`; None: also what the column of a datasets.Dataset declares.
            source: what messages call the rows.

        Raises:
            ValueError: there is no such column, a row has no label, or as `from_lists`.
        """
        rows, declared = rows_of(_as_stored(table), source)
        image_column = column_of(rows, image_column, PICTURE_COLUMNS, "the pictures", source)
        label_column = column_of(rows, label_column, LABEL_COLUMNS, "the labels", source)
        images = [_in_folder(row.get(image_column), folder) for row in rows]
        labels = [_plain_label(row.get(label_column)) for row in rows]
        return cls.from_lists(images, labels, names=names or declared.get(label_column), source=source)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def noun(self) -> str:
        """What messages call the examples."""
        return "pictures"

    @property
    def groups(self) -> None:
        """Nothing: pictures are not compared."""
        return None

    def in_memory(self) -> ImageDataset:
        """Itself: the pictures, or the paths of their files, are here already."""
        return self

    def with_labels(self, labels: tuple[str, ...]) -> ImageDataset:
        """The same pictures with the ids of ``labels``.

        Raises:
            ValueError: a picture's label is not among them.
        """
        return replace(self, targets=relabel(self.targets, self.labels, labels, self.source), labels=labels)


def _as_stored(table: Any) -> Any:
    """The table; of a datasets.Dataset one whose pictures stay files, so that memory holds no pixels."""
    if not hasattr(table, "cast_column"):
        return table
    for name, feature in dict(getattr(table, "features", None) or {}).items():
        kind: Any = type(feature)
        if getattr(feature, "decode", None) is True and kind.__name__ == "Image":
            table = table.cast_column(name, kind(decode=False))
    return table


def _in_folder(image: Any, folder: str | Path) -> Any:
    """A picture of a table: the content or the path of what the hub stores, and paths below ``folder``."""
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    return Path(folder, image) if isinstance(image, (str, Path)) else image


def _plain_label(label: Any) -> Any:
    """A label without what libraries make of it: NumPy's numbers become Python's, whole ones with a point whole."""
    if isinstance(label, np.generic):
        label = label.item()
    return int(label) if isinstance(label, float) and label.is_integer() else label


def _is_plain(images: np.ndarray) -> bool:
    """Whether pictures are (N, H, W) or (N, H, W, 3), and cannot be (N, C, H, W)."""
    return images.ndim == 3 or (images.shape[3] == 3 and images.shape[1] not in CHANNELS)


def check_pixels(images: np.ndarray, name: str) -> None:
    """Refuse an array that is not (N, H, W) or (N, H, W, 3) uint8.

    Raises:
        ValueError: it is not, or it is empty. The message begins with ``name``.
    """
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise ValueError(f"{name} is {images.shape} {images.dtype}, expected (N, H, W) or (N, H, W, 3) uint8")
    if not images.size:
        raise ValueError(f"{name} is empty: {images.shape}")


def _kept(image: Any, where: str) -> Path | bytes | np.ndarray:
    """A picture as it is held: the path of a file that is there, the content of one, or 8-bit pixels."""
    if isinstance(image, (str, Path)):
        if not Path(image).is_file():
            raise ValueError(f"{where}: {image}: no such file.")
        return Path(image)
    if isinstance(image, bytes):
        open_image(image, where).close()
        return image
    return np.asarray(decode(image, where))


@dataclass(frozen=True)
class ImageBatches:
    """A split as the model takes it. Files are decoded in `collate`, so in the workers if there are any."""

    dataset: ImageDataset
    processing: ImageProcessing
    augment: Augment = "none"
    seed: int = 0

    @property
    def targets(self) -> np.ndarray:
        """(N,) true label ids."""
        return self.dataset.targets

    @property
    def lengths(self) -> np.ndarray:
        """(N,) ones: every picture has the same size, and rates count pictures."""
        return np.broadcast_to(np.int64(1), len(self.dataset))

    @property
    def label_counts(self) -> np.ndarray:
        """(N,) ones."""
        return np.broadcast_to(np.int64(1), len(self.dataset))

    def content(self) -> tuple[int, list[Any]]:
        """How many pictures there are, and what tells them from others.

        Of files that is the end of their path and their size; for their content all would have to be read.
        """
        images = self.dataset.images
        listed = [images] if isinstance(images, np.ndarray) else [_told(image) for image in images]
        return len(self.dataset), [self.targets, *listed]

    def collate(self, indices: np.ndarray, epoch: int | None = None) -> Batch:
        """The keyword pixel_values (B, C, H, W) float32, and label ids (B,); augmented when ``epoch`` is given.

        Raises:
            ValueError: a picture cannot be decoded; the message begins with its path.
        """
        pixels = self.processing.empty(len(indices))
        augment = "none" if epoch is None else self.augment
        for row, index in zip(pixels, indices.tolist(), strict=True):
            source = self.dataset.images[index]
            name = named(source) if isinstance(source, Path) else f"{self.dataset.source}, picture {index}"
            try:
                image = decode(source, name)
            except ValueError as error:
                raise ValueError(f"{error}. Mend it, or leave such pictures out: --on-bad-row skip") from error
            image = augmented(image, self.processing, augment, self.seed, epoch or 0, index)
            self.processing.fill(row, image, name)
        return as_tensors({"pixel_values": self.processing.normalised(pixels)}, self.targets[indices])


def _told(image: Any) -> Any:
    """A picture in memory as it is; of a file the name, that of its folder, and the size."""
    return f"{image.parent.name}/{image.name} {image.stat().st_size}" if isinstance(image, Path) else image


def augmented(image: Image, processing: ImageProcessing, augment: Augment, seed: int, epoch: int, index: int) -> Image:
    """The picture in the model's size, changed as ``augment`` says.

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
