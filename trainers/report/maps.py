"""What the last layer reads of each example, or of the first words of entities, as points on a plane.

Shapes: P points, D size of the vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np

from trainers.data.tokens.bio import entity_type, entity_types
from trainers.report.evidence import SEED, Evidence
from trainers.report.pictures import colour, legend_below, panel, save
from trainers.report.section import Picture, Section, Table
from trainers.results.vector_map import plane_pca, plane_tsne

TITLE = "Maps of the vectors"
MOST_POINTS = 1000
"""t-SNE takes ten seconds for as many."""
FEWEST_POINTS = 4
NAMED = 7
"""Labels with a colour of their own, the most frequent; the others are grey."""
NO_TYPE = "(no entity)"


def section(evidence: Evidence) -> Section:
    """PCA, which keeps distances, and t-SNE, which keeps neighbours."""
    if not evidence.options.maps:
        return Section("maps", TITLE, missing="Left out by --no-maps.")
    if evidence.problem_type not in (None, "single_label_classification"):
        return Section("maps", TITLE, missing="For runs with one label for each example or word.")
    vectors, gold, predicted, labels = _points(evidence)
    if len(vectors) < FEWEST_POINTS:
        what = "entities" if evidence.is_tokens else evidence.noun
        return Section("maps", TITLE, missing=f"There are {len(vectors)} {what}; a map needs {FEWEST_POINTS}.")
    flat, share = plane_pca(vectors)
    planes = {"pca": (flat, f"PCA ({share:.0%} of the variance)"), "tsne": (plane_tsne(vectors, SEED), "t-SNE")}
    wrong = int((gold != predicted).sum())
    pictures = [
        Picture(
            Table(
                f"map-{name}",
                ("x", "y", "true", "predicted"),
                [
                    (float(x), float(y), labels[true], labels[guess])
                    for (x, y), true, guess in zip(points, gold, predicted, strict=True)
                ],
            ),
            f"{title} of {len(points):,} points, coloured by true label; {wrong:,} ringed ones are wrong.",
            _Map(points, gold, predicted, labels, title),
        )
        for name, (points, title) in planes.items()
    ]
    of_what = "first words of entities" if evidence.is_tokens else evidence.noun
    note = (
        f"{len(vectors):,} {of_what} of the {evidence.split} split, as the last layer reads them. Colours are true "
        "labels, rings the errors. In t-SNE (van der Maaten and Hinton 2008) only neighbours mean something, distances "
        "do not."
    )
    return Section("maps", TITLE, note, pictures)


def _points(evidence: Evidence) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Vectors (P, D), true and predicted labels (P,), and their names."""
    predicted, gold = ([ids[place].astype(np.int64) for place in evidence.asked] for ids in evidence.saved)
    if not evidence.is_tokens:
        chosen = _drawn(len(evidence.asked))
        true, guess = (np.concatenate(ids)[chosen] for ids in (gold, predicted))
        return evidence.vectors(evidence.asked[chosen]), true, guess, list(evidence.labels)
    types = [*entity_types(evidence.labels), NO_TYPE]
    type_of = np.array([types.index(entity_type(tag) or NO_TYPE) for tag in evidence.labels])
    begins = np.array([tag.startswith("B") for tag in evidence.labels])
    true, guess = np.concatenate(gold), np.concatenate(predicted)
    first = begins[true]
    true, guess = type_of[true[first]], type_of[guess[first]]
    chosen = _drawn(len(true))
    return evidence.word_vectors[chosen], true[chosen], guess[chosen], types


def _drawn(count: int) -> np.ndarray:
    """Places of the points to draw, rising."""
    if count <= MOST_POINTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(SEED).choice(count, MOST_POINTS, replace=False))


@dataclass(frozen=True)
class _Map:
    """Draws a plane."""

    points: np.ndarray
    """(P, 2)"""
    gold: np.ndarray
    predicted: np.ndarray
    labels: Sequence[str]
    title: str

    def __call__(self, file: IO[bytes]) -> None:
        from matplotlib import rcParams

        figure, axes = panel(height=3.9)
        counts = np.bincount(self.gold, minlength=len(self.labels))
        named = [int(label) for label in np.argsort(-counts, kind="stable")[:NAMED] if counts[label]]
        others = ~np.isin(self.gold, named)
        if others.any():
            axes.scatter(*self.points[others].T, s=8, color="0.55", linewidths=0, label="others")
        for place, label in enumerate(named):
            own = self.points[self.gold == label]
            axes.scatter(*own.T, s=9, color=colour(place), linewidths=0, label=self.labels[label][:30])
        wrong = self.points[self.gold != self.predicted]
        axes.scatter(
            *wrong.T, s=34, facecolors="none", edgecolors=rcParams["text.color"], linewidths=0.6, label="error"
        )
        axes.set(xticks=[], yticks=[])
        axes.set_title(self.title, fontsize="medium")
        legend_below(figure, axes)
        save(figure, file)
