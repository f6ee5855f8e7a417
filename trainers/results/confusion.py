"""What a model takes for what: by word and label, by entity and type, as pictures; and samples with their predictions.

Legend: L labels, K types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from trainers.data.images.decode import decode
from trainers.data.tokens.bio import entity_types, find_entities
from trainers.finished import FinishedRun
from trainers.run_folder import Run, read_predictions
from trainers.show import RIGHT, WRONG, blank_figure, save_figure

if TYPE_CHECKING:
    from PIL.Image import Image

NO_ENTITY = "(no entity)"


def word_confusion(gold: list[np.ndarray], predicted: list[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """(L, L) words: a row for each true label, a column for each predicted one."""
    pairs = np.concatenate(gold).astype(np.int64) * len(labels) + np.concatenate(predicted)  # gold is saved in 16 bits
    return np.bincount(pairs, minlength=len(labels) ** 2).reshape(len(labels), -1)


def entity_confusion(gold: list[list[str]], predicted: list[list[str]], types: Sequence[str]) -> np.ndarray:
    """(K + 1, K + 1) entities: a row for each true type, a column for each predicted one; last those without.

    Entities meet when their first and last word agree. A true one that meets none was taken for none; a predicted one
    that meets none was taken from none. Entities are read as in the lenient scores of `ner_metrics`.
    """
    place = {name: index for index, name in enumerate(types)}
    matrix = np.zeros((len(types) + 1, len(types) + 1), dtype=np.int64)
    for gold_tags, predicted_tags in zip(gold, predicted, strict=True):
        true, guessed = (
            {(start, end): place[kind] for kind, start, end in find_entities(tags, strict=False)}
            for tags in (gold_tags, predicted_tags)
        )
        for span in true.keys() | guessed.keys():
            matrix[true.get(span, len(types)), guessed.get(span, len(types))] += 1
    return matrix


def write_confusion(runs: Sequence[Run], folder: str | Path, split: str = "test") -> list[Path]:
    """Write confusion_words.png and confusion_entities.png of finished runs side by side; return their paths.

    Raises:
        ValueError: the runs have different labels, or one has no predictions for the split.
    """

    labels = list(runs[0].result["labels"])
    for run in runs[1:]:
        if list(run.result["labels"]) != labels:
            raise ValueError(f"{runs[0].folder} has the labels {labels} but {run.folder} has {run.result['labels']}.")
    types = entity_types(labels)
    words, entities = {}, {}
    for run in runs:
        predicted, gold = read_predictions(run.folder, split)
        words[run.name] = word_confusion(gold, predicted, labels).tolist()
        names = [[[labels[index] for index in sentence] for sentence in ids] for ids in (gold, predicted)]
        entities[run.name] = entity_confusion(names[0], names[1], types).tolist()
    paths = [Path(folder) / "confusion_words.png", Path(folder) / "confusion_entities.png"]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    confusion_picture(words, labels, paths[0])
    confusion_picture(entities, [*types, NO_ENTITY], paths[1])
    return paths


MAX_NUMBERED = 12
"""Most labels for which the counts are written into the matrix."""


def confusion_picture(
    matrices: Mapping[str, Sequence[Sequence[int]]], labels: Sequence[str], path: str | Path | BinaryIO
) -> None:
    """Write confusion matrices, under their names, side by side as a PNG.

    Rows are true labels, shades the share of the row.

    """
    columns = min(3, len(matrices))
    lines = -(-len(matrices) // columns)
    side = min(2.2 + 0.35 * len(labels), 9.0)
    figure = blank_figure(side * columns + 0.8, side * lines + 0.8)
    panels = np.atleast_1d(figure.subplots(lines, columns, squeeze=False).ravel())
    for panel in panels[len(matrices) :]:
        panel.set_axis_off()
    for panel, (title, matrix) in zip(panels, matrices.items(), strict=False):
        counts = np.asarray(matrix)  # (L, L)
        shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
        panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        panel.set_title(title, fontsize=10)
        panel.set(xlabel="predicted", ylabel="true")
        if len(labels) <= 3 * MAX_NUMBERED:
            names = [_shortened(label) for label in labels]
            slanted = max(map(len, names)) > 4
            panel.set_xticks(
                range(len(names)), names, rotation=40 if slanted else 0, ha="right" if slanted else "center"
            )
            panel.set_yticks(range(len(names)), names)
        if len(labels) <= MAX_NUMBERED:
            for (row, column), count in np.ndenumerate(counts):
                colour = "white" if shares[row, column] > 0.6 else "black"
                panel.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=9)
    save_figure(figure, path)


def samples_picture(
    images: Sequence[Image], gold: Sequence[str], predicted: Sequence[str], path: str | Path, title: str = ""
) -> None:
    """Write pictures in rows of six as a PNG, each under its predicted label, and its true one where they differ."""
    columns = min(6, len(images))
    lines = -(-len(images) // columns)
    figure = blank_figure(1.7 * columns, 2.1 * lines + 0.4)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    for panel, image, true, guess in zip(panels, images, gold, predicted, strict=False):
        panel.imshow(image, cmap="gray", vmin=0, vmax=255)
        right = true == guess
        text = _shortened(guess) if right else f"{_shortened(guess)}\n(true: {_shortened(true)})"
        panel.set_title(text, color=RIGHT if right else WRONG, fontsize=9)
    figure.suptitle(title)
    save_figure(figure, path)


def samples_of_run(folder: str | Path, path: str | Path, split: str = "test") -> None:
    """Write `samples_picture` for a finished run of image classification.

    Raises:
        ValueError: the run is not finished, has no predictions for the split, or its data has changed since.
    """
    run = FinishedRun.open(folder)
    labels, dataset = run.labels, run.examples(split)
    predicted, gold = map(np.concatenate, run.predictions(split))
    chosen = choose_samples(gold, predicted)
    images = [decode(dataset.images[index]) for index in chosen]
    samples_picture(
        images,
        [labels[index] for index in gold[chosen]],
        [labels[index] for index in predicted[chosen]],
        path,
        title=f"{len(gold):,} pictures of the {split} split, {np.mean(gold == predicted):.1%} right; "
        "wrong ones are shown more often",
    )


def choose_samples(gold: np.ndarray, predicted: np.ndarray, count: int = 12, seed: int = 0) -> np.ndarray:
    """Indices of examples to show: at random, but up to half of them wrong predictions, which are put last."""
    random = np.random.default_rng(seed)
    right, wrong = (random.permutation(np.flatnonzero(kind)) for kind in (gold == predicted, gold != predicted))
    shown_wrong = wrong[: max(count // 2, count - len(right))]
    return np.concatenate([right[: count - len(shown_wrong)], shown_wrong])


def _shortened(name: str) -> str:
    """A name that fits, by its two ends: labels of one set often begin alike."""
    return name if len(name) <= 24 else f"{name[:12]}…{name[-11:]}"
