"""Text classification: a label for each text."""

import logging
import sys
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from lora_core.models.labels import ProblemType
from lora_core.models.task_model import TaskModel
from trainers.config import RunConfig
from trainers.data.labels import problem_type_of
from trainers.data.reading import Reading
from trainers.data.splits import limited, stratified
from trainers.data.texts.augment import WordAugmentation
from trainers.data.texts.dataset import TextDataset
from trainers.data.texts.encode import KEPT, KEPT_OF_PAIR, EncodedTexts, encode_pairs, encode_texts
from trainers.data.texts.reader import load_text_datasets
from trainers.tasks.classification import TASKS, Classification
from trainers.tasks.label_scores import METRICS_OF, label_counts
from trainers.tasks.token import save_preprocessing, tokenizer_and_length
from trainers.training.losses import multi_label_loss, regression_loss, training_loss

__all__ = ["encode", "load", "save_preprocessing", "task"]

logger = logging.getLogger("trainers")

SETTINGS = frozenset(
    {"max_length", "long_text", "text_augment", "augment_share", "head", "tokenizer"}
    | {"confusing_words", "confusing_penalty"}
    | {"text_column", "pair_column", "label_column", "delimiter", "encoding", "problem_type"}
)
METRICS = tuple(dict.fromkeys(chain.from_iterable(METRICS_OF.values())))
ONE_LABEL: bool = True
PROBLEM_TYPES: tuple[ProblemType, ...] = tuple(METRICS_OF)

LONG_TEXT = 1024
"""Tokens from which on a text alone takes so much memory that the user is told."""


def load(config: RunConfig) -> dict[str, TextDataset]:
    """The splits of the run's data, or as much of them as the settings want."""
    datasets = load_text_datasets(
        config.data,
        on_bad_row=config.on_bad_row,
        reading=Reading.of(config),
        problem_type=config.problem_type,
    )
    return limited(datasets, config.train_examples, config.test_examples, stratified)


def encode(dataset: TextDataset, model: TaskModel, config: RunConfig, saved: Path | None = None) -> EncodedTexts:
    """The data set in the model's tokens, each text shortened to what the model can take, or to be cut into windows."""
    tokenizer, max_length = tokenizer_and_length(model, config, saved)
    if dataset.pairs is not None:
        segments, pad = model.base_model.segments, model.config.pad_token_id
        data = _encode_pairs(dataset, dataset.pairs, tokenizer, max_length, pad, segments, config)
        _say_shortened(dataset, data, max_length, KEPT_OF_PAIR)
        _say_long(dataset, data, max_length, config)
        return data
    eda = config.text_augment == "eda"
    longest = sys.maxsize if config.long_text == "windows" else max_length
    data = encode_texts(
        dataset.texts,
        dataset.targets,
        tokenizer,
        max_length,
        model.config.pad_token_id,
        config.long_text,
        WordAugmentation(config.augment_share, config.seed, longest) if eda else None,
    )
    _say_shortened(dataset, data, max_length, KEPT.get(config.long_text, ""))
    _say_long(dataset, data, max_length, config)
    return data


def _encode_pairs(
    dataset: TextDataset,
    pairs: list[str],
    tokenizer: Tokenizer,
    max_length: int,
    pad_token_id: int,
    segments: int,
    config: RunConfig,
) -> EncodedTexts:
    """Pairs of texts in the model's tokens.

    Raises:
        ValueError: a setting is for single texts.
    """
    for name, value, usual in (("long_text", config.long_text, "head"), ("text_augment", config.text_augment, "none")):
        if value != usual:
            raise ValueError(
                f"{name} is {value}, which is for single texts; {dataset.source} holds pairs. Leave it out."
            )
    return encode_pairs(dataset.texts, pairs, dataset.targets, tokenizer, max_length, pad_token_id, segments)


def _say_shortened(dataset: TextDataset, data: EncodedTexts, max_length: int, kept: str) -> None:
    if data.shortened:
        sizes = data.shortened, len(data), dataset.noun, max_length
        logger.warning("%s: %d of %d %s exceed %d tokens; %s is kept", dataset.source, *sizes, kept)


def _say_long(dataset: TextDataset, data: EncodedTexts, max_length: int, config: RunConfig) -> None:
    """Models that read thousands of tokens are given them, unless the settings say otherwise."""
    longest = min(int(data.lengths.max(initial=0)), max_length)
    if config.max_length is None and longest > LONG_TEXT:
        sizes = dataset.noun, longest, config.model, max_length, LONG_TEXT
        logger.warning(
            "%s: the longest of the %s has %d tokens and is computed as a whole, as %s allows (%d): memory and time of "
            "a step grow with it. --max-length %d bounds them.",
            dataset.source,
            *sizes,
        )


def task(labels: tuple[str, ...], config: RunConfig, train: EncodedTexts | None = None) -> Classification:
    """The loss and the scores. Where the settings do not say the problem type, it is that of the training targets."""
    problem_type = config.problem_type
    if problem_type == "auto":
        problem_type = "single_label_classification" if train is None else problem_type_of(train.targets)
    loss = None
    if train is not None:
        losses = {"single_label_classification": partial(training_loss, num_labels=len(labels)),
                  "multi_label_classification": multi_label_loss, "regression": regression_loss}  # fmt: skip
        loss = losses[problem_type](config, train.targets)
    return TASKS[problem_type](labels, loss, windows=config.long_text == "windows")


def label_ids(dataset: TextDataset) -> np.ndarray:
    """The label id of each example, (N,); of several labels 0 or 1 for each, (N * L,); or the numbers, (N,)."""
    return dataset.targets.reshape(-1)


counts = label_counts


def shown(dataset: TextDataset, index: int) -> str:
    """The text of an example; of a pair both, as in a table cell."""
    text = dataset.texts[index]
    return text if dataset.pairs is None else f"{text} || {dataset.pairs[index]}"
