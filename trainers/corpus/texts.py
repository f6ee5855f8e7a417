"""What a data set of labelled texts holds, split by split, and what in it may spoil an experiment.

As numbers, as Markdown, and as a picture: texts of each label, and lengths of texts.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from lora_core.files import write_json, write_text
from lora_core.models import config_from_dict
from lora_core.models.pretrained.source import read_config, resolve
from trainers.data.texts.dataset import TextDataset
from trainers.data.texts.encode import encode_pairs, encode_texts
from trainers.data.texts.targets import REGRESSION, SINGLE
from trainers.data.tokenizer import load_tokenizer
from trainers.show import COLOURS, blank_figure, markdown_table, plain_axes, save_figure

FEW_TEXTS = 20
"""A label with fewer texts in a split that scores has a score that says little."""
UNEQUAL = 10
"""A label with so many times the texts of another deserves a look at `class_weights`."""
MOST_LABELS = 30
"""Labels with a line in the table and bars in the picture; more would not be readable."""


@dataclass(frozen=True)
class TextSplit:
    """One split in numbers."""

    texts: int
    """Texts, or pairs of texts."""
    labels: dict[str, int]
    """Texts of each label; a text with several counts for each. Empty where the labels are numbers."""
    words: dict[str, float]
    """Words of a text (of a pair in both): min, median, mean, p95 (95 in 100 are no longer), max."""
    repeated: int
    """Texts that stood in this split before."""
    seen_in_train: int
    """Texts that also stand in the training split; 0 for the training split itself."""
    too_long: int | None
    """Texts that exceed the model; None: no model was named."""


@dataclass(frozen=True)
class TextStatistics:
    """A data set in numbers."""

    splits: dict[str, TextSplit]
    """Training split first."""
    labels: tuple[str, ...]
    """Labels, the most frequent first."""
    problem_type: str
    """What the labels are, as `TextDataset.problem_type`."""
    warnings: tuple[str, ...]
    """What may spoil an experiment, in sentences."""


def count_texts(datasets: Mapping[str, TextDataset], model: str = "") -> TextStatistics:
    """The numbers of each split, and what they warn of.

    Args:
        datasets: the splits, as `load_text_datasets` reads them.
        model: whose tokens and limit the lengths are compared with; empty: none.
    """
    train = set(_keys(datasets["train"])) if "train" in datasets else set()
    splits = {}
    for name, dataset in datasets.items():
        keys = _keys(dataset)
        words = np.array([sum(len(part.split()) for part in key) for key in keys])
        splits[name] = TextSplit(
            texts=len(dataset),
            labels=_label_counts(dataset),
            words={
                "min": int(words.min()),
                "median": float(np.median(words)),
                "mean": float(words.mean()),
                "p95": float(np.percentile(words, 95)),
                "max": int(words.max()),
            },
            repeated=len(keys) - len(set(keys)),
            seen_in_train=0 if name == "train" else sum(key in train for key in keys),
            too_long=_too_long(dataset, model) if model else None,
        )
    first = next(iter(datasets.values()))
    total = sum((Counter(split.labels) for split in splits.values()), Counter())
    labels = sorted(total, key=lambda label: (-total[label], label))
    warnings = [*_conflicts(datasets), *_warnings(splits, tuple(first.labels), first.problem_type)]
    return TextStatistics(splits, tuple(labels), first.problem_type, tuple(warnings))


def _keys(dataset: TextDataset) -> list[tuple[str, ...]]:
    """What makes two texts, or pairs of texts, the same."""
    return list(zip(dataset.texts, *([] if dataset.pairs is None else [dataset.pairs]), strict=True))


def _label_counts(dataset: TextDataset) -> dict[str, int]:
    if dataset.problem_type == REGRESSION:
        return {}
    if dataset.problem_type == SINGLE:
        counts = np.bincount(dataset.targets, minlength=len(dataset.labels))
    else:
        counts = dataset.targets.sum(0)
    return {label: int(count) for label, count in zip(dataset.labels, counts.tolist(), strict=True)}


def _too_long(dataset: TextDataset, model: str) -> int:
    """Texts that have more tokens than the model can take."""
    folder = resolve(model)
    config: Any = config_from_dict(read_config(folder))
    tokenizer, limit = load_tokenizer(folder), config.max_tokens
    none = np.zeros(len(dataset), dtype=np.int64)
    if dataset.pairs is None:
        return encode_texts(dataset.texts, none, tokenizer, limit, 0).shortened
    return encode_pairs(dataset.texts, dataset.pairs, none, tokenizer, limit, 0).shortened


def _conflicts(datasets: Mapping[str, TextDataset]) -> list[str]:
    """The same text with different labels."""
    labels: defaultdict[tuple[str, ...], set[Any]] = defaultdict(set)
    for dataset in datasets.values():
        for key, target in zip(_keys(dataset), dataset.targets, strict=True):
            labels[key].add(target.tobytes())
    several = [key for key, found in labels.items() if len(found) > 1]
    if not several:
        return []
    shown = several[0][0] if len(several[0][0]) <= 60 else f"{several[0][0][:60]}..."
    return [f"{len(several):,} of {len(labels):,} distinct texts have more than one label, first {shown!r}."]


def _warnings(splits: Mapping[str, TextSplit], labels: tuple[str, ...], problem_type: str) -> list[str]:
    found = []
    for name, split in splits.items():
        if split.seen_in_train:
            share = f"{split.seen_in_train:,} of {split.texts:,} {name} texts ({split.seen_in_train / split.texts:.1%})"
            found.append(f"{share} also stand in the training split.")
        if split.repeated:
            found.append(f"{split.repeated:,} of {split.texts:,} {name} texts stood in that split before.")
        if split.too_long:
            found.append(
                f"{split.too_long:,} of {split.texts:,} {name} texts are longer than the model: see --long-text."
            )
    if problem_type == REGRESSION:
        return found
    for name, split in splits.items():
        missing = [label for label in labels if not split.labels[label]]
        thin = [label for label in labels if 0 < split.labels[label] < FEW_TEXTS]
        if missing:
            found.append(f"The {name} split lacks {_listed(missing)}.")
        if thin and name != "train":
            found.append(
                f"The {name} split has fewer than {FEW_TEXTS} texts of {_listed(thin)}: their scores say little."
            )
    counts = {label: count for label, count in splits.get("train", next(iter(splits.values()))).labels.items() if count}
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] >= UNEQUAL * counts[least]:
        found.append(
            f"{most} has {counts[most]:,} texts to learn from, {least} {counts[least]:,}: see --class-weights balanced."
        )
    texts = splits.get("train", next(iter(splits.values()))).texts
    if problem_type == SINGLE and 2 < texts / 2 < len(counts):
        found.append(f"There are {len(counts):,} labels, hardly any twice: is the column of the label the right one?")
    return found


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def texts_table(counted: TextStatistics) -> str:
    """The numbers as Markdown: tables of the splits and the labels, and the warnings."""
    splits = counted.splits
    seen = ["" if name == "train" else f"{split.seen_in_train:,}" for name, split in splits.items()]
    rows = [
        ("texts", [f"{split.texts:,}" for split in splits.values()]),
        ("words a text: median, mean", [f"{s.words['median']:.0f}, {s.words['mean']:.1f}" for s in splits.values()]),
        ("95 in 100 at most, longest", [f"{s.words['p95']:.0f}, {s.words['max']:,}" for s in splits.values()]),
        ("repeated texts", [f"{split.repeated:,}" for split in splits.values()]),
        ("also in train", seen),
    ]
    if any(split.too_long is not None for split in splits.values()):
        rows.append(("longer than the model", [f"{split.too_long:,}" for split in splits.values()]))
    parts = [markdown_table(["", *splits], [[name, *values] for name, values in rows])]
    if counted.labels:
        lines = [
            [label, *(_share(split, label) for split in splits.values())] for label in counted.labels[:MOST_LABELS]
        ]
        more = len(counted.labels) - len(lines)
        title = "texts of each label" + (f" ({more} more labels)" if more else "")
        parts.append(markdown_table([title, *splits], lines))
    if counted.warnings:
        parts.append("\n".join(f"- Note: {warning}" for warning in counted.warnings))
    return "\n\n".join(parts) + "\n"


def _share(split: TextSplit, label: str) -> str:
    return f"{split.labels[label]:,} ({split.labels[label] / split.texts:.1%})"


def write_texts(counted: TextStatistics, folder: str | Path, name: str = "statistics") -> list[Path]:
    """Write `name`.md, .json and .png into a folder; return their paths."""
    folder = Path(folder)
    table = write_text(folder / f"{name}.md", texts_table(counted))
    figures = write_json(folder / f"{name}.json", dataclasses.asdict(counted))
    picture = folder / f"{name}.png"
    plot_texts(counted, picture)
    return [table, figures, picture]


def plot_texts(counted: TextStatistics, path: str | Path | IO[bytes]) -> None:
    """Write the picture as a PNG file."""
    labels = counted.labels[:MOST_LABELS]
    figure = blank_figure(9.0, 2.4 + 0.2 * max(len(labels), 6))
    bars, lengths = figure.subplots(1, 2, width_ratios=[5, 4])
    left = np.zeros(len(labels))
    for place, (colour, (name, split)) in enumerate(zip(COLOURS, counted.splits.items(), strict=False)):
        values = np.array([split.labels[label] for label in labels], dtype=float)
        bars.barh(
            np.arange(len(labels)), values, left=left, color=colour, height=0.7, label=f"{name} ({split.texts:,})"
        )
        left += values
        words = split.words
        lengths.plot([words["median"], words["p95"], words["max"]], [place] * 3, marker="|", color=colour)
    bars.set_yticks(np.arange(len(labels)), [label[:32] for label in labels], fontsize="small")
    bars.invert_yaxis()
    bars.set(title="Texts by label", xlabel="texts")
    lengths.set_yticks(np.arange(len(counted.splits)), list(counted.splits))
    lengths.set(title="Words of a text", xlabel="words: median, 95 in 100, longest", xscale="symlog")
    for axes in (bars, lengths):
        plain_axes(axes, "x")
    figure.legend(*bars.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save_figure(figure, path)
