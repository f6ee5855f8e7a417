"""A few training examples as the model will see them: pieces with their labels, windows, pixels."""

from pathlib import Path
from typing import Any

import numpy as np

from trainers.config import RunConfig
from trainers.data.images.batches import ImageBatches
from trainers.data.texts.encode import EncodedTexts
from trainers.data.tokenizer import load_tokenizer
from trainers.data.tokens.bio import OUTSIDE
from trainers.data.tokens.windows import IGNORED_LABEL, TokenWindows
from trainers.model import tokenizer_folder
from trainers.show import table_width

SHOWN = 3
"""Examples."""
MOST_PIECES = 60
"""Pieces that are shown of one input."""
UNPREDICTED = "·"
"""In the place of the label where there is none to predict: special tokens, the pieces of a word after its first."""


def preview(config: RunConfig, labels: tuple[str, ...], data: Any) -> str:
    """Some training examples as the model will see them: the first, one with an entity, the longest.

    Args:
        config: the settings, with what the data decides.
        labels: label names in the order of their ids.
        data: the training split as the model takes it.
    """
    if isinstance(data, ImageBatches):
        return "\n\n".join(_picture(data, index, labels) for index in range(min(SHOWN, len(data.lengths))))
    tokenizer = load_tokenizer(tokenizer_folder(config))
    if isinstance(data, TokenWindows):
        return "\n\n".join(_sentence(data, index, labels, tokenizer) for index in _chosen_sentences(data, labels))
    if isinstance(data, EncodedTexts):
        chosen = dict.fromkeys([0, 1, int(data.lengths.argmax())])
        return "\n\n".join(_text(data, index, labels, tokenizer) for index in chosen if index < len(data))
    return "Examples of this kind of data are not shown."


def _chosen_sentences(data: TokenWindows, labels: tuple[str, ...]) -> list[int]:
    """The first sentence, the first with an entity that is not the first, and the longest."""
    outside = labels.index(OUTSIDE) if OUTSIDE in labels else -1
    inside = np.flatnonzero((data.labels != IGNORED_LABEL) & (data.labels != outside))
    with_entities = np.unique(data.sentence[np.searchsorted(data.offsets, inside, side="right") - 1])
    words = np.bincount(data.sentence, weights=data.label_counts)
    chosen = [0, *(int(one) for one in with_entities[with_entities > 0][:1]), int(words.argmax())]
    return list(dict.fromkeys(chosen))


def _sentence(data: TokenWindows, index: int, labels: tuple[str, ...], tokenizer: Any) -> str:
    (windows,) = np.nonzero(data.sentence == index)
    lengths = [int(data.lengths[window]) for window in windows]
    cut = "" if len(windows) == 1 else " Each word is predicted in one of them."
    words = int(data.label_counts[windows].sum())
    head = f"sentence {index + 1}: {words} words, {_windows(lengths)}.{cut}"
    return "\n".join([head, *(_window(data, window, labels, tokenizer) for window in windows[:SHOWN])])


def _windows(lengths: list[int]) -> str:
    listed = ", ".join(str(length) for length in lengths)
    return f"{len(lengths)} window{'s' if len(lengths) > 1 else ''} of {listed} pieces"


def _window(data: TokenWindows, window: int, labels: tuple[str, ...], tokenizer: Any) -> str:
    """The pieces of a window, their labels below them."""
    own = slice(data.offsets[window], min(data.offsets[window + 1], data.offsets[window] + MOST_PIECES))
    pieces = [tokenizer.id_to_token(int(piece)) or "?" for piece in data.input_ids[own]]
    given = [UNPREDICTED if label == IGNORED_LABEL else labels[label] for label in data.labels[own]]
    more = int(data.lengths[window]) - len(pieces)
    return _aligned(pieces, given) + (f"\n  ... and {more} more pieces" if more > 0 else "")


def _aligned(above: list[str], below: list[str]) -> str:
    """Two rows of words that stand under each other, over as many lines as it takes."""
    lines: list[tuple[str, str]] = [("", "")]
    for one, other in zip(above, below, strict=True):
        width = max(len(one), len(other))
        if lines[-1][0] and 3 + len(lines[-1][0]) + width > table_width():
            lines.append(("", ""))
        lines[-1] = (f"{lines[-1][0]} {one.ljust(width)}", f"{lines[-1][1]} {other.ljust(width)}")
    return "\n".join(f" {line.rstrip()}" for pair in lines for line in pair)


def _text(data: EncodedTexts, index: int, labels: tuple[str, ...], tokenizer: Any) -> str:
    """The pieces of a text or a pair, and its label."""
    ids = data.input_ids[data.offsets[index] : data.offsets[index + 1]]
    lengths = [len(ids)] if data.cutter is None else [len(row) for row in data.cutter(ids)]
    pieces = [tokenizer.id_to_token(int(piece)) or "?" for piece in ids[:MOST_PIECES]]
    more = f" ... and {len(ids) - len(pieces)} more" if len(ids) > len(pieces) else ""
    lines, width = [""], table_width()
    for piece in pieces:
        if len(lines[-1]) + len(piece) + 3 > width:
            lines.append("")
        lines[-1] += f" {piece}"
    head = f"text {index + 1}: {_windows(lengths)}; label: {_label(data.targets[index], labels)}"
    return "\n".join([head, *(f" {line}" for line in lines)]) + more


def _label(target: Any, labels: tuple[str, ...]) -> str:
    """A target in words: a label, several, or a number."""
    target = np.asarray(target)
    if target.ndim:
        return ", ".join(labels[label] for label in np.flatnonzero(target)) or "none"
    return f"{float(target):g}" if target.dtype.kind == "f" else labels[int(target)]


def _picture(data: ImageBatches, index: int, labels: tuple[str, ...]) -> str:
    """The size and the range of a picture as the model takes it, before random changes, and its label."""
    inputs, targets = data.collate(np.array([index]))
    pixels = inputs["pixel_values"][0]  # (C, H, W)
    channels, height, width = pixels.shape
    source = data.dataset.images[index]
    name = f"{source.parent.name}/{source.name}" if isinstance(source, Path) else f"picture {index + 1}"
    low, high = (data.processing.rescale_factor * value for value in (0, 255))
    span = [((value - mean) / std) for mean, std in zip(data.processing.mean, data.processing.std, strict=True)
            for value in (low, high)]  # fmt: skip
    return (
        f"{name}\n  {height} x {width} pixels, {channels} channels, from {pixels.min():.2f} to {pixels.max():.2f} "
        f"(black and white are {min(span):.2f} and {max(span):.2f}); label: {labels[int(targets[0])]}"
    )
