"""What a corpus of tagged sentences holds, split by split, and what in it may spoil an experiment.

As numbers, as Markdown, and as a picture: entities by type, lengths of sentences, and how much of it is entities.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from lora_core.files import write_json, write_text
from trainers.data.tokens.scan import Scan
from trainers.show import COLOURS, blank_figure, markdown_table, plain_axes, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW_ENTITIES = 20
"""A type with fewer entities in a split that scores has a score that says little."""
MAX_TYPES = 20
"""Entity types with bars of their own in the picture; more would not be readable."""
LONG_SENTENCE = 300
"""Words that hardly any model of 512 positions takes in one window."""


@dataclass(frozen=True)
class SplitStatistics:
    """One split in numbers."""

    sentences: int
    """Usable sentences."""
    tokens: int
    """Words."""
    sentences_with_entities: int
    """Sentences with at least one entity."""
    entity_tokens: int
    """Words inside entities."""
    entities: dict[str, int]
    """Entities of each type."""
    labels: dict[str, int]
    """Words with each label."""
    lengths: dict[str, float]
    """Words of a sentence: min, median, mean, p95 (95 in 100 are no longer), max."""
    length_histogram: list[int]
    """Sentences of 0 to 9 words, 10 to 19, ...; the last entry counts all from 190 on."""
    repeated: int
    """Sentences whose words stood in this split before."""
    seen_in_train: int
    """Sentences whose words also stand in the training split; 0 for the training split itself."""

    @property
    def sentence_coverage(self) -> float:
        """Share of sentences with entities."""
        return self.sentences_with_entities / max(self.sentences, 1)

    @property
    def token_coverage(self) -> float:
        """Share of words inside entities."""
        return self.entity_tokens / max(self.tokens, 1)


@dataclass(frozen=True)
class Statistics:
    """A corpus in numbers."""

    splits: dict[str, SplitStatistics]
    """Training split first."""
    types: tuple[str, ...]
    """Entity types, the most frequent first."""
    labels: tuple[str, ...]
    """Labels that occur, the most frequent first."""
    warnings: tuple[str, ...]
    """What may spoil an experiment, in sentences."""


def statistics(scan: Scan) -> Statistics:
    """The numbers of each split, and what they warn of."""
    split_of_row, usable = scan.split_of_rows(), scan.lengths > 0
    groups = {split: usable & (split_of_row == index) for index, split in enumerate(scan.splits)}
    train = np.unique(scan.fingerprints[groups["train"]]) if "train" in groups else None
    per_row = np.diff(scan.entity_offsets)
    splits = {}
    for index, (split, rows) in enumerate(groups.items()):
        files = [number for number, file in enumerate(scan.files) if file.split == split]
        label_counts = scan.label_counts[files].sum(0)
        types = np.bincount(scan.entity_types[np.repeat(split_of_row == index, per_row)], minlength=len(scan.types))
        lengths, fingerprints = scan.lengths[rows], scan.fingerprints[rows]
        splits[split] = SplitStatistics(
            sentences=len(lengths),
            tokens=int(lengths.sum(dtype=np.int64)),
            sentences_with_entities=int(np.count_nonzero(per_row[rows])),
            entity_tokens=int(label_counts.sum() - label_counts[scan.labels.index("O")]),
            entities=dict(zip(scan.types, types.tolist(), strict=True)),
            labels=dict(zip(scan.labels, label_counts.tolist(), strict=True)),
            lengths={
                "min": int(lengths.min()),
                "median": float(np.median(lengths)),
                "mean": float(lengths.mean()),
                "p95": float(np.percentile(lengths, 95)),
                "max": int(lengths.max()),
            },
            length_histogram=np.bincount(np.minimum(lengths // 10, 19), minlength=20).tolist(),
            repeated=len(fingerprints) - len(np.unique(fingerprints)),
            seen_in_train=0 if train is None or split == "train" else int(np.isin(fingerprints, train).sum()),
        )
    types = _by_frequency([split.entities for split in splits.values()])
    labels = _by_frequency([split.labels for split in splits.values()])
    return Statistics(splits, tuple(types), tuple(labels), tuple(_warnings(scan, splits, usable)))


def _by_frequency(counts: list[dict[str, int]]) -> list[str]:
    """The names that occur, the most frequent first."""
    total = {name: sum(count[name] for count in counts) for name in counts[0]}
    return sorted((name for name in total if total[name]), key=lambda name: (-total[name], name))


def _warnings(scan: Scan, splits: dict[str, SplitStatistics], usable: np.ndarray) -> list[str]:
    found = []
    if scan.unusable:
        found.append(f"{scan.unusable:,} rows cannot be used and were left out.")
    if scan.tag_ids.scheme:
        found.append(
            f"The tags are of the scheme {scan.tag_ids.scheme}; they are counted, and trained on, as BIO (IOB2)."
        )
    if scan.stray:
        known = "IOB1" if any(name.startswith("B") for name in scan.labels) else "IO"
        found.append(
            f"{scan.stray:,} tags I-X continue no entity, as in {known}; each is counted as the beginning of one."
        )
    found += _conflicts(scan, usable)
    for name, split in splits.items():
        if split.seen_in_train:
            share = split.seen_in_train / split.sentences
            found.append(
                f"{split.seen_in_train:,} of {split.sentences:,} {name} sentences ({share:.1%}) also stand in the "
                "training split."
            )
    for name, split in splits.items():
        found += _thin_types(name, split, splits)
        if split.lengths["max"] > LONG_SENTENCE:
            longest = split.lengths["max"]
            found.append(f"The longest {name} sentence has {longest:,} words: it may be cut into several windows.")
    never = [label for label in scan.labels if not any(split.labels[label] for split in splits.values())]
    if never:
        found.append(f"{len(never)} of {len(scan.labels)} labels never occur: {_listed(never)}.")
    return found


def _conflicts(scan: Scan, usable: np.ndarray) -> list[str]:
    """Sentences of the same words with different tags."""
    pairs = np.stack([scan.fingerprints[usable], scan.taggings[usable].astype(np.uint64)], axis=1)
    sentences, taggings = np.unique(np.unique(pairs, axis=0)[:, 0], return_counts=True)
    count = int((taggings > 1).sum())
    return [f"{count:,} of {len(sentences):,} distinct sentences are tagged in more than one way."] if count else []


def _thin_types(name: str, split: SplitStatistics, splits: dict[str, SplitStatistics]) -> list[str]:
    occurring = [kind for kind in split.entities if any(other.entities[kind] for other in splits.values())]
    missing = [kind for kind in occurring if not split.entities[kind]]
    thin = [kind for kind in occurring if 0 < split.entities[kind] < FEW_ENTITIES]
    found = []
    if missing:
        found.append(f"The {name} split lacks {_listed(missing)}.")
    if thin and name in ("validation", "test"):
        found.append(
            f"The {name} split has fewer than {FEW_ENTITIES} entities of {_listed(thin)}: their scores will say little."
        )
    return found


def statistics_table(counted: Statistics) -> str:
    """The numbers as Markdown: tables of the splits, the types and the labels, and the warnings."""
    splits = counted.splits
    medians = [f"{split.lengths['median']:.0f}, {split.lengths['mean']:.1f}" for split in splits.values()]
    seen = ["" if name == "train" else f"{split.seen_in_train:,}" for name, split in splits.items()]
    rows = [
        ("sentences", [f"{split.sentences:,}" for split in splits.values()]),
        ("with entities", [f"{s.sentences_with_entities:,} ({s.sentence_coverage:.1%})" for s in splits.values()]),
        ("words", [f"{split.tokens:,}" for split in splits.values()]),
        ("inside entities", [f"{split.entity_tokens:,} ({split.token_coverage:.2%})" for split in splits.values()]),
        ("entities", [f"{sum(split.entities.values()):,}" for split in splits.values()]),
        ("words a sentence: median, mean", medians),
        ("95 in 100 at most, longest", [f"{s.lengths['p95']:.0f}, {s.lengths['max']:,}" for s in splits.values()]),
        ("repeated sentences", [f"{split.repeated:,}" for split in splits.values()]),
        ("also in train", seen),
    ]
    types = [[kind, *(f"{split.entities[kind]:,}" for split in splits.values())] for kind in counted.types]
    labels = [[label, *(f"{split.labels[label]:,}" for split in splits.values())] for label in counted.labels]
    parts = [
        markdown_table(["", *splits], [[name, *values] for name, values in rows]),
        markdown_table(["entities of each type", *splits], types),
        markdown_table(["words with each label", *splits], labels),
    ]
    if counted.warnings:
        parts.append("\n".join(f"- Note: {warning}" for warning in counted.warnings))
    return "\n\n".join(parts) + "\n"


def write_statistics(counted: Statistics, folder: str | Path, name: str = "statistics") -> list[Path]:
    """Write `name`.md, .json and .png into a folder; return their paths."""
    folder = Path(folder)
    table = write_text(folder / f"{name}.md", statistics_table(counted))
    figures = write_json(folder / f"{name}.json", dataclasses.asdict(counted))
    plot_statistics(counted, folder / f"{name}.png")
    return [table, figures, folder / f"{name}.png"]


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def plot_statistics(counted: Statistics, path: str | Path | IO[bytes]) -> None:
    """Write the picture as a PNG file."""
    types = counted.types[:MAX_TYPES]
    figure = blank_figure(13.0, 3.2 + 0.2 * max(len(types), 6))
    bars, lengths, coverage = figure.subplots(1, 3, width_ratios=[5, 4, 3])
    _plot_types(counted, types, bars)
    _plot_lengths(counted, lengths)
    _plot_coverage(counted, coverage)
    for axes in (bars, lengths, coverage):
        plain_axes(axes, "x" if axes is bars else "y")
    figure.legend(*lengths.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save_figure(figure, path)


def _plot_types(counted: Statistics, types: tuple[str, ...], axes: Axes) -> None:
    left = np.zeros(len(types))
    for colour, split in zip(COLOURS, counted.splits.values(), strict=False):
        values = np.array([split.entities[kind] for kind in types], dtype=float)
        axes.barh(np.arange(len(types)), values, left=left, color=colour, height=0.7)
        left += values
    names = [kind if len(kind) <= 32 else f"{kind[:17]}…{kind[-14:]}" for kind in types]
    axes.set_yticks(np.arange(len(types)), names, fontsize="small")
    axes.invert_yaxis()
    shown = (
        "type" if len(types) == len(counted.types) else f"the {len(types)} most frequent of {len(counted.types)} types"
    )
    axes.set(title=f"Entities by {shown}", xlabel="entities")
    for place, total in enumerate(left):
        axes.annotate(f" {total:,.0f}", (total, place), va="center", fontsize="small")
    axes.margins(x=0.15)


def _plot_lengths(counted: Statistics, axes: Axes) -> None:
    for colour, (name, split) in zip(COLOURS, counted.splits.items(), strict=False):
        shares = 100 * np.array(split.length_histogram) / split.sentences
        label = f"{name} ({split.sentences:,})"
        axes.stairs(shares, np.arange(0, 201, 10), color=colour, linewidth=1.5, label=label)
    longest = max(max(np.flatnonzero(split.length_histogram)) for split in counted.splits.values())
    more = " (the last step: 190 and more)" if longest == 19 else ""
    axes.set(title="Words of a sentence", xlabel=f"words{more}", ylabel="sentences (%)")
    axes.set_xlim(0, 10 * (longest + 1))


def _plot_coverage(counted: Statistics, axes: Axes) -> None:
    splits = list(counted.splits.values())
    width = 0.8 / len(splits)
    for index, (colour, split) in enumerate(zip(COLOURS, splits, strict=False)):
        places = np.arange(2) + (index - (len(splits) - 1) / 2) * width
        shares = [100 * split.sentence_coverage, 100 * split.token_coverage]
        axes.bar_label(axes.bar(places, shares, width=0.92 * width, color=colour), fmt="%.1f", fontsize="small")
    axes.set_xticks([0, 1], ["sentences\nwith entities", "words\ninside entities"])
    axes.set(title="Entity coverage", ylabel="share (%)")
