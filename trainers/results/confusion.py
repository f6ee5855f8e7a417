"""What a model takes for what: by word and label, by entity and type, as pictures; and samples with their predictions.

Legend: L labels, K types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

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


MAX_NUMBERED = 14
"""Most labels for which the numbers are written into the matrix."""
CELLS = ((4, 0.8, 10), (MAX_NUMBERED, 0.52, 10), (45, 0.24, 8), (10_000, 0.13, 6))
"""(Most labels, inches of a cell, points of the labels' names), the first that fits."""
LONGEST_NAME = 40
"""Characters of a label's name from which on its middle is left out."""
POINTS_WIDE = 0.6
"""Width of a letter, in its size: what room names need."""


def confusion_picture(
    matrices: Mapping[str, Sequence[Sequence[int]]],
    labels: Sequence[str],
    path: str | Path | IO[bytes],
    *,
    shading: Literal["shares", "counts"] = "shares",
) -> None:
    """Write confusion matrices, under their names, side by side as a PNG.

    Rows are true labels. Cells without examples are left blank. Colours are the shares of the rows; or the counts, on a
    logarithmic scale. What is no entity has no share: how many words are none is not counted in entities.
    """
    from matplotlib import colormaps, rcParams
    from matplotlib.colors import LogNorm, Normalize, to_rgb

    names = [_shortened(label) for label in labels]
    cell, points = next((cell, points) for most, cell, points in CELLS if len(labels) <= most)
    side = max(cell * len(labels), 1.0)  # inches of a matrix
    name_room = max(map(len, names)) * POINTS_WIDE * points / 72 + 0.6
    columns = min(3, len(matrices))
    lines = -(-len(matrices) // columns)
    figure = blank_figure(columns * (side + name_room), lines * (side + name_room))
    figure.set_layout_engine("none")  # the file is cut to what is drawn, names outside of the matrices included
    width, height = figure.get_size_inches()
    on_light = _ink_on(to_rgb(rcParams["figure.facecolor"])) == "black"
    colours = colormaps["viridis_r" if on_light else "viridis"]  # what is much stands out against the ground
    most = max((np.max(matrix) for matrix in matrices.values()), default=1)
    for place, (title, matrix) in enumerate(matrices.items()):
        left, top = place % columns * (side + name_room), place // columns * (side + name_room)
        panel = figure.add_axes((left / width, 1 - (top + side) / height, side / width, side / height))
        counts = np.asarray(matrix)  # (L, L)
        shown = counts / np.maximum(1, counts.sum(1, keepdims=True)) if shading == "shares" else counts.astype(float)
        shown = np.ma.masked_equal(shown, 0)
        if shading == "shares" and labels[-1] == NO_ENTITY:
            shown[-1] = np.ma.masked
        scale = Normalize(0, 1) if shading == "shares" else LogNorm(1, max(most, 2))
        panel.imshow(shown, cmap=colours, norm=scale)
        panel.set_title(title, fontsize=10)
        panel.set(xlabel="predicted", ylabel="true")
        upright = len(labels) > MAX_NUMBERED or max(map(len, names)) > 4
        panel.set_xticks(range(len(names)), names, rotation=90 if upright else 0, fontsize=points)
        panel.set_yticks(range(len(names)), names, fontsize=points)
        panel.tick_params(length=2)
        if len(labels) <= MAX_NUMBERED:
            for (row, column), count in np.ndenumerate(counts):
                value = shown[row, column]
                if count == 0 or (shading == "shares" and value is np.ma.masked):
                    continue
                ink = _ink_on(colours(float(scale(value))))
                text = f"{100 * value:.0f}%" if shading == "shares" else _counted(int(count))
                panel.text(column, row, text, ha="center", va="center", color=ink, fontsize=9)
    save_figure(figure, path, tight=True)


def _ink_on(colour: tuple[float, ...]) -> str:
    """Black or white, whichever has more contrast (WCAG 2.1, relative luminance)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.179 else "white"


def _counted(count: int) -> str:
    """A count that fits into a cell."""
    return f"{count:,}" if count < 100_000 else f"{count / 1000:,.0f}k"


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
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[1 - LONGEST_NAME // 2 :]}"
