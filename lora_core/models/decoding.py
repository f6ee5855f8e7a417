"""What becomes of logits, in numpy, since serving needs no torch: those that count, and under a CRF (crf.py) the best
sequences of labels and their probabilities.

Shapes: B texts, T tokens (padded), W chained positions of the longest chain, L labels.
"""

from typing import Any

import numpy as np


def split_scores(scores: Any) -> tuple[Any, Any, Any]:
    """CRFHead's output, a tensor or an array: emissions (B, T, L), start (B, L), transitions (B, L, L)."""
    tokens = scores.shape[1] - 1 - scores.shape[2]
    return scores[:, :tokens], scores[:, tokens], scores[:, tokens + 1 :]


def viterbi(emissions: np.ndarray, start: np.ndarray, transitions: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The best sequence of each text, (B, T) int64: label ids where `mask` is True, 0 elsewhere.

    `emissions` (B, T, L), `start` (L,) and `transitions` (L, L) from row to column, or one of each for every text.
    """
    chained, inside = _chained(emissions, mask)
    path = np.zeros(mask.shape, dtype=np.int64)
    if not inside.shape[1]:
        return path
    best = start + chained[:, 0]  # (B, L)
    origins = []
    stay = np.broadcast_to(np.arange(best.shape[1]), best.shape)
    for place in range(1, inside.shape[1]):
        longer = best[:, :, None] + transitions  # (B, L, L)
        here = inside[:, place, None]
        origins.append(np.where(here, longer.argmax(1), stay))
        best = np.where(here, longer.max(1) + chained[:, place], best)
    label = best.argmax(1)  # (B,)
    labels = [label]
    for origin in reversed(origins):
        label = np.take_along_axis(origin, label[:, None], 1)[:, 0]
        labels.append(label)
    path[mask] = np.stack(labels[::-1], 1)[inside]  # both run row by row, in order
    return path


def marginals(emissions: np.ndarray, start: np.ndarray, transitions: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Probability of every label at every position, (B, T, L), 0 where `mask` is False: by the forward and the backward
    algorithm.

    `emissions` (B, T, L), `start` (L,) and `transitions` (L, L) from row to column, or one of each for every text.
    """
    chained, inside = _chained(emissions, mask)
    found = np.zeros_like(emissions)
    if not inside.shape[1]:
        return found
    ahead = [start + chained[:, 0]]
    for place in range(1, inside.shape[1]):
        ahead.append(_logsumexp(ahead[-1][:, :, None] + transitions, 1) + chained[:, place])
    behind = [np.zeros_like(ahead[0])]
    for place in range(inside.shape[1] - 1, 0, -1):
        longer = _logsumexp(transitions + (chained[:, place] + behind[-1])[:, None], 2)
        behind.append(np.where(inside[:, place, None], longer, behind[-1]))
    found[mask] = softmax(np.stack(ahead, 1) + np.stack(behind[::-1], 1))[inside]
    return found


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, in the type of the scores, rounded once."""
    powers = np.exp(np.subtract(scores, scores.max(-1, keepdims=True), dtype=np.float64))
    return (powers / powers.sum(-1, keepdims=True)).astype(scores.dtype)


def _logsumexp(values: np.ndarray, axis: int) -> np.ndarray:
    largest = values.max(axis, keepdims=True)
    return np.log(np.exp(values - largest).sum(axis)) + largest.squeeze(axis)


def _chained(emissions: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Emissions (B, W, L) and mask (B, W) of the masked positions, moved to the front; 0 behind."""
    width = int(mask.sum(1).max()) if mask.size else 0
    order = np.argsort(~mask, axis=1, kind="stable")[:, :width]  # (B, W)
    return np.take_along_axis(emissions, order[..., None], 1), np.take_along_axis(mask, order, 1)


def real_logits(logits: np.ndarray, attention_mask: np.ndarray | None) -> np.ndarray:
    """The logits, (B, L) or (B, T or more, L), that are not of padding: (N, L). Rows behind the T tokens are those of a
    CRF's transitions; of a text that is all padding none count."""
    if attention_mask is None:
        return logits
    mask = attention_mask != 0  # (B, T)
    if logits.ndim == 2:
        return logits[mask.any(axis=1)]
    behind = np.repeat(mask.any(axis=1)[:, None], logits.shape[1] - mask.shape[1], axis=1)
    return logits[np.concatenate([mask, behind], axis=1)]
