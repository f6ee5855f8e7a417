"""Is the difference between two runs more than chance? Paired tests on the same test examples.

The bootstrap interval: Efron and Tibshirani 1993, chapter 13; for F1, Berg-Kirkpatrick et al. 2012
(https://aclanthology.org/D12-1091). McNemar's test in its exact form: McNemar 1947, Psychometrika 12. Both see the
chance in the choice of test examples, not that of the seed: a claim needs several seeds as well.

Shapes: N examples (sentences, texts or images), K entity types or labels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainers.config import RESUME_MAY_CHANGE
from trainers.data.tokens.bio import find_entities
from trainers.run_folder import Run, read_predictions
from trainers.show import markdown_table

# DOC """Runs that differ in nothing but their seed, taken together: is a difference of F1 more than
# the chance of a seed?
#
# The interval is Welch's (1947, Biometrika 34): two means of independent runs, whose variances may differ. It knows the
# chance of the seed and not that of the test examples; `significance.py` knows the latter.
# """

SAMPLES = 2000


@dataclass(frozen=True)
class Difference:
    """A run against the baseline, on the same examples."""

    f1_low: float
    """Lower end of the 95% interval of the difference of F1, in points."""
    f1_high: float
    """Upper end."""
    only_this_right: int
    """Examples (whole sentences, for entities) that only this run has right."""
    only_baseline_right: int
    """Examples that only the baseline has right."""
    p: float
    """McNemar's exact two-sided p of these two numbers: how likely so uneven a split is if both are equally good."""


def compare_predictions(run: Run, baseline: Run, split: str) -> Difference:
    """The difference between two runs' saved predictions.

    Raises:
        ValueError: a run has no predictions of the split, or they are not for the same examples.
    """
    (predicted, gold), (other, other_gold) = (read_predictions(one.folder, split) for one in (run, baseline))
    if len(gold) != len(other_gold) or not all(map(np.array_equal, gold, other_gold)):
        raise ValueError(f"{run.folder} and {baseline.folder} predicted other examples of the {split} split.")
    entities = run.config.get("task", "token-classification") == "token-classification"
    return difference(predicted, other, gold, run.result["labels"], entities=entities)


def difference(
    predicted: list[np.ndarray], other: list[np.ndarray], gold: list[np.ndarray], labels: Sequence[str], *,
    entities: bool,
) -> Difference:  # fmt: skip
    """The difference between two predictions of the same N examples, label ids of each: entity F1, or macro F1."""
    count = entity_counts if entities else label_counts
    low, high = bootstrap_interval(count(predicted, gold, labels), count(other, gold, labels), macro=not entities)
    right, other_right = (np.array(list(map(np.array_equal, one, gold)), dtype=bool) for one in (predicted, other))
    only, only_other = int((right & ~other_right).sum()), int((other_right & ~right).sum())
    return Difference(100 * low, 100 * high, only, only_other, mcnemar(only, only_other))


