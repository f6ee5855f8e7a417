"""Training curves: the losses and the score that selected the best epoch, by epoch, of every run."""

from collections.abc import Sequence
from typing import IO, Any

from trainers.report.evidence import Evidence
from trainers.report.pictures import MARKERS, colour, legend, panel, save
from trainers.report.scores import is_share, title_of
from trainers.report.section import Picture, Section, Table
from trainers.run_folder import Run


def section(evidence: Evidence) -> Section:
    """Two pictures with the same epochs."""
    title = "Training curves"
    runs = {name: run for name, run in zip(evidence.names, evidence.runs, strict=True) if run.epochs}
    if not runs:
        return Section("curves", title, missing="The run has no finished epoch, so there is nothing to draw.")
    metric = evidence.run.metric
    losses = [
        (name, event["epoch"], event.get("step"), event["train_loss"], event["validation"]["loss"])
        for name, run in runs.items()
        for event in run.epochs
    ]
    scale = 100 if is_share(metric) else 1
    scores = [
        (name, event["epoch"], event.get("step"), scale * event["validation"][metric])
        for name, run in runs.items()
        for event in run.epochs
        if metric in event["validation"]
    ]
    last = runs[next(iter(runs))].epochs[-1]

    def draw_losses(file: IO[bytes]) -> None:
        _draw(file, runs, losses, "loss", both=True)

    def draw_scores(file: IO[bytes]) -> None:
        _draw(file, runs, scores, f"validation {title_of(metric)}")

    return Section(
        "curves",
        title,
        note="A dotted line marks the epoch whose weights were kept. Where the validation loss rises while the "
        "training loss falls, more epochs do not help.",
        blocks=(
            Picture(
                Table("curves-loss", ("run", "epoch", "step", "training loss", "validation loss"), losses),
                f"Training and validation loss by epoch; at the end {last['train_loss']:.3f} and "
                f"{last['validation']['loss']:.3f}.",
                draw_losses,
            ),
            Picture(
                Table("curves-score", ("run", "epoch", "step", f"validation {title_of(metric)}"), scores),
                f"Validation {title_of(metric)} by epoch, for {len(runs)} run{'s' * (len(runs) > 1)}.",
                draw_scores,
            ),
        ),
    )


def _draw(file: IO[bytes], runs: dict[str, Run], rows: Sequence[tuple], title: str, *, both: bool = False) -> None:
    """A line for each run through the last column of its rows, or through the last two: training and validation."""
    figure, axes = panel()
    for place, (name, run) in enumerate(runs.items()):
        own = [row for row in rows if row[0] == name]
        epochs = [row[1] for row in own]
        look: dict[str, Any] = {"color": colour(place), "marker": MARKERS[place % len(MARKERS)], "markersize": 4}
        alone = len(runs) == 1
        if both:
            other = {**look, "color": colour(1)} if alone else {**look, "linestyle": "--"}
            axes.plot(epochs, [row[-2] for row in own], label="training" if alone else name, **look)
            axes.plot(epochs, [row[-1] for row in own], label="validation" if alone else None, **other)
        else:
            axes.plot(epochs, [row[-1] for row in own], label=name, **look)
        best = run.result.get("best_epoch")
        if best:
            axes.axvline(best, color=colour(place) if not alone else "0.5", linestyle=":", linewidth=1)
    axes.set(title=title if not both or len(runs) == 1 else f"{title} (solid: training, dashed: validation)")
    axes.set_xlabel("epoch")
    axes.title.set_fontsize("medium")
    axes.locator_params(axis="x", integer=True)
    legend(axes)
    save(figure, file)
