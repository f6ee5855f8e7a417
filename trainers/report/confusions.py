"""What is taken for what: of entities with the kinds of their errors, of labels as matrices, of numbers as points."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal

import numpy as np

from trainers.data.tokens.bio import entity_types
from trainers.report.evidence import Evidence, shares
from trainers.report.pictures import colour, panel, save
from trainers.report.section import Block, Picture, Section, Table
from trainers.results.confusion import NO_ENTITY, confusion_picture, entity_confusion
from trainers.results.entity_errors import KINDS, judge
from trainers.show import WRONG

TITLE = "Confusions"
MAX_DRAWN = 150
"""Most labels whose matrix is drawn."""
WIDE = 14
"""Labels from which on a matrix needs the whole width of the page."""
MAX_LISTED = 200
"""Pairs of labels in the list."""
MEANING = (
    "Rows are true, columns predicted. One matrix has the counts (colours on a logarithmic scale), the other the share "
    "of each row. A blank cell has no examples."
)


def section(evidence: Evidence) -> Section:
    """The matrices, the kinds of errors, and the list of pairs."""
    if evidence.problem_type == "regression":
        return _numbers(evidence)
    if evidence.problem_type == "multi_label_classification":
        return _several_labels(evidence)
    if evidence.is_tokens:
        return _entities(evidence)
    matrix = np.array(evidence.run.run.result[evidence.split]["confusion"], dtype=np.int64)  # (L, L)
    return Section("confusions", TITLE, MEANING, _matrices(matrix, evidence.labels))


def _entities(evidence: Evidence) -> Section:
    predicted, gold = evidence.saved
    types = entity_types(evidence.labels)
    kinds: Counter[str] = Counter()
    by_type: dict[str, Counter[str]] = {name: Counter() for name in types}
    for guess, true in zip(predicted, gold, strict=True):
        for judged in judge(evidence.entities(true), evidence.entities(guess)):
            kinds[judged.kind] += 1
            entity = judged.true or judged.predicted
            assert entity is not None
            by_type[entity[0]][judged.kind] += 1
    errors = [kind for kind in KINDS if kind != "right"]
    counts = [kinds[kind] for kind in errors]
    rows = list(zip(errors, counts, shares(counts), strict=True))
    table = Table(
        "entity-errors",
        ("what is wrong", "entities", "share of the errors, %"),
        rows,
        ("", ",d", ".1f"),
        caption=f"{kinds['right']:,} entities are right. A predicted entity that overlaps a true one is one error with "
        "it, not a missed and a spurious one.",
    )
    of_types = Table(
        "entity-errors-by-type",
        ("type", *KINDS),
        [(name, *(by_type[name][kind] for kind in KINDS)) for name in types],
        ("", *[",d"] * len(KINDS)),
        caption="By the true type; of spurious entities by the predicted one.",
    )

    def draw(file: IO[bytes]) -> None:
        _draw_bars(file, errors, counts)

    picture = Picture(
        Table("entity-errors-picture", ("what is wrong", "entities"), list(zip(errors, counts, strict=True))),
        "Errors by kind: " + ", ".join(f"{count:,} {kind}" for kind, count in zip(errors, counts, strict=True)) + ".",
        draw,
    )
    matrix = entity_confusion([evidence.tags(ids) for ids in gold], [evidence.tags(ids) for ids in predicted], types)
    blocks = _matrices(matrix, [*types, NO_ENTITY])
    note = f"{MEANING} Entities meet in the matrices when their first and last word agree. The row {NO_ENTITY} has "
    note += "counts only: it has no total to take shares of."
    return Section("confusions", TITLE, note, (table, picture, *blocks, of_types))


def _matrices(matrix: np.ndarray, labels: Sequence[str]) -> list[Block]:
    """The matrix as counts and as shares, and its pairs of labels, the most frequent confusion first."""
    totals = matrix.sum(1)
    cells = [
        (
            labels[row],
            labels[column],
            int(matrix[row, column]),
            None if labels[row] == NO_ENTITY else 100 * matrix[row, column] / max(1, totals[row]),
        )
        for row, column in np.argwhere(matrix)
    ]
    header = ("true", "predicted", "count", "share of the true, %")
    wrong = sorted((cell for cell in cells if cell[0] != cell[1]), key=_most_first)
    listed = Table(
        "confusion-pairs", header, wrong[:MAX_LISTED], ("", "", ",d", ".1f"), caption="The most frequent confusions."
    )
    if len(labels) > MAX_DRAWN:
        return [listed]
    worst = f"{wrong[0][0]} is taken for {wrong[0][1]} {wrong[0][2]:,} times" if wrong else "there are no errors"
    drawings: tuple[Literal["counts", "shares"], ...] = ("counts", "shares")
    pictures = [
        Picture(
            Table(f"confusion-{shading}", header, cells),
            f"Confusion matrix, {shading}, of {len(labels)} labels: {worst}.",
            _Matrix(matrix, labels, shading),
            wide=len(labels) > WIDE,
        )
        for shading in drawings
    ]
    return [*pictures, listed] if wrong else [*pictures]


@dataclass(frozen=True)
class _Matrix:
    """Draws one of them."""

    matrix: np.ndarray
    labels: Sequence[str]
    shading: Literal["counts", "shares"]

    def __call__(self, file: IO[bytes]) -> None:
        title = "counts" if self.shading == "counts" else "shares of the row"
        confusion_picture({title: self.matrix.tolist()}, self.labels, file, shading=self.shading)


def _several_labels(evidence: Evidence) -> Section:
    predicted, gold = (np.stack(ids) > 0 for ids in evidence.saved)  # (N, L) each
    columns = ((predicted & gold), (~predicted & gold), (predicted & ~gold))
    rows: list[tuple[Any, ...]] = [
        (label, *(int(found[:, place].sum()) for found in columns)) for place, label in enumerate(evidence.labels)
    ]
    rows.sort(key=_most_wrong)
    table = Table("label-errors-by-label", ("label", "right", "missed", "spurious"), rows, ("", ",d", ",d", ",d"))
    missed, spurious = (sum(row[column] for row in rows) for column in (2, 3))

    def draw(file: IO[bytes]) -> None:
        _draw_bars(file, ["missed", "spurious"], [missed, spurious])

    picture = Picture(
        Table("label-errors-picture", ("what is wrong", "labels"), [("missed", missed), ("spurious", spurious)]),
        f"{missed:,} labels are missed, {spurious:,} are given though they are not true.",
        draw,
    )
    return Section(
        "confusions", TITLE, "Labels stand for themselves: each can be missed, or given wrongly.", (picture, table)
    )


def _numbers(evidence: Evidence) -> Section:
    predicted, gold = (np.concatenate(values).astype(float) for values in evidence.saved)
    rows = list(zip(range(1, len(gold) + 1), gold.tolist(), predicted.tolist(), strict=True))

    def draw(file: IO[bytes]) -> None:
        figure, axes = panel()
        axes.scatter(gold, predicted, s=8, color=colour(0), alpha=0.6, linewidths=0)
        ends = [min(gold.min(), predicted.min()), max(gold.max(), predicted.max())]
        axes.plot(ends, ends, color=WRONG, linewidth=1, linestyle="--")
        axes.set(xlabel="true", ylabel="predicted")
        save(figure, file)

    picture = Picture(
        Table("predicted-and-true", ("example", "true", "predicted"), rows),
        f"Predicted against true numbers of {len(gold):,} examples; on the dashed line they are equal.",
        draw,
    )
    return Section("confusions", "Predicted against true", "On the dashed line both are equal.", (picture,))


def _draw_bars(file: IO[bytes], names: Sequence[str], counts: Sequence[int]) -> None:
    figure, axes = panel(height=0.9 + 0.36 * len(names))
    bars = axes.barh(range(len(names)), counts, color=colour(0), height=0.65)
    axes.bar_label(bars, [f"{count:,}" for count in counts], padding=3)
    axes.set_yticks(range(len(names)), [name.replace(" and ", "\nand ") for name in names])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlim=(0, 1.2 * max([*counts, 1])), xlabel="count")
    save(figure, file)


def _most_first(cell: tuple[Any, ...]) -> tuple[int, str, str]:
    return -cell[2], cell[0], cell[1]


def _most_wrong(row: tuple[Any, ...]) -> tuple[int, str]:
    return -row[2] - row[3], row[0]
