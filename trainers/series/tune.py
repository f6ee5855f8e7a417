"""Search for settings: trials of a run, each with settings that Optuna proposes from ranges, weak ones ended early.

A TOML file says what is searched:

    [settings]                      # of all trials, as in --config
    data = "bionlp2004"
    epochs = 3
    [ranges.learning_rate]
    low = 1e-4
    high = 5e-3
    log = true
    [ranges.r]
    values = [8, 16, 32]

The proposals come from Optuna's tree-structured Parzen estimator (Bergstra et al. 2011, "Algorithms for Hyper-Parameter
Optimization"); a trial is ended after an epoch in which its score is below the median of the others at that epoch.
What is tried is kept in a journal beside the trials, or in a database: several processes, and several machines, work on
one search when they are given the same storage. Trials are judged by validation scores alone.
"""

import dataclasses
import itertools
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_core.files import make_folder, write_json, write_text
from trainers.config import RunConfig
from trainers.run_folder import RunFolder
from trainers.series.run_process import RunProcess, read_plan, selecting_score, stopped_at_the_end, threads_for
from trainers.show import COLOURS, blank_figure, duration, markdown_table, plain_axes, progress_bar, save_figure

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

KEYS = {"settings", "ranges"}
RANGE_KEYS = {"low", "high", "log", "step", "values"}
OF_THE_SEARCH = ("output_dir", "resume", "overwrite", "score_test")
"""Settings that the search sets itself."""
POLL = 0.5
"""Seconds between two looks at the trials."""
STARTUP = 5
"""Trials before proposals follow the scores, and before any is ended early."""
SHOWN = 10
"""Trials of the table."""
WORKER = "worker"
"""The attribute of a trial that tells which process has it: host:pid."""
SEEN, HEARTBEAT, SILENT = "seen", 60, 600
"""That which tells when its process last looked at it; how often it does, and after how long it is taken for gone, in
seconds."""
FOLDER = "folder"
"""That which names its folder: another than its number says, if it was taken up again."""
PLAN = "plan"
"""The attribute of a search that holds its settings and ranges."""
ERROR = "error"
"""That which says why it failed."""
RECIPE_HEAD = "# The best settings of a search: lora-core train --config THIS_FILE --output-dir FOLDER\n"


@dataclass(frozen=True)
class Range:
    """The values that a setting may have."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    """Whether values are drawn evenly on a logarithmic scale."""
    step: float | None = None
    values: tuple[Any, ...] = ()
    """Instead of low and high: the choices."""

    @classmethod
    def read(cls, given: Any, where: str) -> "Range":
        """From a parsed table of the file.

        Raises:
            ValueError: it is no range.
        """
        if not isinstance(given, dict) or not given.keys() <= RANGE_KEYS:
            raise ValueError(f"{where} is {given!r}, expected low and high (and log or step), or values.")
        if "values" in given:
            if given.keys() != {"values"} or not isinstance(given["values"], list) or not given["values"]:
                raise ValueError(f"{where}: values is a list of choices, and stands alone.")
            return cls(values=tuple(given["values"]))
        for name in ("low", "high"):
            if not isinstance(given.get(name), (int, float)) or isinstance(given.get(name), bool):
                raise ValueError(f"{where}: {name} is {given.get(name)!r}, expected a number.")
        if not given["low"] < given["high"] or (given.get("log") and (given["low"] <= 0 or "step" in given)):
            raise ValueError(
                f"{where} is {given!r}: low must be below high, above 0 on a log scale, which has no step."
            )
        return cls(**given)

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that stand for all, to be checked beforehand."""
        return self.values or (self.low, self.high)

    def suggest(self, trial: "Trial", name: str) -> Any:
        """The value that Optuna proposes."""
        if self.values:  # Optuna wants plain values, and lists are not
            return json.loads(trial.suggest_categorical(name, [json.dumps(value) for value in self.values]))
        assert self.low is not None
        assert self.high is not None
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log, step=int(self.step or 1))
        return trial.suggest_float(name, self.low, self.high, log=self.log, step=self.step)


