"""How far the model's confidence can be trusted, and how much is right if it may keep silent where it is unsure.

Reliability diagram and expected calibration error: Guo et al. 2017 (https://arxiv.org/abs/1706.04599), equation 3.
Accuracy by coverage: Geifman and El-Yaniv 2017 (https://arxiv.org/abs/1705.08500).

Shapes: U answers with a confidence.
"""

from dataclasses import dataclass
from typing import IO

import numpy as np

from trainers.report.evidence import Evidence
from trainers.report.pictures import colour, legend_below, panel, save
from trainers.report.section import Picture, Section, Table

TITLE = "Calibration and coverage"
BINS = 10
COVERAGES = tuple(range(5, 101, 5))
"""Percent of the answers that are kept, the most confident first."""


@dataclass(frozen=True)
class Answers:
    """What the model said, how sure it was, and whether it was right."""

    noun: str
    """What an answer is, in the plural."""
    confidence: np.ndarray
    """(U,) from 0 to 1."""
    right: np.ndarray
    """(U,) bool."""


def section(evidence: Evidence) -> Section:
    """The reliability diagram and accuracy by coverage, of the examples that the model was asked about."""
    if evidence.problem_type == "regression":
        return Section("calibration", TITLE, missing="A model that gives numbers says nothing of its confidence.")
    answers = answers_of(evidence)
    if not len(answers.confidence):
        return Section("calibration", TITLE, missing=f"There are no {answers.noun} to be sure of.")
    error, bins = expected_calibration_error(answers.confidence, answers.right)
    kept = coverage(answers.confidence, answers.right)
    mean, accuracy = float(answers.confidence.mean()), float(answers.right.mean())
    tendency = "too sure" if mean > accuracy + 0.01 else "too modest" if mean < accuracy - 0.01 else "well calibrated"
    summary = Table(
        "calibration-summary",
        ("", "value"),
        [
            (f"{answers.noun} looked at", f"{len(answers.right):,}"),
            ("expected calibration error, points", f"{100 * error:.2f}"),
            ("mean confidence, %", f"{100 * mean:.2f}"),
            ("right, %", f"{100 * accuracy:.2f}"),
            ("on the whole", tendency),
        ],
    )

    def draw_bins(file: IO[bytes]) -> None:
        _draw_bins(file, bins)

    def draw_coverage(file: IO[bytes]) -> None:
        figure, axes = panel()
        axes.plot([row[0] for row in kept], [row[1] for row in kept], "o-", color=colour(0), markersize=4)
        axes.set(xlabel=f"{answers.noun} kept, %, the most confident first", ylabel="right, %", xlim=(0, 102))
        save(figure, file)

    note = (
        f"The {evidence.split} split. A confidence is the probability of the label that was given"
        f"{', of an entity the mean over its words' if evidence.is_tokens else ''}. Above the diagonal the model is "
        "better than it says, below it is too sure. The second picture shows how much is right when a threshold on the "
        "confidence leaves the unsure ones to people."
    )
    half = next(row for row in kept if row[0] >= 50)
    return Section(
        "calibration",
        TITLE,
        note,
        (
            summary,
            Picture(
                Table(
                    "calibration-reliability",
                    ("confidence from", "to", "answers", "mean confidence, %", "right, %"),
                    bins,
                ),
                f"Reliability diagram: expected calibration error {100 * error:.2f} points; on the whole {tendency}.",
                draw_bins,
                caption="Reliability: confidence against the share of right answers.",
            ),
            Picture(
                Table("calibration-coverage", ("kept, %", "right, %", "confidence at least"), kept),
                f"Share of right {answers.noun} by coverage: {half[1]:.1f}% of the most confident half are right, "
                f"{kept[-1][1]:.1f}% of all.",
                draw_coverage,
                caption="Coverage: what is right when only the most confident are kept.",
            ),
        ),
    )


def answers_of(evidence: Evidence) -> Answers:
    """Labels of examples, labels that were given to them, or predicted entities."""
    predicted, gold = evidence.saved
    if evidence.is_tokens:
        confidence, right = [], []
        for number, place in enumerate(evidence.asked):
            ids, scores = predicted[place].astype(np.int64), evidence.word_probabilities[number]
            true = evidence.entities(gold[place])
            of_given = scores[np.arange(len(ids)), ids]
            for entity in evidence.entities(ids):
                confidence.append(float(of_given[entity[1] : entity[2]].mean()))
                right.append(entity in true)
        return Answers("predicted entities", np.array(confidence), np.array(right, dtype=bool))
    scores = evidence.probabilities  # (M, L)
    guess, true = (np.stack([ids[place] for place in evidence.asked]).astype(np.int64) for ids in (predicted, gold))
    if evidence.is_single:
        return Answers(evidence.noun, scores[np.arange(len(guess)), guess[:, 0]], guess[:, 0] == true[:, 0])
    given = guess > 0  # (M, L)
    return Answers("labels given", scores[given], true[given] > 0)


def expected_calibration_error(
    confidence: np.ndarray, right: np.ndarray
) -> tuple[float, list[tuple[float, float, int, float | None, float | None]]]:
    """The mean distance between confidence and share of right answers over equal bins, weighted by their answers.

    Returns:
        It, from 0 to 1, and for each bin (from, to, answers, mean confidence in percent, right in percent).
    """
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins, total = [], 0.0
    for place in range(BINS):
        own = places == place
        count = int(own.sum())
        mean, share = (float(confidence[own].mean()), float(right[own].mean())) if count else (None, None)
        if mean is not None and share is not None:
            total += count * abs(mean - share)
        bins.append((place / BINS, (place + 1) / BINS, count, _percent(mean), _percent(share)))
    return total / len(confidence), bins


def coverage(confidence: np.ndarray, right: np.ndarray) -> list[tuple[int, float, float]]:
    """(Answers kept in percent, share of right ones among them in percent, least confidence), least coverage first."""
    order = np.argsort(-confidence, kind="stable")
    rows = []
    for percent in COVERAGES:
        kept = order[: max(1, round(len(order) * percent / 100))]
        rows.append((percent, 100 * float(right[kept].mean()), float(confidence[kept[-1]])))
    return rows


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _draw_bins(file: IO[bytes], bins: list[tuple[float, float, int, float | None, float | None]]) -> None:
    figure, axes = panel()
    filled = [row for row in bins if row[2]]
    most = max(row[2] for row in filled)
    axes.bar(
        [50 * (row[0] + row[1]) for row in filled],
        [100 * row[2] / most for row in filled],
        width=9,
        color=colour(0),
        alpha=0.2,
        label=f"answers (tallest: {most:,})",
    )
    axes.plot([0, 100], [0, 100], color="0.5", linestyle="--", linewidth=1, label="as sure as right")
    axes.plot(
        [row[3] or 0 for row in filled], [row[4] or 0 for row in filled], "o-", color=colour(1), label="the model"
    )
    axes.set(xlabel="confidence, %", ylabel="right, %", xlim=(0, 102), ylim=(0, 104))
    legend_below(figure, axes)
    save(figure, file)
