"""The scores: of one run with intervals, of several beside each other, and by class or entity type."""

from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from trainers.report.evidence import Evidence
from trainers.report.pictures import MARKERS, colour, legend_below, panel, save
from trainers.report.section import Picture, Section, Table
from trainers.results.compare import Comparison, compare_runs
from trainers.results.significance import bootstrap_interval, counts_of_run
from trainers.run_folder import Run, has_predictions, read_predictions
from trainers.show import duration

SCORES = {
    "f1": "F1",
    "strict_f1": "strict F1",
    "macro_f1": "macro F1",
    "samples_f1": "F1 by example",
    "precision": "precision",
    "recall": "recall",
    "accuracy": "accuracy",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "r2": "R2",
    "mae": "mean absolute error",
}
"""Scores of the page, in its order."""
NUMBERS = frozenset({"pearson", "spearman", "r2", "mae", "mse"})
"""Scores that are no shares."""
DRAWN_CLASSES = 30
"""Classes in the picture, the most frequent."""


def is_share(name: str) -> bool:
    """Whether a score is a share, which is shown in percent."""
    return name not in NUMBERS


def title_of(name: str) -> str:
    """A score's name on the page, with its unit."""
    return f"{SCORES.get(name, name.replace('_', ' '))}{', %' if is_share(name) else ''}"


def value_of(scores: dict[str, Any], name: str) -> float:
    """A score in the unit of its title."""
    return scores[name] * (100 if is_share(name) else 1)


def cards(evidence: Evidence) -> list[tuple[str, str]]:
    """(Value, name) of the scores on top of the page."""
    scores = evidence.run.run.result[evidence.split]
    names = [name for name in SCORES if name in scores]
    if evidence.is_single and "macro_f1" in names:
        names.remove("macro_f1")
    shown = [(f"{value_of(scores, name):{'.2f' if is_share(name) else '.4f'}}", title_of(name)) for name in names]
    return [*shown, (f"{scores['loss']:.4f}", "loss")]


def section(evidence: Evidence) -> Section:
    """The runs, each with its F1 and the 95% interval of it; of several also the differences."""
    several = len(evidence.runs) > 1
    title = "The runs compared" if several else "The score and its interval"
    if evidence.problem_type == "regression":
        return Section("scores", title, blocks=(_numbers(evidence),), note="Numbers have no F1 and so no interval.")
    comparison = compare_runs(evidence.runs) if several else None
    split = comparison.split if comparison else evidence.split
    rows = [_row(run, name, split) for run, name in zip(evidence.runs, evidence.names, strict=True)]
    table = Table(
        "scores",
        (
            "run",
            "what was trained",
            "trained parameters",
            "F1, %",
            "from",
            "to",
            "precision, %",
            "recall, %",
            "accuracy, %",
            "training",
        ),
        rows,
        ("", "", ",d", ".2f", ".2f", ".2f", ".2f", ".2f", ".2f"),
        caption=f"Scores on the {split} split. From, to: 95% interval of F1, when the examples are drawn anew "
        "(bootstrap; Efron and Tibshirani 1993). It does not know the chance of the seed.",
    )

    def draw(file: IO[bytes]) -> None:
        _draw_intervals(file, rows)

    picture = Picture(
        Table("scores-intervals", ("run", "F1, %", "from", "to"), [(row[0], *row[3:6]) for row in rows]),
        "F1 with its 95% interval: " + "; ".join(f"{row[0]} {row[3]:.2f}" for row in rows) + ".",
        draw,
    )
    blocks: list[Table | Picture] = [table]
    if comparison:
        blocks += [_differences(comparison, evidence), *_seeds(comparison)]
    note = "" if several else "Give more runs to have them side by side: lora-core report RUN RUN ..."
    return Section("scores", title, note=note, blocks=(*blocks, picture))


def classes_section(evidence: Evidence) -> Section:
    """Precision, recall and F1 of each class or entity type."""
    title = "Entity types" if evidence.is_tokens else "Labels"
    result = evidence.run.run.result
    types = result[evidence.split].get("types")
    if not types:
        return Section("classes", title, missing="The run learned a number: it has no classes.")
    ordered = sorted(types.items(), key=lambda item: (-item[1]["support"], item[0]))
    thresholds = result.get("thresholds")
    rows = [
        (
            name,
            *(100 * scores[key] for key in ("precision", "recall", "f1")),
            scores["support"],
            *([thresholds[name]] if thresholds else []),
        )
        for name, scores in ordered
    ]
    header = ("type" if evidence.is_tokens else "label", "precision, %", "recall, %", "F1, %", "in the data")
    table = Table(
        "classes",
        (*header, *(["threshold"] if thresholds else [])),
        rows,
        ("", ".2f", ".2f", ".2f", ",d", ".2f"),
    )

    def draw(file: IO[bytes]) -> None:
        _draw_classes(file, rows[:DRAWN_CLASSES])

    worst = min(rows, key=lambda row: row[3])
    picture = Picture(
        Table("classes-picture", header, [row[:5] for row in rows[:DRAWN_CLASSES]]),
        f"Precision, recall and F1 of {min(len(rows), DRAWN_CLASSES)} classes, the most frequent first; the lowest F1 "
        f"is {worst[3]:.1f}% of {worst[0]}.",
        draw,
        caption=f"The {DRAWN_CLASSES} most frequent of {len(rows)}." if len(rows) > DRAWN_CLASSES else "",
    )
    return Section("classes", title, note=f"On the {evidence.split} split.", blocks=(table, picture))


