"""What a data set of pictures holds, split by split, and what in it may spoil an experiment.

As numbers, as Markdown, and as a picture: pictures of each class, and their sizes. Pictures are the same where their
pixels are, whatever their files are called and how they are packed.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_core.files import write_json, write_text
from trainers.data.images.batches import ImageDataset
from trainers.data.images.decode import decode, open_image
from trainers.data.images.files import THREADS
from trainers.data.rows import BadRows
from trainers.show import COLOURS, blank_figure, markdown_table, plain_axes, progress_bar, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW_PICTURES = 20
"""A class with fewer pictures in a split that scores has a score that says little."""
UNEVEN = 10
"""A largest class that is so many times the smallest hides how the model does on the others."""
TINY = 16
"""Pixels of a shorter side below which hardly anything can be seen."""
NAMED = 20
"""Groups of equal pictures that are named."""
MAX_CLASSES = 30
"""Classes with bars of their own in the picture; more would not be readable."""
SIZES = (0, 16, 32, 64, 128, 256, 512, 1024, 2048, 1 << 30)
"""Bounds of the bars of sizes, in pixels of the shorter side."""


@dataclass(frozen=True)
class PictureSplit:
    """One split in numbers."""

    pictures: int
    """Usable pictures."""
    labels: dict[str, int]
    """Pictures of each class."""
    modes: dict[str, int]
    """Pictures of each of Pillow's modes, as their files are."""
    width: dict[str, float]
    """Pixels: min, median, max."""
    height: dict[str, float]
    """Pixels: min, median, max."""
    size_histogram: list[int]
    """Pictures by their shorter side, between the bounds `SIZES`."""
    tiny: int
    """Pictures with a shorter side below `TINY` pixels."""
    repeated: int
    """Pictures that stood in this split before."""
    seen_in_train: int
    """Pictures that also stand in the training split; 0 for the training split itself."""


@dataclass(frozen=True)
class Pictures:
    """A data set of pictures in numbers."""

    splits: dict[str, PictureSplit]
    """Training split first."""
    labels: tuple[str, ...]
    """Classes, the largest first."""
    same: list[list[str]]
    """Groups of equal pictures, each as "split: file (class)"; at most `NAMED`, those of several classes first."""
    warnings: tuple[str, ...]
    """What may spoil an experiment, in sentences."""


@dataclass(frozen=True)
class _Picture:
    """What is remembered of a picture."""

    split: str
    name: str
    label: str
    mode: str
    size: tuple[int, int]
    """Width and height of the picture upright."""
    digest: bytes
    """Of its pixels."""


