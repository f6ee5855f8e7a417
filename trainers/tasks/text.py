"""Text classification: a label for each text."""

import logging

from lora_core.models.heads import TaskModel
from trainers.config import RunConfig
from trainers.data.text_readers import TextDataset, load_text_datasets
from trainers.data.texts import EncodedTexts, encode_texts
from trainers.tasks.classify import Classification
from trainers.tasks.token import save_preprocessing, tokenizer_and_length

__all__ = ["encode", "load", "save_preprocessing", "task"]

logger = logging.getLogger("trainers")

_KEPT = {"head": "the beginning", "head_tail": "half from each end"}


def load(config: RunConfig) -> dict[str, TextDataset]:
    """The splits of the run's data."""
    return load_text_datasets(config.data, on_bad_row=config.on_bad_row)


def encode(dataset: TextDataset, model: TaskModel, config: RunConfig) -> EncodedTexts:
    """The data set in the model's tokens, each text shortened to what the model can take."""
    tokenizer, max_length = tokenizer_and_length(model, config)
    data = encode_texts(
        dataset.texts, dataset.targets, tokenizer, max_length, model.config.pad_token_id, config.long_text
    )
    if data.shortened:
        logger.warning("%s: %d of %d texts exceed %d tokens; %s is kept", dataset.source, data.shortened, len(data),
                       max_length, _KEPT[config.long_text])  # fmt: skip
    return data


def task(labels: tuple[str, ...], config: RunConfig) -> Classification:
    """The loss and the scores."""
    return Classification(labels)
