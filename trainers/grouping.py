"""Scores of pieces to labels of words, and labels of words to entities.

Legend: P pieces, W words, L labels.
"""

import re
from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np

from trainers.metrics import find_entities
from trainers.raw_text import Span

Strategy = Literal["first", "average", "max"]


class _Entity(TypedDict):
    entity_group: str
    """Its type, such as `protein`."""
    score: float
    """Mean over its words of the probability of their label, 0 to 1."""
    word: str
    """The text of the entity, as it was written."""
    start: int
    """`text[start:end]` is the entity; for a list of words, the text is the words with a space between."""
    end: int


class Entity(_Entity, total=False):
    """One entity, under the names that transformers' pipeline uses."""

    words: tuple[int, int]
    """For a list of words: (first word, one past the last) of the entity."""


def bio_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels in BIO, row by row, for a model that was trained with another scheme.

    In BIOES and BILOU, the last word (E-, L-) continues an entity and a single word (S-, U-) opens one. Labels
    without any scheme, such as `PER`, become `I-PER`: neighbours with the same label are one entity. `B` and `I` alone
    stay: they mark entities of the type `_`, as in the scores.
    """
    tagged = [re.fullmatch(r"[BI]|[BIESLU]-.+", label) for label in labels if label != "O"]
    if not all(tagged):
        return tuple(label if label == "O" else f"I-{label}" for label in labels)
    to_bio = {"B": "B", "S": "B", "U": "B", "I": "I", "E": "I", "L": "I"}
    return tuple(label if label in ("O", "B", "I") else f"{to_bio[label[0]]}-{label[2:]}" for label in labels)


def word_labels(scores: np.ndarray, counts: np.ndarray, strategy: Strategy) -> tuple[np.ndarray, np.ndarray]:
    """The label id (W,) of each word and its probability (W,), from those of its pieces.

    `scores` (P, L): probabilities of all pieces, word after word; `counts` (W,): pieces of each word, at least 1.
    `first` takes the word's first piece, on which the model was trained; `average` the mean over the pieces;
    `max` the piece with the highest probability of any label.
    """
    starts = np.cumsum(counts) - counts
    if strategy == "first":
        scores = scores[starts]
    elif strategy == "average" and len(starts):
        scores = np.add.reduceat(scores, starts) / counts[:, None]
    elif strategy == "max" and len(starts):
        best = scores.max(axis=1)  # (P,)
        is_best = best == np.repeat(np.maximum.reduceat(best, starts), counts)
        # The first of a word's best pieces: argmax of a boolean finds it, on the pieces sorted by word.
        pieces = np.flatnonzero(is_best)
        _, first = np.unique(np.repeat(np.arange(len(counts)), counts)[pieces], return_index=True)
        scores = scores[pieces[first]]
    ids = scores.argmax(axis=1)
    return ids, scores[np.arange(len(ids)), ids]


def find_spans(
    text: str, spans: Sequence[Span], tags: Sequence[str], scores: Sequence[float], *, strict: bool
) -> list[tuple[int, int, Entity]]:
    """The entities of one text in order, each with (first word, one past the last).

    `spans` are the places of its words, `tags` their BIO labels, `scores` the labels' probabilities. An `I-` that
    continues no entity of its type opens one; with `strict` (IOB2) it belongs to none.
    """
    found = []
    for kind, first, end in sorted(find_entities(tags, strict=strict), key=_first_word):
        start, stop = spans[first][0], spans[end - 1][1]
        score = sum(scores[first:end]) / (end - first)
        entity: Entity = {"entity_group": kind, "score": score, "word": text[start:stop], "start": start, "end": stop}
        found.append((first, end, entity))
    return found


def _first_word(entity: tuple[str, int, int]) -> int:
    return entity[1]
