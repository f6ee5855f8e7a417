"""Several finished runs side by side: a table, a JSON file, and a picture of validation F1 by epoch and F1 by type.

Only runs that were scored on the same data with the same labels can be compared: `data` in `config.json`, `labels` in
the result event, the digests of inputs.json, the true labels that were saved with the predictions.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_core.files import write_json, write_text
from trainers.config import RESUME_MAY_CHANGE, RunConfig
from trainers.results.significance import (
    SEEDS_NOTE,
    Difference,
    SeedGroup,
    compare_predictions,
    counts_of_run,
    p_text,
    seed_groups,
    seeds_rows,
)
from trainers.run_folder import Run, has_predictions, read_predictions
from trainers.show import (
    COLOURS,
    blank_figure,
    duration,
    fitted_table,
    markdown_table,
    plain_axes,
    save_figure,
    table_width,
)
from trainers.tasks import kind_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Row:
    """One run of a comparison. Scores are on the comparison's split, from 0 to 1."""

    name: str
    """The run's folder name, with as many parent folders as it takes to tell the runs apart."""
    trainable: int
    """Trained parameters."""
    total: int
    """All parameters."""
    validation_loss: float
    """Validation loss of the weights that were kept."""
    precision: float
    recall: float
    f1: float
    f1_difference: float
    """F1 minus the baseline's F1, in percentage points."""
    difference: Difference | None
    """How sure the difference is; None for the baseline and for runs without saved predictions."""
    strict_f1: float | None
    """F1 by strict IOB2; only token classification has one."""
    accuracy: float
    seconds: float
    """Duration of training."""
    tokens_per_second: float
    peak_memory_bytes: int
    validation_f1: dict[int, float]
    """F1 on the validation split by epoch."""
    type_f1: dict[str, float]
    """F1 of each entity type, or of each label of a text or image."""


@dataclass(frozen=True)
class Comparison:
    """What `compare_runs` found."""

    data: str
    """The data of the runs, as the baseline's settings name it."""
    split: str
    """Where the scores come from: `test`, or `validation` when a run has no test scores."""
    baseline: str
    """Name of the run that differences are taken to."""
    rows: list[Row]
    """In the order in which the runs were given."""
    support: dict[str, int]
    """Number of gold entities of each type (or examples of each label), most frequent first."""
    seeds: list[SeedGroup]
    """Runs that differ in their seed alone, together: groups of two runs or more."""
    settings: dict[str, list[Any]] = field(default_factory=dict)
    """Settings in which the runs differ, and the training data if they do in that, with the value of each run."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know to believe the differences."""


def compare_runs(runs: list[Run], baseline: int = 0) -> Comparison:
    """Put runs side by side; F1 differences are taken to `runs[baseline]`.

    Raises:
        ValueError: fewer than two runs, a run given twice, no such baseline, runs on other data or labels,
            or a run that lacks one of the figures.
    """
    if len(runs) < 2:
        raise ValueError(f"A comparison needs at least two runs, but {len(runs)} was given: name two or more folders.")
    if not 0 <= baseline < len(runs):
        raise ValueError(f"The baseline is run {baseline}, but the runs are numbered 0 to {len(runs) - 1}.")
    names = distinct_names(runs)
    for run in runs:
        counts_of_run(run)  # refuses what has no F1
    split = "test" if all(run.result.get("test") for run in runs) else "validation"
    notes = _check_same_data(runs, split)
    notes += [
        f"{name} was ended early, after {run.result['epochs']} of {run.config['epochs']} epochs."
        for run, name in zip(runs, names, strict=True)
        if run.result.get("ended_early")
    ]
    baseline_f1 = _figure(runs[baseline], split, "f1")
    differences = [
        compare_predictions(run, runs[baseline], split)
        if run is not runs[baseline] and has_predictions(run, split) and has_predictions(runs[baseline], split)
        else None
        for run in runs
    ]
    rows = [
        _row(run, name, split, baseline_f1, difference)
        for run, name, difference in zip(runs, names, differences, strict=True)
    ]
    support = _support(runs[baseline], split)
    return Comparison(
        data=runs[baseline].config["data"],
        split=split,
        baseline=names[baseline],
        rows=rows,
        support=dict(sorted(support.items(), key=lambda item: (-item[1], item[0]))),
        seeds=seed_groups(runs, names, [row.f1 for row in rows], baseline),
        settings=_different_settings(runs),
        notes=notes,
    )


