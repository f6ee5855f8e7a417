"""A study: recipes of training, each with the same seeds, on the same data; which is best, by how much, at what price?

A TOML file names them:

    seeds = 5
    baseline = "full"
    [settings]                      # of all runs, as in --config
    data = "bionlp2004"
    epochs = 3
    [recipes.full]                  # and of each recipe
    method = "full"
    learning_rate = 1e-4
    [recipes.lora]
    target_modules = ["all-linear"]
    learning_rate = 2e-3

Recipes are chosen by validation scores. The test split is left alone until recipes are named to be scored on it, once,
when the choice is made. A search goes in rounds: all recipes with one seed, the best of them with more
(`Study.part`), in one folder. Each run is a process of its own with a folder and a log; what is finished is
not repeated, so a study can be interrupted, and extended by recipes and seeds.
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_core.files import write_json, write_text
from trainers.config import RunConfig
from trainers.results.significance import (
    counts_of_run,
    half_width,
    mean_bootstrap_interval,
    paired_interval,
)
from trainers.run_folder import Run, RunFolder, read_predictions, read_run
from trainers.series.run_process import RunProcess, read_plan, stopped_at_the_end, threads_for, usual_processes
from trainers.show import COLOURS, blank_figure, duration, markdown_table, plain_axes, progress_bar, save_figure
from trainers.training.learning_signs import sign_of_failure

KEYS = {"seeds", "baseline", "settings", "recipes"}
POLL = 0.2
"""Seconds between two looks at the processes."""
OF_THE_STUDY = ("seed", "output_dir", "resume", "overwrite", "score_test")
"""Settings that the study sets itself."""


@dataclass(frozen=True)
class Study:
    """What is tried."""

    recipes: dict[str, RunConfig]
    """Settings by name; seed and folder are not theirs to say."""
    seeds: int
    baseline: str
    """The recipe that the others are compared with."""

    @classmethod
    def read(cls, path: Path) -> "Study":
        """From a TOML file.

        Raises:
            ValueError: the file is none, or a recipe or a setting is wrong (the message says which).
        """
        values = read_plan(path, "a study is a TOML file of recipes")
        unknown = sorted(values.keys() - KEYS)
        if unknown:
            raise ValueError(f"{path}: unknown entry {unknown[0]!r}; a study has {', '.join(sorted(KEYS))}.")
        named, shared = values.get("recipes", {}), values.get("settings", {})
        if not named:
            raise ValueError(f"{path} names no recipe: add [recipes.NAME] with its settings.")
        recipes = {}
        for name, own in named.items():
            where = f"{path}, recipes.{name}"
            if not name.strip() or set(name) & set("/\\\0") or name in (".", ".."):
                raise ValueError(
                    f"{where}: a recipe has a folder of its name, so the name holds no slash. Choose another."
                )
            taken = [setting for setting in OF_THE_STUDY if setting in own or setting in shared]
            if taken:
                raise ValueError(f"{where}: {taken[0]} is set by the study. Leave it out.")
            recipes[name] = RunConfig.from_dict({**shared, **own}, where)
            if not recipes[name].data:
                raise ValueError(f"{where}: data is missing: a folder, a name in $LORA_DATA_DIR, or a hub id.")
        baseline = values.get("baseline", next(iter(recipes)))
        if baseline not in recipes:
            raise ValueError(f"{path}: the baseline {baseline!r} is no recipe; there are {', '.join(recipes)}.")
        seeds = values.get("seeds", 1)
        if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
            raise ValueError(f"{path}: seeds is {seeds!r}, expected how many, at least 1.")
        return cls(recipes, seeds, baseline)

    def part(self, recipes: Sequence[str], seeds: int | None = None) -> "Study":
        """The study of some recipes beside the baseline, with more or fewer seeds: the next round of a search.

        Args:
            recipes: their names; none: all.
            seeds: None: as the study has.

        Raises:
            ValueError: a name is no recipe's, or there are no seeds.
        """
        self.check_names(recipes)
        if seeds is not None and seeds < 1:
            raise ValueError(f"seeds must be at least 1, but it is {seeds}.")
        kept = {name: one for name, one in self.recipes.items() if not recipes or name in (*recipes, self.baseline)}
        return dataclasses.replace(self, recipes=kept, seeds=seeds or self.seeds)

    def check_names(self, names: Sequence[str]) -> None:
        """Raise ValueError for a name that is no recipe's."""
        unknown = [name for name in names if name not in self.recipes]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no recipe of the study; there are {', '.join(self.recipes)}.")

    def runs(self, folder: Path, test: Sequence[str] = ()) -> list[RunConfig]:
        """The settings of all runs, seed after seed, so that early results cover all recipes.

        Args:
            test: the recipes to score on test data too, beside the baseline; none: not even that.
        """
        return [
            dataclasses.replace(
                config,
                seed=config.seed + number,
                output_dir=folder / name / f"seed-{config.seed + number}",
                score_test=bool(test) and name in (*test, self.baseline),
            )
            for number in range(self.seeds)
            for name, config in self.recipes.items()
        ]