def count_pictures(datasets: Mapping[str, ImageDataset], bad_rows: BadRows) -> Pictures:
    """Decode every picture once.

    Raises:
        ValueError: a picture cannot be decoded and ``bad_rows`` does not skip such ones, or a split has no other.
    """
    found: dict[str, list[_Picture]] = {}
    total = sum(map(len, datasets.values()))
    with (
        progress_bar("reading", total, unit="picture") as progress,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        for split, dataset in datasets.items():
            found[split] = []
            jobs = [(split, dataset, index) for index in range(len(dataset))]
            for (_, _, index), read in zip(jobs, threads.map(_read, jobs), strict=True):
                progress.update()
                if isinstance(read, str):
                    bad_rows.add(_name(dataset, index), None, read)
                else:
                    found[split].append(read)
            if not found[split]:
                raise ValueError(f"{dataset.source} holds no usable picture. Fill it or remove it.")
    labels = next(iter(datasets.values())).labels
    return _statistics(found, labels, bad_rows.count)


def _read(job: tuple[str, ImageDataset, int]) -> _Picture | str:
    """A picture in numbers, or what is wrong with it."""
    split, dataset, index = job
    source, name = dataset.images[index], _name(dataset, index)
    try:
        image = decode(source, name)
        if isinstance(source, np.ndarray):
            mode = image.mode
        else:
            with open_image(source, name) as opened:
                mode = opened.mode
    except ValueError as error:
        return str(error).removeprefix(f"{name}: ")
    digest = blake2b(np.asarray(image).tobytes() + repr((image.mode, image.size)).encode(), digest_size=16).digest()
    return _Picture(split, name, dataset.labels[dataset.targets[index]], mode, image.size, digest)


def _name(dataset: ImageDataset, index: int) -> str:
    source = dataset.images[index]
    return str(source) if isinstance(source, Path) else f"{dataset.source}, picture {index + 1}"


def _statistics(found: dict[str, list[_Picture]], labels: Iterable[str], unusable: int) -> Pictures:
    train = {picture.digest for picture in found.get("train", [])}
    splits = {}
    for split, pictures in found.items():
        counts = Counter(picture.label for picture in pictures)
        sides = np.array([picture.size for picture in pictures])  # (N, 2)
        shorter = sides.min(1)
        splits[split] = PictureSplit(
            pictures=len(pictures),
            labels={label: counts[label] for label in labels},
            modes=dict(Counter(picture.mode for picture in pictures).most_common()),
            width=_spread(sides[:, 0]),
            height=_spread(sides[:, 1]),
            size_histogram=np.histogram(shorter, SIZES)[0].tolist(),
            tiny=int((shorter < TINY).sum()),
            repeated=len(pictures) - len({picture.digest for picture in pictures}),
            seen_in_train=0 if split == "train" else sum(picture.digest in train for picture in pictures),
        )
    total = Counter(picture.label for pictures in found.values() for picture in pictures)
    groups: dict[bytes, list[_Picture]] = {}
    for pictures in found.values():
        for picture in pictures:
            groups.setdefault(picture.digest, []).append(picture)
    same = [group for group in groups.values() if len(group) > 1]
    same.sort(key=_is_of_one_class)
    named = [[f"{picture.split}: {picture.name} ({picture.label})" for picture in group] for group in same[:NAMED]]
    largest_first = tuple(sorted(total, key=lambda label: (-total[label], label)))
    return Pictures(splits, largest_first, named, tuple(_warnings(splits, same, unusable)))


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}


def _is_of_one_class(group: list[_Picture]) -> bool:
    return len({picture.label for picture in group}) == 1


def _warnings(splits: dict[str, PictureSplit], same: list[list[_Picture]], unusable: int) -> list[str]:
    found = []
    if unusable:
        found.append(f"{unusable:,} pictures or rows cannot be used and were left out.")
    several = [group for group in same if not _is_of_one_class(group)]
    if several:
        found.append(f"{len(several):,} pictures stand there with more than one class.")
    for name, split in splits.items():
        if split.seen_in_train:
            share = split.seen_in_train / split.pictures
            found.append(
                f"{split.seen_in_train:,} of {split.pictures:,} {name} pictures ({share:.1%}) also stand in the "
                "training split."
            )
        if split.repeated:
            found.append(f"{split.repeated:,} pictures of the {name} split stand there before.")
    between = sum({picture.split for picture in group} >= {"validation", "test"} for group in same)
    if between:
        found.append(f"{between:,} pictures stand in the validation and in the test split.")
    for name, split in splits.items():
        found += _balance(name, split, splits)
        if split.tiny:
            found.append(f"{split.tiny:,} {name} pictures have a side below {TINY} pixels.")
    return found


