"""scikit-learn's handwritten digits as two data sets: small pictures that need no download."""

from pathlib import Path

import numpy as np

from trainers.data.images.batches import ImageDataset
from trainers.data.images.npz import write_npz

BASE, NEW = "digits_0_to_4", "digits_5_to_9"
"""Names of the two data sets; the first is to pretrain on, the second to adapt to."""
SHARES = {"train": 0.6, "validation": 0.1, "test": 0.3}
"""What part of each digit's pictures belongs to each split."""


def write_digits(folder: Path) -> dict[str, Path]:
    """Write both data sets, about 900 grey pictures of 8 x 8 pixels each, as .npz files.

    The pictures are those of 43 people who wrote on paper forms (Alpaydin and Kaynak, UCI, 1998).

    Returns:
        The path of each data set, by its name.
    """
    from sklearn.datasets import load_digits

    pixels, digits = map(np.asarray, load_digits(return_X_y=True))
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)  # ink from 0 to 16
    paths = {}
    for name, wanted in {BASE: range(5), NEW: range(5, 10)}.items():
        paths[name] = folder / f"{name}.npz"
        labels = tuple(map(str, wanted))
        splits = {
            split: ImageDataset(images[chosen], digits[chosen].astype(np.int64) - wanted[0], labels, name)
            for split, chosen in _splits(digits, wanted).items()
        }
        write_npz(paths[name], splits)
    return paths


def _splits(digits: np.ndarray, wanted: range) -> dict[str, np.ndarray]:
    """Indices of each split. Each digit is cut in the order of the data, so that the test writers are others."""
    edges = np.cumsum([0.0, *SHARES.values()])
    parts: dict[str, list[np.ndarray]] = {split: [] for split in SHARES}
    for digit in wanted:
        members = np.flatnonzero(digits == digit)
        cuts = np.rint(edges * len(members)).astype(int)
        for split, start, end in zip(SHARES, cuts[:-1], cuts[1:], strict=True):
            parts[split].append(members[start:end])
    return {split: np.concatenate(found) for split, found in parts.items()}