def run_study(
    study: Study, folder: Path, *, processes: int | None = None, threads: int | None = None, test: Sequence[str] = ()
) -> list[str]:
    """Run what is not finished, so many processes at a time; return what failed, one line each.

    Args:
        folder: it holds RECIPE/seed-N, and beside each its settings and a log of what it printed.
        processes: None: one for each core, as far as memory goes, or one where there is a GPU.
        threads: of each process; None: the cores shared out among them.
        test: the recipes to score on test data too, beside the baseline.

    Raises:
        KeyboardInterrupt: a signal has ended the study; the runs have written checkpoints.
    """
    waiting = [
        config for config in study.runs(folder, test) if not RunFolder(config.output_dir).is_finished(config.score_test)
    ]
    if processes is None:
        processes = usual_processes(len(waiting))
    threads = threads_for(processes, threads)
    running: list[RunProcess] = []
    failed: list[str] = []
    with stopped_at_the_end(running), progress_bar("runs", len(waiting), unit="run") as progress:
        while waiting or running:
            while waiting and len(running) < processes:
                running.append(RunProcess(waiting.pop(0), threads))
            for process in [each for each in running if each.status is not None]:
                running.remove(process)
                failed += [process.failure] if process.failure else []
                progress.update()
            time.sleep(POLL)
    return failed


@dataclass(frozen=True)
class RecipeResult:
    """A recipe's runs. Scores are from 0 to 1, differences in points."""

    recipe: str
    seeds: tuple[int, ...]
    trainable: int
    score: float
    """Mean over the seeds."""
    half_width: float | None
    """Of the 95% t interval of the mean; None of a single seed."""
    difference: float | None
    """To the baseline's runs of the same seeds, mean; None for the baseline, or where it has none of them."""
    over_seeds: tuple[float, float] | None
    """95% t interval of that difference; it knows the chance of a seed."""
    over_examples: tuple[float, float] | None
    """95% interval of the paired bootstrap of the examples; it knows the chance in their choice. Of F1 and accuracy."""
    collapsed: int
    """Runs that ended with a score of 0, one class for everything, or a loss that has not fallen."""
    seconds: float
    """Mean time of training."""
    tokens_per_second: float
    peak_memory_bytes: int
    """Most of any run."""


def study_results(
    study: Study, folder: Path, split: str = "validation", only: Sequence[str] = ()
) -> list[RecipeResult]:
    """What the finished runs say, best recipe first.

    Args:
        split: validation, by which recipes are chosen; or test.
        only: the recipes to show beside the baseline; all where it names none.

    Raises:
        ValueError: no run is finished, or a name is no recipe's.
    """
    study.check_names(only)
    runs: dict[str, dict[int, Run]] = {}
    for config in study.runs(folder):
        name = config.output_dir.parent.name
        if RunFolder(config.output_dir).is_finished(split == "test") and (not only or name in (*only, study.baseline)):
            runs.setdefault(name, {})[config.seed] = read_run(config.output_dir)
    if not runs:
        raise ValueError(f"{folder} holds no finished run of this study yet.")
    base = runs.get(study.baseline, {})
    found = [_result(name, own, base if name != study.baseline else {}, split) for name, own in runs.items()]
    return sorted(found, key=lambda result: -result.score)


def _result(name: str, runs: dict[int, Run], base: dict[int, Run], split: str) -> RecipeResult:
    scores = {seed: _score(run, split) for seed, run in runs.items()}
    shared = [seed for seed in runs if seed in base]
    differences = [100 * (scores[seed] - _score(base[seed], split)) for seed in shared]
    first = next(iter(runs.values()))
    return RecipeResult(
        recipe=name,
        seeds=tuple(runs),
        trainable=first.result["trainable"],
        score=float(np.mean(list(scores.values()))),
        half_width=half_width(list(scores.values())),
        difference=float(np.mean(differences)) if differences else None,
        over_seeds=paired_interval(differences) if differences else None,
        over_examples=_over_examples([runs[s] for s in shared], [base[s] for s in shared], split) if shared else None,
        collapsed=sum(map(_has_collapsed, runs.values())),
        seconds=float(np.mean([run.result["seconds"] for run in runs.values()])),
        tokens_per_second=float(np.mean([run.result["tokens_per_second"] for run in runs.values()])),
        peak_memory_bytes=max(run.result["peak_memory_bytes"] for run in runs.values()),
    )


