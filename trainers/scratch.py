"""Models that start from nothing: their vocabulary, from the training texts or from another model, and their sizes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from tokenizers.trainers import WordLevelTrainer

from lora_core.models import build_model, config_from_dict
from lora_core.models.config import read_config
from lora_core.models.source import resolve
from lora_core.models.task_model import TaskModel
from trainers.config import RunConfig
from trainers.data.text_readers import TextDataset
from trainers.data.token_files import TokenDataset
from trainers.data.tokenizer import load_tokenizer

SCRATCH = ("lstm", "bilstm-attention")
"""Names of the models, which are their model_type too."""
PAD, UNKNOWN, END = "[PAD]", "[UNK]", "[SEP]"
LEAST_COUNT = 2
"""How often a word must occur in the training texts to get an embedding of its own."""
MOST_WORDS = 50_000
LONGEST = 512
"""Longest input in tokens where the run does not say."""
TOKENIZER_FILE = "tokenizer.json"


def is_scratch(config: RunConfig) -> bool:
    """Whether the run's model starts from nothing."""
    return config.model in SCRATCH


def build_vocabulary(texts: Iterator[str]) -> Tokenizer:
    """A tokenizer whose tokens are the lower-cased words and punctuation marks that the texts hold more than once.

    Every text ends in [SEP], so none is empty. The same texts give the same ids.
    """
    tokenizer = Tokenizer(WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(texts, WordLevelTrainer(
        vocab_size=MOST_WORDS, min_frequency=LEAST_COUNT, special_tokens=[PAD, UNKNOWN, END], show_progress=False
    ))  # fmt: skip
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return tokenizer


def write_vocabulary(config: RunConfig, train: Any) -> None:
    """Write tokenizer.json of the run's own vocabulary into its folder; nothing where it takes another model's.

    Raises:
        ValueError: as `scratch_model`, before anything is written.
    """
    _check_method(config)
    if config.tokenizer:
        return
    config.output_dir.mkdir(parents=True, exist_ok=True)
    build_vocabulary(_texts(train.in_memory())).save(str(config.output_dir / TOKENIZER_FILE))


def tokenizer_folder(config: RunConfig) -> Path:
    """Where the tokenizer of the run's model is.

    Raises:
        ValueError: `tokenizer` is set for a model that has its own.
    """
    if not is_scratch(config):
        if config.tokenizer:
            raise ValueError(
                f"tokenizer is {config.tokenizer!r}, but {config.model} has its own. Leave it out, or train a model "
                f"from scratch: {', '.join(SCRATCH)}."
            )
        return resolve(config.model)
    return resolve(config.tokenizer) if config.tokenizer else config.output_dir


def scratch_model(config: RunConfig, labels: tuple[str, ...]) -> TaskModel:
    """The untrained model for the run's vocabulary.

    Raises:
        ValueError: the method would leave the untrained weights as they are.
    """
    _check_method(config)
    folder = tokenizer_folder(config)
    vocabulary = load_tokenizer(folder).get_vocab(with_added_tokens=True)
    padding = read_config(folder).get("pad_token_id", 0) if config.tokenizer else vocabulary[PAD]
    sizes = {"model_type": config.model, "vocab_size": max(vocabulary.values()) + 1, "pad_token_id": padding,
             "max_tokens": config.max_length or LONGEST}  # fmt: skip
    encoder = config_from_dict(sizes).with_dropout(attention=config.attention_dropout, hidden=config.hidden_dropout)
    model = build_model(encoder, config.task, labels, head=config.head, seed=config.seed)
    assert isinstance(model, TaskModel)
    return model


def _check_method(config: RunConfig) -> None:
    if config.method != "full":
        raise ValueError(f"method is {config.method!r}, but {config.model} starts untrained: use method full.")


def _texts(train: TextDataset | TokenDataset) -> Iterator[str]:
    if isinstance(train, TextDataset):
        yield from train.texts
    else:
        for words in train.words:
            yield from words
