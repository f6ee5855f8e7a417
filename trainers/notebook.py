"""Training from Python: examples in memory in, an object that predicts and saves out.

trained = trainers.train({"train": frame}, task="text-classification", output_dir="runs/mine")
trained.predict(["what a film"])
trained.save("my-model")
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np

from trainers.config import RunConfig
from trainers.data.images.batches import ImageDataset
from trainers.data.sources import SPLIT_NAMES, split_in_name
from trainers.data.splits import HELD_OUT, SPLIT_SEED, hold_out, stratified_split, take
from trainers.data.table import column_of, rows_of
from trainers.data.texts.dataset import TextDataset
from trainers.data.tokens.bio import OUTSIDE
from trainers.data.tokens.reader import TokenDataset
from trainers.experiment import logger, run
from trainers.monitor.tracking import Tracker
from trainers.processes.interrupt import Interrupted
from trainers.run_folder import Run
from trainers.serve import pipeline
from trainers.serve.merge import merge
from trainers.serve.pipeline import Pipeline
from trainers.tasks import kind_of

TASK_OF: dict[type, str] = {
    TokenDataset: "token-classification",
    TextDataset: "text-classification",
    ImageDataset: "image-classification",
}
WORD_COLUMNS = ("tokens", "words")
TAG_COLUMNS = ("ner_tags", "tags", "labels")


FLAG = re.compile(r"--(no-)?([a-z]+(?:-[a-z]+)*)(?: ([\w.,/-]*\w))?( \(in Python [^)]*\))?")
"""A flag of the command line in a message, with what follows it."""


@dataclass(frozen=True, repr=False)
class TrainedRun(Run):
    """What `train` gives back: the run's scores, and its model at work."""

    def __repr__(self) -> str:
        return self.summary

    @cached_property
    def _pipeline(self) -> Pipeline:
        return pipeline(model=self.folder)

    def predict(self, inputs: Any) -> Any:
        """Predictions for one input, a list of them, or a table such as that of training, as `trainers.pipeline` makes
        them."""
        return self._pipeline(inputs)

    def save(self, folder: str | Path) -> Path:
        """Write the model, adapters merged, into a folder in the transformers layout, with what its inputs need."""
        return merge(self.folder, folder)


def train(data: Any, *, trackers: Sequence[Tracker] = (), **settings: Any) -> TrainedRun:
    """Train and test a model on data in memory.

    Args:
        data: the splits "train" and perhaps "validation" and "test" by name, or the training examples alone. Each is a
            TokenDataset, TextDataset or ImageDataset; or a pandas DataFrame, a datasets.Dataset, a list of dicts or a
            dict of lists, whose columns hold words and tags ("tokens", "ner_tags"), or what the settings text_column,
            pair_column and label_column name. Without a validation split a tenth of the training examples becomes it.
        trackers: objects with `start`, `log` and `finish` (trainers/monitor/tracking.py) that are told the run's
            figures; those that have a name go into the setting `track`.
        settings: fields of RunConfig; output_dir may be a string, target_modules a list.

    Returns:
        The run, with `predict(inputs)` and `save(folder)`. All that it measured is in its folder too.

    Raises:
        ValueError: a setting is unknown (with the nearest name), or the data does not fit the task (the message says
            where).
        KeyboardInterrupt: training was interrupted, and has left a checkpoint: the same call with resume="auto" goes
            on. SIGTERM does the same.
    """
    with _keywords_for_flags():
        return _train(data, settings, trackers)


def _train(data: Any, settings: dict[str, Any], trackers: Sequence[Tracker]) -> TrainedRun:
    config = RunConfig.from_dict(settings, "trainers.train")
    kind_of(config.task)
    splits = _splits_of(data)
    datasets = {name: _dataset(split, config, f"the {name} split") for name, split in splits.items()}
    if "train" in datasets and "validation" not in datasets:
        datasets["train"], datasets["validation"] = _held_out(datasets["train"])
        sizes = len(datasets["train"]), len(datasets["validation"])
        logger.warning("no validation split: %d training examples stay, %d became one", *sizes)
    done = run(config, datasets, trackers)
    return TrainedRun(**{name: getattr(done, name) for name in done.__dataclass_fields__})