def _balance(name: str, split: PictureSplit, splits: dict[str, PictureSplit]) -> list[str]:
    """What is to say about the sizes of a split's classes."""
    found = []
    counts = {label: count for label, count in split.labels.items() if count}
    missing = [label for label in split.labels if label not in counts and any(s.labels[label] for s in splits.values())]
    if len(counts) == 1:
        found.append(f"{next(iter(counts))} is the only class of the {name} split: there is nothing to tell apart.")
    if missing:
        found.append(f"The {name} split lacks {_listed(missing)}.")
    smallest, largest = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if name not in ("validation", "test") and counts[largest] >= UNEVEN * counts[smallest]:
        found.append(
            f"In the {name} split {largest} has {counts[largest]:,} pictures and {smallest} {counts[smallest]:,}: look "
            "at F1 and not at accuracy, and see --class-weights balanced."
        )
    thin = [label for label, count in counts.items() if count < FEW_PICTURES]
    if thin and name in ("validation", "test"):
        found.append(
            f"The {name} split has fewer than {FEW_PICTURES} pictures of {_listed(thin)}: their scores will say little."
        )
    return found


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def pictures_table(counted: Pictures) -> str:
    """The numbers as Markdown: tables of the splits and the classes, equal pictures, and the warnings."""
    splits = counted.splits
    rows = [
        ("pictures", [f"{split.pictures:,}" for split in splits.values()]),
        ("width: least, median, most", [_sides(split.width) for split in splits.values()]),
        ("height: least, median, most", [_sides(split.height) for split in splits.values()]),
        ("modes", [", ".join(f"{mode} {count:,}" for mode, count in split.modes.items()) for split in splits.values()]),
        (f"a side below {TINY} pixels", [f"{split.tiny:,}" for split in splits.values()]),
        ("repeated pictures", [f"{split.repeated:,}" for split in splits.values()]),
        ("also in train", ["" if name == "train" else f"{split.seen_in_train:,}" for name, split in splits.items()]),
    ]
    classes = [
        [label, *(f"{split.labels[label]:,} ({split.labels[label] / split.pictures:.1%})" for split in splits.values())]
        for label in counted.labels
    ]
    parts = [
        markdown_table(["", *splits], [[name, *values] for name, values in rows]),
        markdown_table(["pictures of each class", *splits], classes),
    ]
    if counted.same:
        groups = "\n".join(f"- {' = '.join(group)}" for group in counted.same)
        parts.append(f"The same pictures (at most {NAMED} groups):\n\n{groups}")
    if counted.warnings:
        parts.append("\n".join(f"- Note: {warning}" for warning in counted.warnings))
    return "\n\n".join(parts) + "\n"


def _sides(spread: dict[str, float]) -> str:
    return f"{spread['min']:,}, {spread['median']:,.0f}, {spread['max']:,}"


def write_pictures(counted: Pictures, folder: str | Path, name: str = "statistics") -> list[Path]:
    """Write `name`.md, .json and .png into a folder; return their paths."""
    folder = Path(folder)
    table = write_text(folder / f"{name}.md", pictures_table(counted))
    figures: dict[str, Any] = dataclasses.asdict(counted)
    return [table, write_json(folder / f"{name}.json", figures), plot_pictures(counted, folder / f"{name}.png")]


def plot_pictures(counted: Pictures, path: Path) -> Path:
    """Write the picture as a PNG file."""
    labels = counted.labels[:MAX_CLASSES]
    figure = blank_figure(11.0, 3.2 + 0.2 * max(len(labels), 6))
    bars, sizes = figure.subplots(1, 2, width_ratios=[5, 4])
    _plot_classes(counted, labels, bars)
    _plot_sizes(counted, sizes)
    plain_axes(bars, "x")
    plain_axes(sizes, "y")
    figure.legend(*sizes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save_figure(figure, path)
    return path


def _plot_classes(counted: Pictures, labels: tuple[str, ...], axes: Axes) -> None:
    left = np.zeros(len(labels))
    for colour, split in zip(COLOURS, counted.splits.values(), strict=False):
        values = np.array([split.labels[label] for label in labels], dtype=float)
        axes.barh(np.arange(len(labels)), values, left=left, color=colour, height=0.7)
        left += values
    axes.set_yticks(np.arange(len(labels)), [label[:32] for label in labels], fontsize="small")
    axes.invert_yaxis()
    shown = "class" if len(labels) == len(counted.labels) else f"the {len(labels)} largest of {len(counted.labels)}"
    axes.set(title=f"Pictures by {shown}", xlabel="pictures")
    for place, total in enumerate(left):
        axes.annotate(f" {total:,.0f}", (total, place), va="center", fontsize="small")
    axes.margins(x=0.15)


def _plot_sizes(counted: Pictures, axes: Axes) -> None:
    places = np.arange(len(SIZES))
    for colour, (name, split) in zip(COLOURS, counted.splits.items(), strict=False):
        shares = 100 * np.array(split.size_histogram) / split.pictures
        axes.stairs(shares, places, color=colour, linewidth=1.5, label=f"{name} ({split.pictures:,})")
    axes.set_xticks(places[:-1], [str(size) for size in SIZES[:-1]])
    axes.set(title="Shorter side of a picture", xlabel="pixels, at least", ylabel="pictures (%)")
