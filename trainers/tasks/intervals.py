"""F1 from counts, and how sure it is: the bootstrap over examples (Efron and Tibshirani 1993, chapter 13).

Shapes: N examples (sentences, texts or images), K entity types or labels.
"""

import numpy as np

SAMPLES = 1000
"""Of the bootstrap."""


def f1_score(counts: np.ndarray, *, macro: bool) -> float:
    """F1 of counts (K, 3) of right, predicted and true items: over all, or the mean over those K that occur."""
    if not macro:
        counts = counts.sum(0, keepdims=True)
    occurs = counts[:, 1] + counts[:, 2] > 0
    f1 = 2 * counts[:, 0] / np.maximum(1, counts[:, 1] + counts[:, 2])
    return float(f1[occurs].mean()) if occurs.any() else 0.0


def f1_interval(counts: np.ndarray, *, samples: int = SAMPLES, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of F1 when the N examples are drawn anew with replacement.

    Args:
        counts: (N, K, 3) of right, predicted and true items in each example. With K above 1, F1 is the mean over them.
    """
    generator = np.random.default_rng(seed)
    size, macro = len(counts), counts.shape[1] > 1
    scores = []
    for _ in range(samples):
        drawn = np.bincount(generator.integers(size, size=size), minlength=size)  # (N,) times each example is drawn
        scores.append(f1_score(np.tensordot(drawn, counts, 1), macro=macro))
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)