def bootstrap_interval(
    one: np.ndarray, other: np.ndarray, *, macro: bool, samples: int = SAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95% percentile interval of F1(one) - F1(other) when the N examples are drawn anew with replacement.

    Args:
        one, other: counts (N, K, 3) of right, predicted and true items in each example.
        macro: the mean of the K F1 scores (of those that occur) instead of F1 over all items.
    """
    generator = np.random.default_rng(seed)
    size = len(one)
    differences = []
    for _ in range(samples):
        drawn = np.bincount(generator.integers(size, size=size), minlength=size)  # (N,) times each example is drawn
        sums = [np.tensordot(drawn, counts, 1) for counts in (one, other)]  # (K, 3)
        differences.append(f1_score(sums[0], macro=macro) - f1_score(sums[1], macro=macro))
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


def f1_score(counts: np.ndarray, *, macro: bool) -> float:
    """F1 of counts (K, 3) of right, predicted and true items: over all, or the mean over those K that occur."""
    if not macro:
        counts = counts.sum(0, keepdims=True)
    occurs = counts[:, 1] + counts[:, 2] > 0
    f1 = 2 * counts[:, 0] / np.maximum(1, counts[:, 1] + counts[:, 2])
    return float(f1[occurs].mean()) if occurs.any() else 0.0


def mcnemar(only_one: int, only_other: int) -> float:
    """Exact two-sided p: the binomial chance of a split at least as uneven, were both sides equally likely."""
    discordant, fewer = only_one + only_other, min(only_one, only_other)
    tail = sum(math.comb(discordant, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**discordant)  # integers of any size: their quotient is exact


def entity_counts(predicted: list[np.ndarray], gold: list[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """(N, 1, 3) right, predicted and true entities of each sentence, as the lenient F1 counts them."""
    counts = np.zeros((len(gold), 1, 3), dtype=np.int64)
    for index, (guess, truth) in enumerate(zip(predicted, gold, strict=True)):
        found, real = (find_entities([labels[int(tag)] for tag in tags], strict=False) for tags in (guess, truth))
        counts[index, 0] = len(found & real), len(found), len(real)
    return counts


def label_counts(predicted: list[np.ndarray], gold: list[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """(N, L, 3) right, predicted and true examples of each label: ones and zeros."""
    guess, truth = (np.concatenate(ids)[:, None] == np.arange(len(labels)) for ids in (predicted, gold))  # (N, L)
    return np.stack((guess & truth, guess, truth), axis=2).astype(np.int64)


FREE = {"seed", *RESUME_MAY_CHANGE}
"""Settings in which runs of one group may differ."""
LEVEL = 0.95


@dataclass(frozen=True)
class SeedGroup:
    """Two or more runs with the same settings. Scores are from 0 to 1."""

    names: tuple[str, ...]
    """The runs' names in the comparison."""
    f1: float
    """Mean."""
    deviation: float
    """Standard deviation over the runs."""
    interval: tuple[float, float] | None
    """95% interval of the mean F1 minus that of the first group, in points; None for that group."""


def seed_groups(runs: Sequence[Run], names: Sequence[str], f1: Sequence[float], baseline: int) -> list[SeedGroup]:
    """The groups of runs, that of `runs[baseline]` first; none unless it and another have two runs or more."""
    settings = [{name: value for name, value in run.config.items() if name not in FREE} for run in runs]
    groups: list[list[int]] = []
    for number in sorted(range(len(runs)), key=lambda number: number != baseline):
        own = next((group for group in groups if settings[group[0]] == settings[number]), None)
        if own is None:
            groups.append([number])
        else:
            own.append(number)
    several = [sorted(group) for group in groups if len(group) > 1]
    if len(several) < 2 or baseline not in several[0]:
        return []
    scores = [np.array([f1[number] for number in group]) for group in several]
    return [
        SeedGroup(tuple(names[number] for number in group), float(own.mean()), float(own.std(ddof=1)),
                  None if position == 0 else welch_interval(100 * own, 100 * scores[0]))
        for position, (group, own) in enumerate(zip(several, scores, strict=True))
    ]  # fmt: skip


def welch_interval(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """95% interval of mean(one) - mean(other), of two or more independent values each."""
    from scipy.stats import t

    difference = float(one.mean() - other.mean())
    parts = [float(values.var(ddof=1)) / len(values) for values in (one, other)]
    if not sum(parts):
        return difference, difference
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(one) - 1) + parts[1] ** 2 / (len(other) - 1))
    half_width = float(t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(sum(parts))
    return difference - half_width, difference + half_width


def seeds_table(groups: Sequence[SeedGroup]) -> str:
    """A Markdown table; F1 in percent."""
    rows = []
    for group in groups:
        difference = "baseline" if group.interval is None else f"{100 * (group.f1 - groups[0].f1):+.2f}"
        interval = "" if group.interval is None else "{:+.2f} to {:+.2f}".format(*group.interval)
        f1 = [f"{100 * value:.2f}" for value in (group.f1, group.deviation)]
        rows.append([", ".join(group.names), *f1, difference, interval])
    table = markdown_table(["runs with the same settings", "mean F1", "deviation", "difference", "95% interval"], rows)
    return f"{table}\n\nInterval: Welch's, over the seeds.\n"