@dataclass(frozen=True)
class Search:
    """What is searched."""

    settings: dict[str, Any]
    """Of all trials."""
    ranges: dict[str, Range]
    where: str
    """The file."""

    @classmethod
    def read(cls, path: Path) -> "Search":
        """From a TOML file.

        Raises:
            ValueError: the file is none, or a setting, a range or a value in it is wrong (the message says which).
        """
        values = read_plan(path, "a search is a TOML file of settings and ranges")
        unknown = sorted(values.keys() - KEYS)
        if unknown:
            raise ValueError(f"{path}: unknown entry {unknown[0]!r}; a search has [settings] and [ranges.NAME].")
        settings, given = values.get("settings", {}), values.get("ranges", {})
        if not given:
            raise ValueError(f"{path} has no range: add [ranges.learning_rate] with low and high, or values.")
        for name in OF_THE_SEARCH:
            if name in settings or name in given:
                raise ValueError(f"{path}: {name} is set by the search. Leave it out.")
        ranges = {name: Range.read(value, f"{path}, ranges.{name}") for name, value in given.items()}
        twice = sorted(settings.keys() & ranges.keys())
        if twice:
            raise ValueError(f"{path}: {twice[0]} has a value in [settings] and a range. Leave one out.")
        search = cls(settings, ranges, str(path))
        for name, one in ranges.items():
            for value in one.ends:
                search.config({name: value})
        if not search.config({}).data:
            raise ValueError(f"{path}: data is missing in [settings]: a folder, a name in $LORA_DATA_DIR, or a hub id.")
        return search

    def config(self, chosen: dict[str, Any]) -> RunConfig:
        """The settings of a trial."""
        return RunConfig.from_dict({**self.settings, **chosen}, self.where)

    @property
    def higher_is_better(self) -> bool:
        """Whether the score is to be large; a loss is to be small."""
        return self.config({}).metric != "loss"


