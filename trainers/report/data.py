"""What the data of a run holds, split by split: the counts of `lora-core check-data`, and what it warns of."""

from typing import IO, Any

import numpy as np

from trainers.corpus.statistics import Statistics, plot_statistics, statistics
from trainers.corpus.texts import TextStatistics, count_texts, plot_texts
from trainers.data.reading import Reading
from trainers.data.rows import BadRows
from trainers.data.tokens.files import find_tagged_source
from trainers.data.tokens.scan import scan
from trainers.report.evidence import Evidence
from trainers.report.section import Picture, Section, Table

TITLE = "The data"
NUMBER = ",.10g"
"""Counts in full, and shares as they are rounded."""


def section(evidence: Evidence) -> Section:
    """Counts of each split, a picture of them, and warnings."""
    config = evidence.run.config
    if not config.data:
        return Section("data", TITLE, missing="The data was given in memory, so it cannot be counted again.")
    try:
        if evidence.is_images:
            return _images(evidence)
        if evidence.is_tokens:
            source = find_tagged_source(config.data, "", Reading.of(config))
            return _sentences(statistics(scan(source, BadRows("skip"))))
        return _texts(count_texts(evidence.run.datasets))
    except (ValueError, OSError) as error:
        return Section("data", TITLE, missing=f"The data cannot be counted. {error}")


def _sentences(counted: Statistics) -> Section:
    splits = counted.splits
    rows = [
        ("sentences", *(split.sentences for split in splits.values())),
        ("with entities, %", *(round(100 * split.sentence_coverage, 2) for split in splits.values())),
        ("words", *(split.tokens for split in splits.values())),
        ("inside entities, %", *(round(100 * split.token_coverage, 2) for split in splits.values())),
        ("entities", *(sum(split.entities.values()) for split in splits.values())),
        ("words a sentence, median", *(split.lengths["median"] for split in splits.values())),
        ("longest, words", *(split.lengths["max"] for split in splits.values())),
        ("repeated sentences", *(split.repeated for split in splits.values())),
        ("also in train", *(None if name == "train" else split.seen_in_train for name, split in splits.items())),
    ]
    types = [(kind, *(split.entities[kind] for split in splits.values())) for kind in counted.types]
    tables = _tables(splits, rows, "entities of each type", types)

    def draw(file: IO[bytes]) -> None:
        plot_statistics(counted, file)

    alt = "Entities by type, words of a sentence, and the share of sentences and words with entities, by split."
    return _section(tables, draw, alt, counted.warnings)


def _texts(counted: TextStatistics) -> Section:
    splits = counted.splits
    rows = [
        ("texts", *(split.texts for split in splits.values())),
        ("words a text, median", *(split.words["median"] for split in splits.values())),
        ("longest, words", *(split.words["max"] for split in splits.values())),
        ("repeated texts", *(split.repeated for split in splits.values())),
        ("also in train", *(None if name == "train" else split.seen_in_train for name, split in splits.items())),
    ]
    labels = [(label, *(split.labels[label] for split in splits.values())) for label in counted.labels]
    tables = _tables(splits, rows, "texts of each label", labels)

    def draw(file: IO[bytes]) -> None:
        plot_texts(counted, file)

    return _section(tables, draw, "Texts by label, and words of a text, by split.", counted.warnings)


def _images(evidence: Evidence) -> Section:
    datasets = evidence.run.datasets
    counts = {name: np.bincount(data.targets, minlength=len(data.labels)) for name, data in datasets.items()}
    labels = next(iter(datasets.values())).labels
    rows = [("images", *(int(count.sum()) for count in counts.values()))]
    of_label = [(label, *(int(count[place]) for count in counts.values())) for place, label in enumerate(labels)]
    note = "lora-core check-data DATA --task image-classification also looks at sizes, and at images that stand twice."
    return Section("data", TITLE, note, _tables(counts, rows, "images of each class", of_label))


def _tables(splits: Any, rows: list[tuple[Any, ...]], title: str, by_label: list[tuple[Any, ...]]) -> list[Table]:
    forms = ("", *[NUMBER] * len(splits))
    tables = [Table("data-splits", ("", *splits), rows, forms)]
    if by_label:
        tables.append(Table("data-labels", (title, *splits), by_label, ("", *[",d"] * len(splits))))
    return tables


def _section(tables: list[Table], draw: Any, alt: str, warnings: tuple[str, ...]) -> Section:
    picture = Picture(Table("data-picture", tables[-1].header, tables[-1].rows), alt, draw, wide=True)
    noted = [Table("data-warnings", ("what may spoil an experiment",), [(warning,) for warning in warnings])]
    return Section("data", TITLE, "", (*tables, picture, *(noted if warnings else [])))
