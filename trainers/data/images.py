"""Labelled pictures, and the batches that an image model trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainers.data.image_augment import Augment, augmented
from trainers.data.image_decode import decode
from trainers.data.image_processing import ImageProcessing


@dataclass(frozen=True)
class ImageDataset:
    """One split of an image classification data set: N pictures."""

    images: np.ndarray | Sequence[Path]
    """Pixels (N, H, W) or (N, H, W, 3) uint8, or N files, which are decoded when they are needed."""
    targets: np.ndarray
    """(N,) int64 label ids."""
    labels: tuple[str, ...]
    """Label names; the index is the id."""
    source: str
    """Where the split was read from."""

    def __len__(self) -> int:
        return len(self.targets)

    def in_memory(self) -> ImageDataset:
        """Itself: the pictures, or the paths of their files, are here already."""
        return self

    def with_labels(self, labels: tuple[str, ...]) -> ImageDataset:
        """The same pictures with the ids of ``labels``. Raises ValueError for a label that is not among them."""
        unknown = sorted({self.labels[target] for target in np.unique(self.targets)} - set(labels))
        if unknown:
            raise ValueError(f"{self.source} has labels that are not among {list(labels)}: {unknown}.")
        ids = np.array([labels.index(name) if name in labels else -1 for name in self.labels])
        return replace(self, targets=ids[self.targets], labels=labels)


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

    def collate(self, indices: np.ndarray, epoch: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """`pixel_values` (B, C, H, W) float32, and label ids (B,); augmented when `epoch` is given.

        Raises:
            ValueError: a file cannot be decoded; the message begins with its path.
        """
        pixels = self.processing.empty(len(indices))
        augment = "none" if epoch is None else self.augment
        for row, index in zip(pixels, indices.tolist(), strict=True):
            source = self.dataset.images[index]
            image = augmented(decode(source), self.processing, augment, self.seed, epoch or 0, index)
            self.processing.fill(row, image, source)
        return {"pixel_values": self.processing.normalised(pixels)}, torch.from_numpy(self.targets[indices])