@contextmanager
def _keywords_for_flags() -> Iterator[None]:
    """Errors, what a signal ends, and what is logged name the keywords of `train`, not flags of the command line."""
    make = logging.getLogRecordFactory()

    def with_keywords(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if record.name.partition(".")[0] == "trainers" and "--" in (message := record.getMessage()):
            record.msg, record.args = FLAG.sub(_keyword, message), ()
        return record

    logging.setLogRecordFactory(with_keywords)
    try:
        yield
    except (ValueError, FloatingPointError, ModuleNotFoundError, Interrupted) as error:
        if len(error.args) == 1 and isinstance(error.args[0], str):
            error.args = (FLAG.sub(_keyword, error.args[0]),)
        raise
    finally:
        logging.setLogRecordFactory(make)


def _keyword(flag: re.Match[str]) -> str:
    """A flag of the command line, with its value if that is what follows it, as a keyword of `train`."""
    negated, name, word, in_python = flag[1], flag[2].replace("-", "_"), flag[3], flag[4] or ""
    field = RunConfig.__dataclass_fields__.get(name)
    if field is None:
        return flag[0]
    rest = f" {word}" if word else ""
    if isinstance(field.default, bool):
        return f"{name}={not negated}{rest}{in_python}"
    values = {"resume": ("auto",)}.get(name, get_args(get_type_hints(RunConfig)[name]))
    if word in values or (word and (word[0].isdecimal() or word.isupper())):
        is_number = isinstance(field.default, (int, float)) or type(None) in values
        return f"{name}={word}" if is_number else f'{name}="{word}"'
    return f"{name}{rest}{in_python}"


def _dataset(split: Any, config: RunConfig, source: str) -> Any:
    """A split as a data set of the run's task."""
    for kind, task in TASK_OF.items():
        if isinstance(split, kind):
            if task != config.task:
                raise ValueError(f"{source} is a {kind.__name__}, but task is {config.task!r}. Pass task={task!r}.")
            return split
    if hasattr(split, "with_labels"):
        return split
    if config.task == "token-classification":
        return _tagged(split, source)
    columns = {"label_column": config.label_column, "source": source}
    if config.task == "image-classification":
        return ImageDataset.from_table(split, **columns)
    return TextDataset.from_table(split, text_column=config.text_column, pair_column=config.pair_column, **columns)


def _tagged(table: Any, source: str) -> TokenDataset:
    rows, names = rows_of(table, source)
    words = column_of(rows, "", WORD_COLUMNS, "the words", source)
    tags = column_of(rows, "", TAG_COLUMNS, "the tags", source)
    return TokenDataset.from_lists(
        [row[words] for row in rows], [row[tags] for row in rows], names=names.get(tags), source=source
    )


def _splits_of(data: Any) -> dict[str, Any]:
    """The splits by their names here; a table without such names is the training split.

    Raises:
        ValueError: a name beside those of splits is none's, two mean the same, or there is nothing to train on.
    """
    if not isinstance(data, Mapping):
        return {"train": data}
    meant = {name: split_in_name(name) if isinstance(name, str) else None for name in data}
    if data and "train" not in meant.values() and not all(meant.values()):
        return {"train": data}  # columns by name
    for name, split in meant.items():
        if split is None:
            raise ValueError(f"{name!r} is no split; there are {', '.join(SPLIT_NAMES)}.")
        if list(meant.values()).count(split) > 1:
            raise ValueError(f"several splits mean {split}: {', '.join(n for n, s in meant.items() if s == split)}.")
    if data and "train" not in meant.values():
        raise ValueError(f"there is no train split among {', '.join(map(str, data))}.")
    return {meant[name] or "": split for name, split in data.items()}


def _held_out(train: Any) -> tuple[Any, Any]:
    """The rest, and about a tenth of the examples, of each label its share; equal examples stay on one side."""
    if not isinstance(train, TokenDataset):
        return hold_out(train)
    numbers: dict[tuple[str, ...], int] = {}
    groups = np.array([numbers.setdefault(tuple(words), len(numbers)) for words in train.words])
    outside = train.labels.index(OUTSIDE)
    entities = [(row, tag) for row, tags in enumerate(train.tags) for tag in tags if tag != outside]
    rows, types = np.array(entities, dtype=np.int64).reshape(-1, 2).T
    held_out = stratified_split(groups, (rows, types), [1 - HELD_OUT, HELD_OUT], SPLIT_SEED) == 1
    if not held_out.any() or held_out.all():
        raise ValueError(
            f"{train.source} holds {len(numbers)} different sentences, too few to set some aside for scoring. Add "
            "some, or give a validation split."
        )
    return take(train, np.flatnonzero(~held_out)), take(train, np.flatnonzero(held_out))