def comparison_table(comparison: Comparison) -> str:
    """The comparison in Markdown: tables of the runs, of the settings in which they differ, and of their seeds. Scores
    are in percent."""
    tables = [rows for rows in _tables(comparison) if len(rows) > 1]
    head, *rest = (markdown_table(rows[0], rows[1:]) for rows in tables)
    return "\n\n".join([head, _caption(comparison), *rest]) + "\n"


def comparison_text(comparison: Comparison, width: int | None = None) -> str:
    """The same for the terminal, no wider than that where it can be.

    Args:
        width: columns; None: those that the terminal has, or 100.
    """
    width = width or table_width()
    tables = [fitted_table(rows, width=width) for rows in _tables(comparison) if len(rows) > 1]
    return "\n\n".join([*tables, textwrap.fill(_caption(comparison), width)])


def _tables(comparison: Comparison) -> list[list[list[str]]]:
    """Header and rows of the tables of a comparison; those that have nothing to say have no rows."""
    differing = [["settings that differ", *(row.name for row in comparison.rows)]]
    differing += [[name, *map(_value, values)] for name, values in comparison.settings.items()]
    return [_figures(comparison), differing, seeds_rows(comparison.seeds, comparison.baseline)]


def _value(value: Any) -> str:
    """A setting's value as people write it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _figures(comparison: Comparison) -> list[list[str]]:
    """The header, and the figures of each run."""
    has_strict = any(row.strict_f1 is not None for row in comparison.rows)
    has_difference = any(row.difference is not None for row in comparison.rows)
    certainty, strict_column = ["95% interval", "McNemar p"] * has_difference, ["strict F1"] * has_strict
    cells = [
        [
            "run",
            "trainable",
            "total",
            "val. loss",
            "precision",
            "recall",
            "F1",
            "difference",
            *certainty,
            *strict_column,
            "accuracy",
            "time",
            "tokens/s",
            "peak memory",
        ]
    ]
    for row in comparison.rows:
        scores = [f"{100 * score:.2f}" for score in (row.precision, row.recall, row.f1)]
        difference = "baseline" if row.name == comparison.baseline else f"{row.f1_difference:+.2f}"
        strict = [] if row.strict_f1 is None else [f"{100 * row.strict_f1:.2f}"]
        cells.append(
            [
                row.name,
                f"{row.trainable:,} ({row.trainable / row.total:.2%})",
                f"{row.total:,}",
                f"{row.validation_loss:.4f}",
                *scores,
                difference,
                *(_certainty(row.difference) if has_difference else []),
                *strict,
                f"{100 * row.accuracy:.2f}",
                duration(row.seconds),
                f"{row.tokens_per_second:,.0f}",
                f"{row.peak_memory_bytes / 1e9:.2f} GB",
            ]
        )
    return cells


def _caption(comparison: Comparison) -> str:
    """What the tables are of, and how their intervals are made."""
    data = comparison.data or "data in memory"
    caption = [f"{data}, {comparison.split} split. Scores in percent; difference of F1 in points."]
    if any(row.difference is not None for row in comparison.rows):
        caption.append("Interval: paired bootstrap of the test examples. It does not know the chance of a seed.")
    if comparison.seeds:
        caption.append(SEEDS_NOTE)
    return " ".join([*caption, *comparison.notes])


def write_comparison(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Write `comparison.md`, `comparison.json` and `comparison.png` into `folder`; return their paths."""
    folder = Path(folder)
    table = write_text(folder / "comparison.md", comparison_table(comparison))
    figures = write_json(folder / "comparison.json", dataclasses.asdict(comparison))
    plot_comparison(comparison, folder / "comparison.png")
    return [table, figures, folder / "comparison.png"]


def _certainty(difference: Difference | None) -> list[str]:
    if difference is None:
        return ["", ""]
    p = p_text(difference.p)
    return [f"{difference.f1_low:+.2f} to {difference.f1_high:+.2f}", p]


