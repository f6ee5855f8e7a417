"""Token classification: a label for each word."""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from lora_core.models.crf import crf_log_likelihood
from lora_core.models.decoding import split_scores, viterbi
from lora_core.models.host import on_both, on_host
from lora_core.models.labels import ProblemType
from lora_core.models.task_model import TaskModel
from trainers.config import RunConfig
from trainers.data.labels import Decision
from trainers.data.reading import AS_FOUND, Reading
from trainers.data.splits import limited
from trainers.data.texts.encode import TextProcessing
from trainers.data.tokenizer import StatedLimits, check_vocabulary, load_tokenizer, save_tokenizer
from trainers.data.tokens.bio import iob2_transitions
from trainers.data.tokens.encode import Sentences, load_windows
from trainers.data.tokens.reader import TokenDataset, TokenFile, completed, token_files
from trainers.data.tokens.windows import IGNORED_LABEL, TokenWindows
from trainers.model import is_scratch, positions, tokenizer_folder
from trainers.tasks.entity_scores import NER_METRICS, entity_counts, ner_metrics
from trainers.training.losses import TrainingLoss, training_loss

logger = logging.getLogger(__name__)

SETTINGS = frozenset(
    {"max_length", "head", "crf_constraints", "tokenizer", "cache", "columns", "delimiter", "encoding"}
)
METRICS = NER_METRICS
ONE_LABEL: bool = False
PROBLEM_TYPES: tuple[ProblemType, ...] = ()


@dataclass(frozen=True)
class TokenClassification:
    """Named entity recognition with BIO labels. Legend: B windows, T tokens, L labels."""

    labels: tuple[str, ...]
    """Label names in the order of the logits."""
    loss: TrainingLoss | None = None
    """What training minimises; None: `loss_sum`."""

    def training_loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """As `loss_sum`, with the run's class weights, focus and smoothing."""
        return self.loss_sum(logits, labels) if self.loss is None else self.loss(logits, labels)

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Summed cross-entropy of logits (B, T, L) over the labelled positions of labels (B, T)."""
        return F.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
        )

    def predict(self, logits: Tensor, labels: Tensor) -> list[np.ndarray]:
        """The best label id of every position, (T,) for each window."""
        return list(logits.argmax(-1).cpu().numpy())

    def examples(self, predictions: list[np.ndarray], data: TokenWindows) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Predicted and true label ids of each whole sentence's scored words, each word once."""
        gold = data.words_from(np.split(data.labels, data.offsets[1:-1]))
        predicted = data.words_from(predictions)
        scored = [words != IGNORED_LABEL for words in gold]
        return (
            [words[keep] for words, keep in zip(predicted, scored, strict=True)],
            [words[keep] for words, keep in zip(gold, scored, strict=True)],
        )

    def metrics(self, predictions: list[np.ndarray], data: TokenWindows) -> dict[str, Any]:
        """Entity scores over whole sentences."""
        predicted, gold = self.examples(predictions, data)
        return ner_metrics([self._names(words) for words in gold], [self._names(words) for words in predicted])

    def decided(self, predictions: list[np.ndarray], data: TokenWindows) -> "TokenClassification":
        """Itself: nothing is chosen."""
        return self

    @property
    def decision(self) -> Decision:
        """Nothing to keep: the best label is given."""
        return Decision()

    def _names(self, ids: np.ndarray) -> list[str]:
        return [self.labels[index] for index in ids]


@dataclass(frozen=True)
class CRFTokenClassification(TokenClassification):
    """The same with whole sequences of labels: the logits (B, T + 1 + L, L) are the scores of CRFHead.

    A sequence is the labelled words of one window. A sentence that is longer than a window is scored and decoded in
    parts, each word in the window that owns it; a part begins anew, as a sentence does.
    """

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Summed negative log-likelihood of the windows' sequences; each counts as many labels as it has words."""
        return -crf_log_likelihood(*split_scores(logits.float()), labels, labelled(labels)).sum()

    def predict(self, logits: Tensor, labels: Tensor) -> list[np.ndarray]:
        """The best sequence, label ids (T,) for each window; 0 where there is no label."""
        scores = split_scores(logits.float().cpu().numpy())
        return list(viterbi(*scores, labelled(on_host(labels)).numpy()))


def labelled(labels: Tensor) -> Tensor:
    """Where there is a label, (B, T)."""
    return on_both(lambda ids: ids != IGNORED_LABEL, labels)


def load(config: RunConfig) -> dict[str, TokenFile | TokenDataset]:
    """The splits of the run's data, the missing ones drawn; in memory, where the settings want a part of them."""
    files = completed(token_files(config.data, reading=Reading.of(config)))
    return limited(files, config.train_examples, config.test_examples, lambda file, limit: file.drawn(limit, seed=0))