def open_search(search: Search, folder: Path, storage: str = "") -> "Study":
    """The search's record, which several processes may share.

    Args:
        folder: of the trials.
        storage: empty: the file journal.log in ``folder``; a path: such a file; or an SQL URL, as of SQLAlchemy.

    Raises:
        ModuleNotFoundError: Optuna is not installed.
        ValueError: the record is that of another search.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("tune needs Optuna: pip install 'lora-core[tune]'", name=error.name) from error
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if "://" in storage:
        kept = RDBStorage(storage)
    else:
        path = Path(storage) if storage else make_folder(folder) / "journal.log"
        make_folder(path.parent)
        kept = JournalStorage(JournalFileBackend(str(path)))
    study = optuna.create_study(
        storage=kept,
        study_name=folder.resolve().name,
        direction="maximize" if search.higher_is_better else "minimize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(n_startup_trials=STARTUP, constant_liar=True),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
    )
    plan = json.dumps([search.settings, {name: str(one) for name, one in search.ranges.items()}], sort_keys=True)
    if study.user_attrs.setdefault(PLAN, plan) != plan:
        raise ValueError(
            f"{storage or folder} holds a search named {study.study_name!r} with other settings or ranges than "
            f"{search.where}: its trials do not compare. Choose another --output-dir."
        )
    study.set_user_attr(PLAN, plan)
    return study


def run_search(
    search: Search, study: "Study", folder: Path, trials: int, *, processes: int = 1, threads: int | None = None
) -> None:
    """Make trials until ``trials`` have ended, in full or early, over all that share the record.

    Args:
        folder: each trial is the run in trial-N of it, with its settings and log beside it.
        processes: trials at a time.
        threads: of each process; None: the cores shared out among them.

    Raises:
        ValueError: trial after trial fails; with what the last one said.
        KeyboardInterrupt: a signal has ended the search. Its trials are gone on with by the next call.
    """
    from optuna.trial import TrialState

    threads = threads_for(processes, threads)
    ended, begun = (TrialState.COMPLETE, TrialState.PRUNED), (TrialState.RUNNING, TrialState.WAITING)
    running: dict[RunProcess, _Watch] = {}
    failures = 0
    with stopped_at_the_end(running), progress_bar("trials", trials, unit="trial") as progress:
        while True:
            _take_up(study)
            done = _count(study, ended)
            if done != progress.n:
                progress.update(done - progress.n)
            if done >= trials and not running:
                return
            while len(running) < processes and (
                _count(study, (TrialState.WAITING,)) or _count(study, (*ended, *begun)) < trials
            ):
                watch = _Watch(study, study.ask())
                running[watch.start(search, folder, threads)] = watch
            for process, watch in list(running.items()):
                state = watch.look(process)
                if state is not None:
                    del running[process]
                    failures = failures + 1 if state == TrialState.FAIL else 0
                if failures == STARTUP:
                    raise ValueError(f"{failures} trials in a row have failed. The last: {process.failure}")
            time.sleep(POLL)


def _count(study: "Study", states: Sequence[Any]) -> int:
    return len(study.get_trials(deepcopy=False, states=tuple(states)))


class _Watch:
    """What is known of a trial that this process runs."""

    def __init__(self, study: "Study", trial: "Trial") -> None:
        self.study, self.trial = study, trial
        self._reported = 0
        """The last epoch that Optuna knows of."""
        self._seen = 0.0

    def start(self, search: Search, folder: Path, threads: int) -> RunProcess:
        """Begin the trial's run, or go on with it."""
        self.trial.set_user_attr(WORKER, _worker())
        if FOLDER not in self.trial.user_attrs:
            self.trial.set_user_attr(FOLDER, f"trial-{self.trial.number}")
        chosen = {name: one.suggest(self.trial, name) for name, one in search.ranges.items()}
        place = folder / self.trial.user_attrs[FOLDER]
        return RunProcess(dataclasses.replace(search.config(chosen), output_dir=place, score_test=False), threads)

    def look(self, process: RunProcess) -> Any:
        """Report the epochs that have ended, end a weak trial early; the trial's state if it has ended, else None."""
        from optuna.trial import TrialState

        if time.time() - self._seen > HEARTBEAT:
            self._seen = time.time()
            self.trial.set_user_attr(SEEN, self._seen)
        status, epochs = process.status, process.epochs()
        for event in epochs:
            if event["epoch"] > self._reported:
                self._reported = event["epoch"]
                self.trial.report(selecting_score(process.config, event["validation"]), self._reported)
        if status is None:
            weak = bool(epochs) and self._reported < process.most_epochs and self.trial.should_prune()
            if not weak:
                return None
            process.stop()
            self.study.tell(self.trial, state=TrialState.PRUNED)
            return TrialState.PRUNED
        result = RunFolder(process.config.output_dir).result()
        if status or result is None:
            self.trial.set_user_attr(ERROR, process.failure)
            self.study.tell(self.trial, state=TrialState.FAIL)
            return TrialState.FAIL
        self.study.tell(self.trial, selecting_score(process.config, result["validation"]))
        return TrialState.COMPLETE