def _row(run: Run, name: str, split: str, baseline_f1: float, difference: Difference | None) -> Row:
    f1 = _figure(run, split, "f1")
    return Row(
        name=name,
        trainable=_figure(run, "trainable"),
        total=_figure(run, "total"),
        validation_loss=_figure(run, "validation", "loss"),
        precision=_figure(run, split, "precision"),
        recall=_figure(run, split, "recall"),
        f1=f1,
        f1_difference=100 * (f1 - baseline_f1),
        difference=difference,
        strict_f1=_figure(run, split, "strict_f1") if "strict_f1" in kind_of(_task(run)).METRICS else None,
        accuracy=_figure(run, split, "accuracy"),
        seconds=_figure(run, "seconds"),
        tokens_per_second=_figure(run, "tokens_per_second"),
        peak_memory_bytes=_figure(run, "peak_memory_bytes"),
        validation_f1={event["epoch"]: event["validation"]["f1"] for event in run.epochs if event.get("validation")},
        type_f1={name: scores["f1"] for name, scores in _figure(run, split, "types").items()},
    )


def _figure(run: Run, *keys: str) -> Any:
    value: Any = run.result
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise ValueError(
                f"The result of the run in {run.folder} lacks {'.'.join(keys)!r}. "
                "Repeat the run with this version, or leave it out of the comparison."
            )
        value = value[key]
    return value


def _task(run: Run) -> str:
    return run.config.get("task", RunConfig().task)


def _different_settings(runs: list[Run]) -> dict[str, list[Any]]:
    """The settings that change results and are not the same in all runs; of the training data its size."""
    default = RunConfig().to_dict()
    all_of = [{**default, **run.config} for run in runs]
    names = [name for name in all_of[0] if name not in (*RESUME_MAY_CHANGE, "data")]
    values = {name: [settings.get(name) for settings in all_of] for name in names}
    differing = {name: own for name, own in values.items() if any(one != own[0] for one in own)}
    trained = [run.files.read_inputs().get("data", {}).get("train") for run in runs]
    if all(trained) and any(one["examples"] != trained[0]["examples"] for one in trained):
        differing["training data"] = [f"{one['examples']:,} examples" for one in trained]
    return differing


CUT_BY = ("model", "tokenizer", "max_length", "long_text", "text_augment", "image_size")
"""Settings on which the digest of the same examples depends."""


def _check_scored(first: Run, run: Run, split: str) -> str:
    """Check that two runs were scored on the same examples; what is to be noted, if that cannot be known.

    Raises:
        ValueError: they were not.
    """
    mine, theirs = first.files.read_inputs(), run.files.read_inputs()
    one, other = (inputs.get("data", {}).get(split) for inputs in (mine, theirs))
    different = f"{first.folder} and {run.folder} were scored on different data: the {split} split"
    if one and other and one["examples"] != other["examples"]:
        raise ValueError(f"{different} had {one['examples']:,} examples and {other['examples']:,}.")
    if one and one == other:
        return ""
    if has_predictions(first, split) and has_predictions(run, split):
        gold, other_gold = (read_predictions(each.folder, split)[1] for each in (first, run))
        if len(gold) != len(other_gold) or not all(map(np.array_equal, gold, other_gold)):
            raise ValueError(f"{different} has other labels.")
    cut_alike = all(first.config.get(name) == run.config.get(name) for name in CUT_BY) and all(
        mine.get(name) == theirs.get(name) for name in ("tokenizer", "preprocessing", "model")
    )
    if one and other and cut_alike:
        raise ValueError(f"{different} holds other examples with as many, or in another order (inputs.json).")
    if has_predictions(first, split) and has_predictions(run, split):
        return ""
    return f"That {first.name} and {run.name} were scored on the same examples is not known." if one or other else ""


def _check_same_data(runs: list[Run], split: str) -> list[str]:
    """Refuse what cannot be compared with the first run; what is to be noted of the others."""
    first, notes = runs[0], []
    for run in runs:
        kinds = [one.result.get("problem_type", "single_label_classification") for one in (first, run)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"{first.folder} did {kinds[0]} but {run.folder} {kinds[1]}: only runs of one problem type "
                "can be compared."
            )
        if _task(run) != _task(first):
            raise ValueError(
                f"{first.folder} did {_task(first)} but {run.folder} {_task(run)}: "
                "only runs of one task can be compared."
            )
        if "data" not in run.config:
            raise ValueError(
                f"{run.folder / 'config.json'} does not say which data the run used. "
                "Repeat the run with this version, or leave it out of the comparison."
            )
        # The same data may lie in different folders, or come from the hub: its own name is the last part.
        if Path(run.config["data"]).name != Path(first.config["data"]).name:
            raise ValueError(
                f"{first.folder} used the data {first.config['data']!r} but {run.folder} used "
                f"{run.config['data']!r}: only runs on the same data can be compared."
            )
        first_labels, labels = list(_figure(first, "labels")), list(_figure(run, "labels"))
        if labels != first_labels:
            raise ValueError(
                f"{first.folder} has the labels {first_labels} but {run.folder} has {labels}: "
                "only runs with the same labels can be compared."
            )
        if _support(run, split) != _support(first, split):
            raise ValueError(
                f"The {split} split of {first.folder} has the entities {dict(_support(first, split))} but "
                f"that of {run.folder} has {dict(_support(run, split))}: they scored different sentences."
            )
        notes.append(_check_scored(first, run, split))
    return [note for note in notes if note]


