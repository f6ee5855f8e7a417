"""Is the difference between two runs, or two ways of training, more than chance?

Of two runs: paired tests on the same test examples. The bootstrap interval: Efron and Tibshirani 1993, chapter 13; for
F1, Berg-Kirkpatrick et al. 2012 (https://aclanthology.org/D12-1091). McNemar's test in its exact form: McNemar 1947,
Psychometrika 12. Both see the chance in the choice of test examples, not that of the seed.

Of runs that differ in nothing but their seed, taken together: the t interval of a mean, and Welch's of a difference
(1947, Biometrika 34). They know the chance of the seed, not that of the test examples.

Shapes: N examples (sentences, texts or images), K entity types or labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainers.config import RESUME_MAY_CHANGE, RunConfig
from trainers.run_folder import Run, read_predictions
from trainers.tasks import kind_of
from trainers.tasks.intervals import f1_score
from trainers.tasks.label_scores import multi_label_counts

Counts = Callable[[list[np.ndarray], list[np.ndarray], Sequence[str]], np.ndarray]
"""From predicted and true label ids of each example, and the label names, to counts (N, K, 3)."""
LEVEL = 0.95
"""Of all intervals."""
SAMPLES = 2000
"""Of the bootstrap."""
FREE = {"seed", *RESUME_MAY_CHANGE}
"""Settings in which runs of one group may differ."""


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
    return difference(predicted, other, gold, run.result["labels"], counts_of_run(run))


def difference(
    predicted: list[np.ndarray], other: list[np.ndarray], gold: list[np.ndarray], labels: Sequence[str], counts: Counts
) -> Difference:
    """The difference between two predictions of the same N examples, label ids of each.

    Args:
        counts: what F1 is made of, (N, K, 3): `entity_counts` and `multi_label_counts` for that over all entities or
            labels, `label_counts` for the mean over the labels.
    """
    one, two = counts(predicted, gold, labels), counts(other, gold, labels)
    low, high = bootstrap_interval(one, two, macro=one.shape[1] > 1)
    right, other_right = (np.array(list(map(np.array_equal, ids, gold)), dtype=bool) for ids in (predicted, other))
    only, only_other = int((right & ~other_right).sum()), int((other_right & ~right).sum())
    return Difference(100 * low, 100 * high, only, only_other, mcnemar(only, only_other))


def counts_of_run(run: Run, score: Literal["f1", "accuracy"] = "f1") -> Counts:
    """What a run's score is made of; accuracy as an F1 of one kind, which it is where each item has one label.

    Raises:
        ValueError: it learned numbers, which have neither.
    """
    problem_type = run.result.get("problem_type")
    if problem_type == "regression":
        raise ValueError(
            f"{run.folder} did regression: it has no F1 to compare. Its scores are in {run.files.metrics}."
        )
    task = kind_of(run.config.get("task", RunConfig().task))
    if score == "accuracy":
        return right_examples if task.ONE_LABEL else right_words
    if problem_type == "multi_label_classification":
        return multi_label_counts
    return task.counts


def right_examples(predicted: list[np.ndarray], gold: list[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """(N, 1, 3): 1 if all of an example is right, else 0, and twice 1."""
    right = list(map(np.array_equal, predicted, gold))
    return np.stack([right, np.ones(len(gold)), np.ones(len(gold))], axis=1)[:, None].astype(np.int64)


def right_words(predicted: list[np.ndarray], gold: list[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """(N, 1, 3): how many of a sentence's words have their label, and twice how many there are."""
    right = [np.sum(guess == truth) for guess, truth in zip(predicted, gold, strict=True)]
    return np.stack([right, *[list(map(len, gold))] * 2], axis=1)[:, None].astype(np.int64)