def _worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _take_up(study: "Study") -> None:
    """Trials whose process is gone are waiting again, and go on in their folder."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        attributes = trial.user_attrs
        if FOLDER in attributes and _is_abandoned(attributes[WORKER], attributes.get(SEEN)):
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            study.enqueue_trial(trial.params, user_attrs={FOLDER: attributes[FOLDER]})


def _is_abandoned(worker: str, seen: float | None) -> bool:
    """Whether a worker is gone: of this machine, when its process is; of others, when it has been silent for long."""
    host, _, number = worker.rpartition(":")
    if host != socket.gethostname():
        return seen is not None and time.time() - seen > SILENT
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def best_settings(search: Search, study: "Study") -> RunConfig:
    """The settings of the best trial that ended in full.

    Raises:
        ValueError: none has yet.
    """
    if not _scored(study):
        raise ValueError(f"No trial of {search.where} has ended yet: the logs beside the trials say why.")
    return search.config(_chosen(search, study.best_trial))


def _chosen(search: Search, trial: "FrozenTrial") -> dict[str, Any]:
    """The values of a trial by setting."""
    return {
        name: json.loads(value) if search.ranges[name].values else value
        for name, value in trial.params.items()
        if name in search.ranges
    }


def search_table(search: Search, study: "Study") -> str:
    """A Markdown table of the best trials, and what the search took."""
    from optuna.trial import TrialState

    all_trials = study.get_trials(deepcopy=False)
    scored = sorted(_scored(study), key=lambda pair: pair[1], reverse=search.higher_is_better)
    rows = [
        [
            trial.user_attrs[FOLDER],
            f"{100 * score:.2f}" if search.higher_is_better else f"{score:.4f}",
            *(_plain(value) for value in _chosen(search, trial).values()),
        ]
        for trial, score in scored[:SHOWN]
    ]
    metric = search.config({}).metric
    table = markdown_table(["trial", f"validation {metric}", *search.ranges], rows)
    counts = {state: sum(trial.state == state for trial in all_trials) for state in TrialState}
    spent = sum((trial.duration.total_seconds() for trial in all_trials if trial.duration), 0.0)
    note = (
        f"{counts[TrialState.COMPLETE]} trials ended in full, {counts[TrialState.PRUNED]} early, "
        f"{counts[TrialState.FAIL]} failed or were taken up again; {duration(spent)} in all."
    )
    return f"{table}\n\n{note}\n"


def write_search(search: Search, study: "Study", folder: Path) -> list[Path]:
    """Write search.md, search.json, search.png and run.toml, the best settings for `train`; return their paths."""
    best = best_settings(search, study)
    trials = [
        {
            "trial": trial.number,
            "folder": trial.user_attrs.get(FOLDER),
            "state": trial.state.name.lower(),
            "score": trial.value,
            "settings": _chosen(search, trial),
            "error": trial.user_attrs.get(ERROR),
        }
        for trial in study.get_trials(deepcopy=False)
    ]
    picture = folder / "search.png"
    _plot(search, study, picture)
    return [
        write_text(folder / "search.md", search_table(search, study)),
        write_json(folder / "search.json", trials),
        picture,
        write_text(folder / "run.toml", f"{RECIPE_HEAD}{best.to_toml()}"),
    ]


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _scored(study: "Study") -> list[tuple["FrozenTrial", float]]:
    """The trials that ended in full, with their scores."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [(trial, trial.value) for trial in trials if trial.value is not None]


def _plot(search: Search, study: "Study", path: Path) -> None:
    """The best score so far by trial, and every trial's score by each setting."""
    factor = 100 if search.higher_is_better else 1
    trials = [trial for trial, _ in _scored(study)]
    scores = [factor * score for _, score in _scored(study)]
    figure = blank_figure(4.0 * (1 + len(search.ranges)), 3.8)
    history, *slices = figure.subplots(1, 1 + len(search.ranges), sharey=True, squeeze=False)[0]
    best = itertools.accumulate(scores, max if search.higher_is_better else min)
    history.plot([trial.number for trial in trials], scores, "o", color=COLOURS[5], label="trial")
    history.step([trial.number for trial in trials], list(best), where="post", color=COLOURS[0], label="best so far")
    history.set(xlabel="trial", ylabel=f"validation {search.config({}).metric}" + (" (%)" if factor == 100 else ""))
    history.legend(frameon=False)
    for axes, (name, one) in zip(slices, search.ranges.items(), strict=True):
        values = [_chosen(search, trial)[name] for trial in trials]
        axes.plot([_plain(value) for value in values] if one.values else values, scores, "o", color=COLOURS[0])
        axes.set(xlabel=name, xscale="log" if one.log else axes.get_xscale())
    for axes in (history, *slices):
        plain_axes(axes)
    save_figure(figure, path)