def _support(run: Run, split: str) -> Counter[str]:
    types = _figure(run, split, "types")
    return Counter({name: scores["support"] for name, scores in types.items() if scores["support"]})


def distinct_names(runs: Sequence[Run]) -> list[str]:
    """The folders' own names, with as many parent folders as it takes to tell them apart; ValueError for one twice."""
    parts = [run.folder.resolve().parts for run in runs]
    if len(set(parts)) < len(parts):
        twice = next(run.folder for run, own in zip(runs, parts, strict=True) if parts.count(own) > 1)
        raise ValueError(f"The run {twice} was given more than once: name each folder once.")
    depth = 1
    while len({own[-depth:] for own in parts}) < len(parts):
        depth += 1
    return ["/".join(own[-depth:]) for own in parts]


MAX_TYPES = 12
"""Entity types with bars of their own; more would not be readable."""
MARKERS = "osD^vPX*"
LINE_STYLES = ("-", "--", ":", "-.")


def plot_comparison(comparison: Comparison, path: str | Path) -> None:
    """Write the picture as a PNG file."""
    types = list(comparison.support)[:MAX_TYPES]
    bars_width = min(max(6.0, 0.18 * len(types) * (len(comparison.rows) + 1)), 12.0)
    legend_lines = -(-len(comparison.rows) // 3)
    figure = blank_figure(6.0 + bars_width, (6.0 if _crowded(types) else 4.6) + 0.25 * legend_lines)
    curves, bars = figure.subplots(1, 2, width_ratios=[6.0, bars_width])
    _plot_curves(comparison, curves)
    curves.locator_params(axis="x", integer=True)
    _plot_types(comparison, types, bars)
    for axes in (curves, bars):
        plain_axes(axes)
    figure.suptitle(f"{Path(comparison.data).name}: {len(comparison.rows)} runs compared", fontweight="bold")
    figure.legend(*curves.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, path)


def _plot_curves(comparison: Comparison, axes: Axes) -> None:
    for index, row in enumerate(comparison.rows):
        axes.plot(
            list(row.validation_f1),
            [100 * f1 for f1 in row.validation_f1.values()],
            label=f"{row.name} (baseline)" if row.name == comparison.baseline else row.name,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            linestyle=LINE_STYLES[index // len(COLOURS) % len(LINE_STYLES)],
        )
    axes.set(title="F1 on the validation split", xlabel="epoch", ylabel="F1 (%)")


def _plot_types(comparison: Comparison, types: list[str], axes: Axes) -> None:
    places = np.arange(len(types))
    width = min(0.8 / len(comparison.rows), 0.3)
    for index, row in enumerate(comparison.rows):
        axes.bar(
            places + (index - (len(comparison.rows) - 1) / 2) * width,
            [100 * row.type_f1[name] for name in types],
            width=0.92 * width,
            color=COLOURS[index % len(COLOURS)],
            hatch=None if index < len(COLOURS) else "//",
            edgecolor="white",
            linewidth=0,
        )
    names = [f"{name if len(name) <= 26 else name[:25] + '…'}\n{comparison.support[name]:,}" for name in types]
    crowded = _crowded(types)
    axes.set_xticks(places, names, rotation=40 if crowded else 0, ha="right" if crowded else "center")
    shown = "type" if len(types) == len(comparison.support) else f"the {len(types)} most frequent types"
    axes.set(
        title=f"F1 on the {comparison.split} split by {shown}",
        xlabel="type, with its number of gold entities",
    )
    axes.set(ylabel="F1 (%)", ylim=(0, 100), xlim=(-0.6, len(types) - 0.4))


def _crowded(types: list[str]) -> bool:
    """Whether the names of the types need slanted text, and room for it."""
    return len(types) > 6 or any(len(name) > 16 for name in types)