def trained(run: Run) -> str:
    """What a run trained, in a word."""
    method = run.config.get("method", "lora")
    if method == "lora":
        return f"LoRA, r={run.config.get('r', '?')}"
    return "every parameter" if method == "full" else "the head alone"


def _numbers(evidence: Evidence) -> Table:
    names = [name for name in SCORES if name in evidence.run.run.result[evidence.split]]
    rows = [
        (label, trained(run), *(value_of(run.result[evidence.split], name) for name in names))
        for label, run in zip(evidence.names, evidence.runs, strict=True)
        if evidence.split in run.result
    ]
    return Table("scores", ("run", "what was trained", *map(title_of, names)), rows, ("", "", *[".4f"] * len(names)))


def _row(run: Run, name: str, split: str) -> tuple[Any, ...]:
    scores = run.result[split]
    low, high = _interval(run, split)
    shares = [100 * scores[key] for key in ("precision", "recall", "accuracy")]
    return (
        name,
        trained(run),
        run.result["trainable"],
        100 * scores["f1"],
        low,
        high,
        *shares,
        duration(run.result["seconds"]),
    )


def _interval(run: Run, split: str) -> tuple[float | None, float | None]:
    """95% interval of a run's F1, in percent: of its difference to a run that finds nothing."""
    if not has_predictions(run, split):
        return None, None
    counts = counts_of_run(run)(*read_predictions(run.folder, split), run.result["labels"])  # (N, K, 3)
    low, high = bootstrap_interval(counts, np.zeros_like(counts), macro=counts.shape[1] > 1)
    return 100 * low, 100 * high


def _differences(comparison: Comparison, evidence: Evidence) -> Table:
    rows = []
    first = evidence.runs[0].config
    for row, run in zip(comparison.rows, evidence.runs, strict=True):
        differing = [
            f"{name} {run.config.get(name)}"
            for name in sorted({*first, *run.config})
            if first.get(name) != run.config.get(name) and name != "output_dir"
        ]
        sure = row.difference
        rows.append(
            (
                row.name,
                row.f1_difference,
                None if sure is None else sure.f1_low,
                None if sure is None else sure.f1_high,
                None if sure is None else sure.p,
                ", ".join(differing) or ("the first run" if run is evidence.runs[0] else "nothing"),
            )
        )
    return Table(
        "differences",
        ("run", "F1 against the first, points", "from", "to", "McNemar p", "differs in"),
        rows,
        ("", "+.2f", "+.2f", "+.2f", ".3f"),
        caption="From, to: 95% interval of the difference on the same examples (paired bootstrap).",
    )


def _seeds(comparison: Comparison) -> list[Table]:
    if not comparison.seeds:
        return []
    rows = [
        (", ".join(group.names), 100 * group.f1, 100 * group.deviation, *(group.interval or (None, None)))
        for group in comparison.seeds
    ]
    return [
        Table(
            "seeds",
            ("runs with the same settings", "mean F1, %", "deviation", "against the first: from", "to"),
            rows,
            ("", ".2f", ".2f", "+.2f", "+.2f"),
            caption="Over the seeds: from, to is Welch's 95% interval of the difference of the means, in points.",
        )
    ]


def _draw_intervals(file: IO[bytes], rows: Sequence[tuple[Any, ...]]) -> None:
    """A point with its interval for each run, runs that were trained alike in one colour."""
    figure, axes = panel(height=1.3 + 0.34 * len(rows))
    ways = list(dict.fromkeys(row[1] for row in rows))
    shown = set()
    for place, (_, way, _, f1, low, high, *_) in enumerate(rows):
        number = ways.index(way)
        errors = None if low is None else [[max(0.0, f1 - low)], [max(0.0, high - f1)]]
        axes.errorbar(
            f1,
            place,
            xerr=errors,
            fmt=MARKERS[number % len(MARKERS)],
            color=colour(number),
            capsize=4,
            label=None if way in shown else way,
        )
        shown.add(way)
    axes.set_yticks(range(len(rows)), [str(row[0])[-28:] for row in rows])
    axes.invert_yaxis()
    axes.margins(y=0.6 / max(1, len(rows)))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("F1, %, with its 95% interval")
    if len(ways) > 1:
        legend_below(figure, axes)
    save(figure, file)


def _draw_classes(file: IO[bytes], rows: Sequence[tuple[Any, ...]]) -> None:
    """A line for each class, from precision to recall, with F1 on it."""
    figure, axes = panel(height=1.2 + 0.26 * len(rows))
    places = np.arange(len(rows))
    precision, recall, f1 = (np.array([row[column] for row in rows]) for column in (1, 2, 3))
    axes.hlines(places, np.minimum(precision, recall), np.maximum(precision, recall), color="0.5", linewidth=1)
    for number, (label, values) in enumerate({"precision": precision, "recall": recall, "F1": f1}.items()):
        axes.plot(values, places, MARKERS[number], color=colour(number), label=label, markersize=5)
    names = [name if len(name) <= 28 else f"{name[:14]}…{name[-13:]}" for name in (str(row[0]) for row in rows)]
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", alpha=0.3)
    axes.margins(y=0.1)
    axes.set(xlabel="%", xlim=(-2, 102))
    legend_below(figure, axes)
    save(figure, file)