def _has_collapsed(run: Run) -> bool:
    return bool(run.epochs) and sign_of_failure(run.epochs, run.config["metric"]) is not None


def _score_name(run: Run) -> str:
    """What recipes are compared by: the score that selects epochs; for a loss f1, and of a regression pearson."""
    metric, scores = run.config["metric"], run.result["validation"]
    wanted = "f1" if metric == "loss" else metric
    return wanted if wanted in scores else "pearson"


def _score(run: Run, split: str) -> float:
    if split not in run.result:
        raise ValueError(f"{run.folder} has no {split} scores: its data has no such split.")
    return run.result[split][_score_name(run)]


def _over_examples(ones: list[Run], others: list[Run], split: str) -> tuple[float, float] | None:
    score = _score_name(ones[0])
    if score not in ("f1", "accuracy"):
        return None
    count, labels = counts_of_run(ones[0], score), ones[0].result["labels"]
    one, other = ([count(*read_predictions(run.folder, split), labels) for run in runs] for runs in (ones, others))
    low, high = mean_bootstrap_interval(one, other, macro=one[0].shape[1] > 1)
    return 100 * low, 100 * high


def study_table(results: Sequence[RecipeResult], split: str) -> str:
    """A Markdown table; scores in percent, differences to the baseline in points."""
    header = ["recipe", "seeds", "trainable", "score", "difference", "over seeds", "over examples", "collapsed"]
    rows = [
        [
            result.recipe,
            str(len(result.seeds)),
            f"{result.trainable:,}",
            f"{100 * result.score:.2f}"
            + (f" ± {100 * result.half_width:.2f}" if result.half_width is not None else ""),
            "" if result.difference is None else f"{result.difference:+.2f}",
            *map(_shown, (result.over_seeds, result.over_examples)),
            str(result.collapsed),
            duration(result.seconds),
            f"{result.tokens_per_second:,.0f}",
            f"{result.peak_memory_bytes / 1e9:.2f} GB",
        ]
        for result in results
    ]
    runs = sum(len(result.seeds) for result in results)
    cost = duration(sum(result.seconds * len(result.seeds) for result in results))
    note = (
        f"Scores on the {split} split in percent, with the t interval of the mean over seeds. Difference to the "
        "baseline's runs of the same seeds; 95% intervals: t over the seeds, paired bootstrap over the examples. "
        f"Time is that of one run. All together: {runs} runs, {cost} of training."
    )
    return f"{markdown_table([*header, 'time', 'tokens/s', 'memory'], rows)}\n\n{note}\n"


def _shown(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else "{:+.2f} to {:+.2f}".format(*interval)


def write_study(results: Sequence[RecipeResult], folder: Path, split: str) -> list[Path]:
    """Write study.SPLIT.md, .json and .png into ``folder``; return their paths."""
    table = write_text(folder / f"study.{split}.md", study_table(results, split))
    figures = write_json(folder / f"study.{split}.json", [dataclasses.asdict(result) for result in results])
    picture = folder / f"study.{split}.png"
    _plot(results, split, picture)
    return [table, figures, picture]


def _plot(results: Sequence[RecipeResult], split: str, path: Path) -> None:
    """The score against trained parameters, and against time."""
    figure = blank_figure(11, 4.6 + 0.2 * (len(results) // 3))
    for axes, (title, scale, value) in zip(
        figure.subplots(1, 2, sharey=True),
        (
            ("trained parameters", "log", lambda result: result.trainable),
            ("minutes of training", "linear", lambda result: result.seconds / 60),
        ),
        strict=True,
    ):
        for number, result in enumerate(results):
            axes.errorbar(
                value(result),
                100 * result.score,
                yerr=None if result.half_width is None else 100 * result.half_width,
                fmt="osD^vPX*"[number // len(COLOURS) % 8],
                color=COLOURS[number % len(COLOURS)],
                capsize=3,
                label=result.recipe,
            )
        axes.set(xlabel=title, xscale=scale)
        plain_axes(axes)
    figure.axes[0].set_ylabel(f"{split} score (%)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save_figure(figure, path)