def encode(dataset: Sentences, model: TaskModel, config: RunConfig, saved: Path | None = None) -> TokenWindows:
    """The data set in the model's tokens, cut into windows that the model can take."""
    tokenizer, max_length = tokenizer_and_length(model, config, saved)
    return load_windows(dataset, tokenizer, max_length, model.config.pad_token_id, cache=config.cache)


def tokenizer_and_length(model: TaskModel, config: RunConfig, saved: Path | None = None) -> tuple[Tokenizer, int]:
    """The model's tokenizer, and the most tokens of one input, of a finished run as it saved them in a folder.

    Raises:
        ValueError: they do not fit the model.
    """
    tokenizer = load_tokenizer(saved or tokenizer_folder(config))
    check_vocabulary(tokenizer, model.config.vocab_size)
    longest = model.config.max_tokens
    if config.max_length is not None and config.max_length > longest:
        raise ValueError(f"max_length is {config.max_length}, but {config.model} has positions for {longest} tokens.")
    stated = text_processing(config, saved).max_length or longest
    if config.max_length is None and saved is None and stated < longest:
        logger.info(
            "%s is read in at most %d tokens at a time, as it says (model_max_length), though it has positions for %d. "
            "--max-length %d says otherwise.",
            config.model,
            stated,
            longest,
            longest,
        )
    return tokenizer, min(stated, longest)


def text_processing(config: RunConfig, saved: Path | None = None) -> TextProcessing:
    """How long texts end: as the settings say, or else what a finished run saved, or for a new one the checkpoint."""
    if saved is not None:
        own = TextProcessing.read(saved)
        reading = Reading.of(config) if own.reading == AS_FOUND else own.reading
        longest = config.max_length or own.max_length
        return TextProcessing(longest, config.long_text, own.pairs, reading)
    stated = None if is_scratch(config) else StatedLimits.read(tokenizer_folder(config)).max_length
    return TextProcessing(config.max_length or stated, config.long_text, reading=Reading.of(config))


def task(labels: tuple[str, ...], config: RunConfig, train: TokenWindows | None = None) -> TokenClassification:
    """The loss and the entity scores.

    Raises:
        ValueError: the head is a CRF, and the loss is to be weighted or smoothed; or the training data does what
            `crf_constraints` forbids.
    """
    loss = None if train is None else training_loss(config, train.labels, len(labels))
    if config.head != "crf":
        return TokenClassification(labels, loss)
    if loss is not None:
        raise ValueError(
            "class_weights, focal_gamma and label_smoothing change the loss of single labels, but head "
            "crf scores whole sequences. Leave them out, or use another head."
        )
    if config.crf_constraints and train is not None:
        _check_iob2(labels, train)
    return CRFTokenClassification(labels)


def _check_iob2(labels: tuple[str, ...], data: TokenWindows) -> None:
    """ValueError where a word's label may not follow that of the word before it in its window."""
    (scored,) = np.nonzero(data.labels != IGNORED_LABEL)
    window = np.searchsorted(data.offsets, scored, side="right") - 1
    ids = data.labels[scored]
    allowed = iob2_transitions(labels)
    (wrong,) = np.nonzero((window[:-1] == window[1:]) & ~allowed[ids[:-1], ids[1:]])
    if len(wrong):
        first = wrong[0]
        raise ValueError(
            f"crf_constraints is set, but IOB2 forbids {len(wrong)} labels of the training data: the first, in "
            f"sentence {data.sentence[window[first]] + 1}, is {labels[ids[first + 1]]} after {labels[ids[first]]}. "
            "Bring the data to IOB2, or leave crf_constraints out."
        )


def save_preprocessing(config: RunConfig, folder: Path, pairs: bool = False) -> None:
    """Write the model's tokenizer and the run's text_processing.json into ``folder``."""
    processing = dataclasses.replace(text_processing(config), pairs=pairs)
    save_tokenizer(tokenizer_folder(config), folder, processing.max_length or positions(config))
    processing.save(folder)


def label_ids(dataset: TokenDataset) -> np.ndarray:
    """The label ids of all words that are scored, sentence after sentence."""
    return np.array([tag for sentence in dataset.tags for tag in sentence if tag != IGNORED_LABEL])


counts = entity_counts


def shown(dataset: TokenDataset, index: int) -> list[str]:
    """The words of a sentence that are scored."""
    words, tags = dataset.words[index], dataset.tags[index]
    return [word for word, tag in zip(words, tags, strict=True) if tag != IGNORED_LABEL]
