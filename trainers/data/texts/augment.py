"""Random changes of training texts, a function of (seed, epoch, example) alone, so that a run can resume.

Easy data augmentation: Wei and Zou 2019 (https://arxiv.org/abs/1901.11196). Their random swap, deletion and insertion
are here; their replacement by synonyms needs a dictionary and is not. For the same reason an inserted word is another
word of the same text instead of a synonym of one. All three only move, drop or repeat whole words, so a text need not
be tokenised again: its tokens are.

Shapes: T tokens and W words of one text. A word is what the tokenizer splits a text into first: a punctuation mark
is one for BERT.
"""

from dataclasses import dataclass

import numpy as np

CHANGES = ("none", "swap", "delete", "insert")
"""What can happen to a text, with equal chances. The paper trains on the originals beside the changed texts; so here
one text in four stays as it is."""


@dataclass(frozen=True)
class WordAugmentation:
    """What the setting text_augment=eda does to a training text."""

    share: float
    """Share of a text's words that change, one word at least."""
    seed: int
    """The run's seed."""
    max_length: int
    """Most tokens of a text, special tokens included; insertions that would exceed it are left out."""

    def __call__(self, ids: np.ndarray, words: np.ndarray, epoch: int, index: int) -> np.ndarray:
        """The tokens of a text with some of its words swapped, deleted, or inserted a second time.

        Args:
            ids: (T,) tokens; the special tokens around the text stay where they are.
            words: (T,) number of each token's word, rising, and -1 for special tokens.
            epoch: the training epoch, from 0.
            index: the text's number in its data set.
        """
        random = np.random.default_rng((self.seed, epoch, index))
        (inside,) = np.nonzero(words >= 0)
        if not len(inside):
            return ids
        begin, end = inside[0], inside[-1] + 1
        pieces = np.split(ids[begin:end], np.flatnonzero(np.diff(words[begin:end])) + 1)  # W arrays
        order = changed(len(pieces), self.share, CHANGES[random.integers(len(CHANGES))], random)
        lengths = np.array([len(piece) for piece in pieces])
        order = _without_excess(order, lengths, self.max_length - (len(ids) - (end - begin)))
        return np.concatenate([ids[:begin], *(pieces[word] for word in order), ids[end:]])


def changed(size: int, share: float, change: str, random: np.random.Generator) -> list[int]:
    """The words 0 to ``size`` - 1 in their new order. A text of one word stays as it is."""
    order = list(range(size))
    if size < 2 or change == "none":
        return order
    times = max(1, round(share * size))
    if change == "swap":
        for _ in range(times):
            one, other = random.choice(size, 2, replace=False)
            order[one], order[other] = order[other], order[one]
    elif change == "delete":
        gone = set(random.choice(size, min(times, size - 1), replace=False).tolist())
        order = [word for word in order if word not in gone]
    else:
        for word in random.integers(size, size=times).tolist():
            order.insert(int(random.integers(len(order) + 1)), word)
    return order


def _without_excess(order: list[int], lengths: np.ndarray, limit: int) -> list[int]:
    """The order without those repeated words, the last first, that take it beyond ``limit`` tokens."""
    excess = int(lengths[order].sum()) - limit
    for place in reversed(range(len(order))):
        if excess > 0 and order[place] in order[:place]:
            excess -= int(lengths[order.pop(place)])
    return order