def bootstrap_interval(
    one: np.ndarray, other: np.ndarray, *, macro: bool, samples: int = SAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95% percentile interval of F1(one) - F1(other) when the N examples are drawn anew with replacement.

    Args:
        one, other: counts (N, K, 3) of right, predicted and true items in each example.
        macro: the mean of the K F1 scores (of those that occur) instead of F1 over all items.
    """
    return mean_bootstrap_interval([one], [other], macro=macro, samples=samples, seed=seed)


def mean_bootstrap_interval(
    ones: Sequence[np.ndarray],
    others: Sequence[np.ndarray],
    *,
    macro: bool,
    samples: int = SAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """As `bootstrap_interval`, of the difference of two mean F1s, each over runs (seeds) on the same N examples."""
    generator = np.random.default_rng(seed)
    size = len(ones[0])
    differences = []
    for _ in range(samples):
        drawn = np.bincount(generator.integers(size, size=size), minlength=size)  # (N,) times each example is drawn
        means = [
            np.mean([f1_score(np.tensordot(drawn, counts, 1), macro=macro) for counts in runs])  # of (K, 3) each
            for runs in (ones, others)
        ]
        differences.append(means[0] - means[1])
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


def mcnemar(only_one: int, only_other: int) -> float:
    """Exact two-sided p: the binomial chance of a split at least as uneven, were both sides equally likely."""
    from scipy.stats import binomtest

    discordant = only_one + only_other
    return float(binomtest(only_one, discordant, 0.5).pvalue) if discordant else 1.0


@dataclass(frozen=True)
class SeedGroup:
    """Two or more runs with the same settings. Scores are from 0 to 1."""

    names: tuple[str, ...]
    """The runs' names in the comparison."""
    f1: float
    """Mean."""
    deviation: float
    """Standard deviation over the runs."""
    half_width: float
    """Half the width of the 95% interval of the mean."""
    interval: tuple[float, float] | None
    """95% interval of the mean F1 minus that of the baseline's group, in points; None for that group, and where the
    baseline has no runs of other seeds beside it."""


def seed_groups(runs: Sequence[Run], names: Sequence[str], f1: Sequence[float], baseline: int) -> list[SeedGroup]:
    """The groups of two runs or more, that of `runs[baseline]` first."""
    settings = [{name: value for name, value in run.config.items() if name not in FREE} for run in runs]
    groups: list[list[int]] = []
    for number in sorted(range(len(runs)), key=lambda number: number != baseline):
        own = next((group for group in groups if settings[group[0]] == settings[number]), None)
        if own is None:
            groups.append([number])
        elif all(runs[other].config.get("seed") != runs[number].config.get("seed") for other in own):
            own.append(number)  # the same seed once more is no other draw
    several = [sorted(group) for group in groups if len(group) > 1]
    scores = [np.array([f1[number] for number in group]) for group in several]
    return [
        SeedGroup(
            tuple(names[number] for number in group),
            float(own.mean()),
            float(own.std(ddof=1)),
            half_width(own) or 0.0,
            None if baseline in group or baseline not in several[0] else welch_interval(100 * own, 100 * scores[0]),
        )
        for group, own in zip(several, scores, strict=True)
    ]


def welch_interval(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """95% interval of mean(one) - mean(other), of two or more independent values each."""
    from scipy.stats import ttest_ind

    if not one.std() and not other.std():
        difference = float(one.mean() - other.mean())
        return difference, difference
    interval = ttest_ind(one, other, equal_var=False).confidence_interval(LEVEL)
    return float(interval.low), float(interval.high)


def p_text(p: float) -> str:
    """A p value as people read it."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def half_width(values: Sequence[float] | np.ndarray) -> float | None:
    """Half the width of the 95% t interval of the mean of independent values; None for a single one."""
    from scipy.stats import sem, t

    if len(values) < 2:
        return None
    return float(t.ppf((1 + LEVEL) / 2, len(values) - 1) * sem(values))


def paired_interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """95% t interval of the mean of differences, one for each seed that two ways of training share; None for one."""
    half = half_width(differences)
    mean = float(np.mean(differences))
    return None if half is None else (mean - half, mean + half)


def seeds_rows(groups: Sequence[SeedGroup], baseline: str) -> list[list[str]]:
    """The header and a row for each group, for a table; F1 in percent.

    Args:
        baseline: the run that differences are taken to.
    """
    rows = [["runs with the same settings", "mean F1", "deviation", "95% interval", "difference", "its 95% interval"]]
    for group in groups:
        difference, interval = "baseline" if baseline in group.names else "", ""
        if group.interval is not None:
            difference = f"{100 * (group.f1 - groups[0].f1):+.2f}"
            interval = "{:+.2f} to {:+.2f}".format(*group.interval)
        ends = (100 * (group.f1 - group.half_width), 100 * (group.f1 + group.half_width))
        rows.append([", ".join(group.names), f"{100 * group.f1:.2f}", f"{100 * group.deviation:.2f}",
                     "{:.2f} to {:.2f}".format(*ends), difference, interval])  # fmt: skip
    return rows


SEEDS_NOTE = (
    "Intervals over the seeds: Student's of a mean, Welch's of a difference. They do not know that of the texts."
)
