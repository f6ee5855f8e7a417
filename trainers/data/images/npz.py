"""The MedMNIST layout: one .npz file with train_images, train_labels, val_images, ... , test_labels.

An .npz file is a zip archive of .npy files, and a few kilobytes of zip can expand to any size. So the sizes that the
archive and the headers state are checked before memory is taken, and no more than that is read.
"""

import math
import zipfile
import zlib
from itertools import product
from pathlib import Path
from typing import IO

import numpy as np

from lora_core.files import regular_file, replacing
from trainers.data.images.batches import ImageDataset, check_pixels

SPLITS = {"train": "train", "validation": "val", "test": "test"}
"""What the arrays of each split begin with."""
NAMES = "label_names"
"""Optional array of strings with the labels' names."""
MAX_BYTES = 8 << 30
"""Limit of all arrays together, once expanded."""
MAX_EXPANSION = 100
"""Limit of an array's size over its compressed size; pictures compress less than 10 times."""
SMALL = 1 << 20
"""Arrays below this many bytes may compress as they like."""
KNOWN_NAMES = {
    "pathmnist": ("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
                  "cancer-associated stroma", "colorectal adenocarcinoma epithelium"),
    "dermamnist": ("actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma",
                   "benign keratosis-like lesions", "dermatofibroma", "melanoma", "melanocytic nevi",
                   "vascular lesions"),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "pneumoniamnist": ("normal", "pneumonia"),
    "breastmnist": ("malignant", "normal, benign"),
    "bloodmnist": ("basophil", "eosinophil", "erythroblast", "immature granulocytes", "lymphocyte", "monocyte",
                   "neutrophil", "platelet"),
    "tissuemnist": ("Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule", "Glomerular endothelial cells",
                    "Interstitial endothelial cells", "Leukocytes", "Podocytes", "Proximal Tubule Segments",
                    "Thick Ascending Limb"),
    **dict.fromkeys(("organamnist", "organcmnist", "organsmnist"), (
        "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left",
        "lung-right", "pancreas", "spleen")),
}  # fmt: skip
"""Labels of MedMNIST's own files (Yang et al., 2023), which hold numbers only; by the file's name without its size."""


def read_npz(path: Path) -> dict[str, ImageDataset]:
    """The splits of an .npz file, those that it has.

    Images are (N, H, W) or (N, H, W, 3) uint8, labels (N, 1) or (N,) integers. Labels are named by the array
    `label_names`, else as MedMNIST does if the file bears one of its names, else "0", "1", ...

    Raises:
        ValueError: the file is damaged, too large once expanded, or holds something else.
    """
    try:
        with zipfile.ZipFile(regular_file(path)) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = [f"{prefix}_{kind}" for prefix, kind in product(SPLITS.values(), ("images", "labels"))]
            _check_sizes([info for name, info in members.items() if name in (*wanted, NAMES)])
            arrays = {name: _read_array(archive, members[name]) for name in (*wanted, NAMES) if name in members}
        return _datasets(path, arrays)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: {error}.") from error


def write_npz(path: Path, datasets: dict[str, ImageDataset]) -> None:
    """Write splits whose images are arrays as one .npz file that `read_npz` reads, with the labels' names."""
    arrays = {}
    for split, dataset in datasets.items():
        arrays[f"{SPLITS[split]}_images"] = dataset.images
        arrays[f"{SPLITS[split]}_labels"] = dataset.targets[:, None]
        arrays[NAMES] = np.array(dataset.labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _check_sizes(members: list[zipfile.ZipInfo]) -> None:
    total = sum(info.file_size for info in members)
    if total > MAX_BYTES:
        raise ValueError(
            f"its arrays expand to {total:,} bytes, above the limit of {MAX_BYTES:,}. Store the pictures as files in a "
            "folder for each class: those are read as needed"
        )
    for info in members:
        if info.file_size > max(SMALL, MAX_EXPANSION * info.compress_size):
            raise ValueError(
                f"{info.filename} expands from {info.compress_size:,} to {info.file_size:,} bytes, more than "
                f"{MAX_EXPANSION} times: no pictures compress like that"
            )


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array; its header must agree with the size that the archive states before memory is taken."""
    with archive.open(member) as file:
        shape, by_column, dtype = _read_header(file, member.filename)
        if dtype.hasobject:
            raise ValueError(
                f"{member.filename} holds Python objects, which could run code when read; expected numbers"
            )
        size = math.prod(shape) * dtype.itemsize
        following = member.file_size - file.tell()
        if size != following:
            raise ValueError(
                f"{member.filename} says that it is {shape} {dtype}, {size:,} bytes, but {following:,} follow"
            )
        array = np.empty(shape[::-1] if by_column else shape, dtype)
        rest = array.reshape(-1).view(np.uint8) if size else np.empty(0, np.uint8)
        while len(rest):
            piece = np.frombuffer(file.read(min(len(rest), 1 << 20)), np.uint8)
            if not len(piece):
                raise EOFError(f"{member.filename} is cut short")
            rest[: len(piece)] = piece
            rest = rest[len(piece) :]
        file.read(1)  # the archive's checksum is compared at the end
    return array.T if by_column else array


def _read_header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        return readers[np.lib.format.read_magic(file)](file)
    except Exception as error:  # numpy parses the header as Python, in which much can go wrong
        raise ValueError(f"{name} is not a .npy array of format 1 or 2 ({error})") from error


def _datasets(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, ImageDataset]:
    pairs = {}
    for split, prefix in SPLITS.items():
        found = [arrays.get(f"{prefix}_{kind}") for kind in ("images", "labels")]
        if found[0] is not None and found[1] is not None:
            pairs[split] = _images(found[0], prefix), _targets(found[1], len(found[0]), prefix)
        elif found[0] is not None or found[1] is not None:
            raise ValueError(f"it has only one of {prefix}_images and {prefix}_labels")
    if not pairs:
        raise ValueError(
            "it holds no pictures: expected arrays train_images, train_labels, val_images, ... as MedMNIST"
        )
    count = 1 + max(int(targets.max()) for _, targets in pairs.values())
    labels = _names(path, arrays.get(NAMES), count)
    return {
        split: ImageDataset(images, targets, labels, f"{path}:{SPLITS[split]}")
        for split, (images, targets) in pairs.items()
    }


def _images(images: np.ndarray, prefix: str) -> np.ndarray:
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    check_pixels(images, f"{prefix}_images")
    return np.ascontiguousarray(images)


def _targets(labels: np.ndarray, count: int, prefix: str) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise ValueError(
            f"{prefix}_labels is {labels.shape}: several labels for each picture. Only one for each can be learnt"
        )
    if labels.dtype.kind not in "iu" or labels.shape not in ((count, 1), (count,)):
        raise ValueError(f"{prefix}_labels is {labels.shape} {labels.dtype}, expected ({count}, 1) whole numbers")
    targets = labels.reshape(-1).astype(np.int64)
    if targets.min() < 0 or targets.max() >= 1 << 16:
        raise ValueError(f"{prefix}_labels run from {targets.min()} to {targets.max()}, expected label ids from 0")
    return targets


def _names(path: Path, given: np.ndarray | None, count: int) -> tuple[str, ...]:
    if given is not None:
        names = tuple(map(str, given.tolist())) if given.ndim == 1 and given.dtype.kind == "U" else ()
        if len(set(names)) < len(names) or len(names) < count:
            raise ValueError(f"{NAMES} is {given.shape} {given.dtype}, expected {count} or more different names")
        return names
    known = KNOWN_NAMES.get(path.stem.split("_")[0], ())
    return known if len(known) >= count else tuple(map(str, range(count)))
