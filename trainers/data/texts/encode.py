"""Whole texts to model inputs: one sequence for each, cut to the length that the model can take, or cut into windows.

All texts lie one after another in a flat array. `TextProcessing` is what inference must know of this.

Shapes: N texts, B texts of a batch, R its rows (B, or the windows of B texts), T tokens of its longest row, L labels.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
from tokenizers import Tokenizer

from lora_core.files import json_object, read_json_object, write_json
from lora_core.models.host import on_host, send
from trainers.data.batches import Batch, as_tensors
from trainers.data.reading import AS_FOUND, Reading
from trainers.data.rows import refuse_lone_surrogates
from trainers.data.texts.augment import WordAugmentation
from trainers.data.tokens.pieces import special_ids
from trainers.data.tokens.windows import IGNORED_LABEL
from trainers.show import progress_bar

if TYPE_CHECKING:
    from torch import Tensor

LongText = Literal["head", "tail", "head_tail", "windows"]
"""What is kept of long texts. A run's settings have no "tail": some checkpoints ask for it."""
KEPT: dict[str, str] = {"head": "the beginning", "tail": "the end", "head_tail": "half from each end"}
"""What is kept of a text that is too long, in words."""
KEPT_OF_PAIR = "the beginning of the longer text of each pair"
Item = TypeVar("Item")

TEXT_PROCESSING_FILE = "text_processing.json"
"""The name beside a model's weights, and in the metadata of an ONNX file."""
REMEMBERED = ("columns", "text_column", "pair_column", "label_column", "delimiter", "encoding")
"""What of `Reading` is kept for inference."""
CHUNK = 1000
"""Texts per call of the tokenizer."""


@dataclass(frozen=True)
class EncodedTexts:
    """Tokenised texts with their labels, ready to batch. Build it with `encode_texts`."""

    input_ids: np.ndarray
    """(total,) int32: token ids, special tokens included, of all texts."""
    offsets: np.ndarray
    """(N + 1,) int64: text n lies at offsets[n] to offsets[n + 1]."""
    targets: np.ndarray
    """(N,) int64: label ids; or what else `TextDataset.targets` are."""
    pad_token_id: int
    """Token id that fills short texts up in a batch."""
    shortened: int
    """How many texts did not fit and lost tokens."""
    words: np.ndarray | None = None
    """(total,) int32: number of each token's word within its text, -1 for special tokens; only for `augmentation`."""
    augmentation: WordAugmentation | None = None
    """How training changes the texts; None: not at all."""
    cutter: WindowCutter | None = None
    """How long texts become several rows; None: every text is one row."""
    token_type_ids: np.ndarray | None = None
    """(total,) int8: which text of its pair each token is of, for encoders that tell them apart; None: for others."""

    lengths: np.ndarray = field(init=False)
    """(N,) int64: tokens of each text."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", np.diff(self.offsets))

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def label_counts(self) -> np.ndarray:
        """(N,) terms of the summed loss: one for a text, or one for each label that it may have."""
        return np.broadcast_to(np.int64(self.targets[0].size if len(self) else 1), len(self))

    def collate(self, indices: Sequence[int] | np.ndarray, epoch: int | None = None) -> Batch:
        """`arrays` as tensors."""
        return as_tensors(*self.arrays(indices, epoch))

    def arrays(
        self, indices: Sequence[int] | np.ndarray, epoch: int | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """A batch of texts: ({"input_ids": (R, T), "attention_mask": (R, T)}, labels (R,)), all int64.

        Pairs have "token_type_ids" (R, T) too, where the encoder takes them. Labels are (R, L) or (R,) float32 where
        the targets are.

        With an ``epoch``, so in training, the texts are changed as ``augmentation`` says. Where texts are cut into
        windows, the label stands at the first window of a text, and IGNORED_LABEL, or NaN, at its others
        (`first_windows`).

        Raises:
            ValueError: there are no indices.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size == 0:
            raise ValueError("collate got no text indices: a batch needs at least one text.")
        tokens, starts, lengths = self.input_ids, self.offsets[indices], self.lengths[indices]
        labels = self.targets[indices]
        if self.cutter is not None or (self.augmentation is not None and epoch is not None):
            texts = [self._text(index, epoch) for index in indices.tolist()]
            windows = [[text] if self.cutter is None else self.cutter(text) for text in texts]
            rows = [row for text in windows for row in text]
            first = np.cumsum([0, *map(len, windows)])[:-1]  # (B,) the first row of each text
            empty = IGNORED_LABEL if labels.dtype == np.int64 else np.nan
            labels = np.full((len(rows), *labels.shape[1:]), empty, dtype=labels.dtype)
            labels[first] = self.targets[indices]
            tokens, lengths = np.concatenate(rows), np.array([len(row) for row in rows])
            starts = np.cumsum(lengths) - lengths
        columns = np.arange(lengths.max())  # (T,)
        inside = columns < lengths[:, None]  # (R, T)
        flat = np.where(inside, starts[:, None] + columns, 0)  # (R, T)
        input_ids = np.where(inside, tokens[flat], self.pad_token_id).astype(np.int64)
        inputs = {"input_ids": input_ids, "attention_mask": inside.astype(np.int64)}
        if self.token_type_ids is not None:
            inputs["token_type_ids"] = np.where(inside, self.token_type_ids[flat], 0).astype(np.int64)
        return inputs, labels

    def content(self) -> tuple[int, list[np.ndarray]]:
        """How many texts there are, and all that the model is given of them."""
        arrays = [self.input_ids, self.offsets, self.targets, self.words, self.token_type_ids]
        return len(self), [array for array in arrays if array is not None]

    def _text(self, index: int, epoch: int | None) -> np.ndarray:
        """The tokens of a text, augmented in training."""
        own = slice(self.offsets[index], self.offsets[index + 1])
        if self.augmentation is None or epoch is None:
            return self.input_ids[own]
        assert self.words is not None
        return self.augmentation(self.input_ids[own], self.words[own], epoch, index)


@dataclass(frozen=True)
class WindowCutter:
    """Cuts a text into as few windows as hold it, of nearly equal length, each with the special tokens."""

    max_length: int
    """Most tokens of a window, special tokens included."""
    prefix: int
    """Special tokens before the text."""
    suffix: int
    """Special tokens behind it."""

    def __call__(self, ids: np.ndarray) -> list[np.ndarray]:
        """The windows of a text's tokens (special tokens included), in order."""
        end = len(ids) - self.suffix
        body = ids[self.prefix : end]
        count = max(1, -(-len(body) // (self.max_length - self.prefix - self.suffix)))
        return [np.concatenate([ids[: self.prefix], part, ids[end:]]) for part in np.array_split(body, count)]


def first_windows(labels: Tensor) -> Tensor:
    """Which rows (R,) of a batch begin a text, given its labels (`EncodedTexts.collate`)."""
    if not labels.is_floating_point():
        return labels != IGNORED_LABEL
    return ~labels.reshape(len(labels), -1)[:, 0].isnan()


def mean_of_windows(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits (B, L) of texts: means over the windows' logits.

    Args:
        logits: (R, L) the windows'.
        labels: those of `EncodedTexts.collate`.
    """
    import torch

    text = first_windows(labels).cumsum(0) - 1  # (R,) the text of each window
    texts = int(first_windows(on_host(labels)).sum())
    sums = torch.zeros(texts, logits.shape[1], dtype=torch.float32, device=logits.device)
    count = torch.zeros_like(sums[:, :1]).index_add(0, text, torch.ones_like(logits[:, :1], dtype=torch.float32))
    return sums.index_add(0, text, logits.float()) / count


def labels_of_texts(labels: Tensor) -> Tensor:
    """The labels (B, ...) of texts, of those (R, ...) of their windows."""
    first = first_windows(on_host(labels)).nonzero().squeeze(1)  # (B,)
    return labels.index_select(0, send(first, labels.device))


def encode_texts(
    texts: Sequence[str],
    targets: Sequence[int] | np.ndarray,
    tokenizer: Tokenizer,
    max_length: int,
    pad_token_id: int,
    long_text: LongText = "head",
    augmentation: WordAugmentation | None = None,
) -> EncodedTexts:
    """Tokenise texts, and shorten those of more than ``max_length`` tokens.

    Args:
        texts: N strings.
        targets: (N,) label ids, or (N, L) or (N,) float32 as in `TextDataset`.
        tokenizer: knows the special tokens around a text.
        max_length: most tokens of a row, special tokens included.
        pad_token_id: fills short texts up in a batch.
        long_text: "head" keeps the first tokens, "tail" the last, "head_tail" half from each end (one more from the
            head if the number is odd); the special tokens stay around them. "windows" keeps all tokens, and batches
            hold several rows of at most ``max_length`` for a long text.
        augmentation: how training changes the texts; None: not at all.

    Raises:
        ValueError: a text is no string or holds half of a character, the targets are not one for each text, or
            ``max_length`` leaves no room for text.
    """
    targets = _checked_targets(np.asarray(targets))
    if targets.shape[:1] != (len(texts),) or targets.ndim > 2:
        raise ValueError(f"got targets of shape {targets.shape} for {len(texts)} texts, expected one for each.")
    prefix, suffix = special_ids(tokenizer)
    capacity = max_length - len(prefix) - len(suffix)
    if capacity < 1:
        raise ValueError(
            f"max_length={max_length} leaves no room for text: the special tokens alone take "
            f"{len(prefix) + len(suffix)} positions. Give a larger max_length."
        )
    rows: list[np.ndarray] = []
    words: list[np.ndarray] = []
    encode = tokenizer.encode_batch_fast if augmentation is None else tokenizer.encode_batch  # fast: without words
    shortened = 0
    kept = sys.maxsize if long_text == "windows" else capacity
    with progress_bar("tokenise", len(texts), unit="text", delay=1) as progress:
        for start in range(0, len(texts), CHUNK):
            chunk = list(texts[start : start + CHUNK])
            for index, text in enumerate(chunk, start):
                if not isinstance(text, str):
                    raise ValueError(f"text {index} is {type(text).__name__}, expected a string.")
            refuse_lone_surrogates("".join(chunk))
            for encoding in encode(chunk, add_special_tokens=False):
                ids = encoding.ids
                shortened += len(ids) > kept
                rows.append(np.array([*prefix, *shorten(ids, kept, long_text), *suffix], dtype=np.int32))
                if augmentation is not None:
                    numbers = shorten(encoding.word_ids, kept, long_text)
                    words.append(np.array([*[-1] * len(prefix), *numbers, *[-1] * len(suffix)], dtype=np.int32))
            progress.update(len(chunk))
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    input_ids = np.concatenate([np.empty(0, dtype=np.int32), *rows])
    numbered = None if augmentation is None else np.concatenate([np.empty(0, dtype=np.int32), *words])
    cutter = WindowCutter(max_length, len(prefix), len(suffix)) if long_text == "windows" else None
    return EncodedTexts(input_ids, offsets, targets, pad_token_id, shortened, numbered, augmentation, cutter)


def encode_pairs(
    texts: Sequence[str],
    pairs: Sequence[str],
    targets: Sequence[int] | np.ndarray,
    tokenizer: Tokenizer,
    max_length: int,
    pad_token_id: int,
    segments: int = 1,
    long_text: LongText = "head",
) -> EncodedTexts:
    """Tokenise pairs of texts, such as [CLS] a [SEP] b [SEP], and shorten those of more than ``max_length`` tokens.

    The longer text of a pair loses its last tokens until the pair fits, as transformers has it (longest_first).

    Args:
        texts: the first text of each of N pairs.
        pairs: the second.
        targets: (N,) label ids, or what else `TextDataset.targets` are.
        tokenizer: knows the special tokens around and between two texts.
        max_length: most tokens of a row, special tokens included.
        pad_token_id: fills short rows up in a batch.
        segments: texts that the encoder tells apart by token_type_ids; 1: it takes none.
        long_text: "tail" has the longer text lose its first tokens instead.

    Raises:
        ValueError: a text is no string or holds half of a character, there are not as many of both and of the targets,
            or ``max_length`` leaves no room for both.
    """
    targets = _checked_targets(np.asarray(targets))
    if not len(texts) == len(pairs) == len(targets):
        raise ValueError(f"got {len(targets)} targets for {len(texts)} texts and {len(pairs)} second texts.")
    special = tokenizer.num_special_tokens_to_add(True)
    if max_length < special + 2:
        raise ValueError(f"max_length={max_length} leaves no room for two texts beside {special} special tokens.")
    rows: list[np.ndarray] = []
    types: list[np.ndarray] = []
    shortened = 0
    own = Tokenizer.from_str(tokenizer.to_str())  # the given one stays without truncation
    own.enable_truncation(max_length, strategy="longest_first", direction="left" if long_text == "tail" else "right")
    with progress_bar("tokenise", len(texts), unit="pair", delay=1) as progress:
        for start in range(0, len(texts), CHUNK):
            chunk = list(zip(texts[start : start + CHUNK], pairs[start : start + CHUNK], strict=True))
            for index, pair in enumerate(chunk, start):
                for text in pair:
                    if not isinstance(text, str):
                        raise ValueError(f"pair {index} holds {type(text).__name__}, expected two strings.")
                    refuse_lone_surrogates(text)
            for encoding in own.encode_batch(chunk):
                shortened += bool(encoding.overflowing)
                rows.append(np.array(encoding.ids, dtype=np.int32))
                types.append(np.array(encoding.type_ids, dtype=np.int8))
            progress.update(len(chunk))
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    input_ids = np.concatenate([np.empty(0, dtype=np.int32), *rows])
    numbers = np.concatenate([np.empty(0, dtype=np.int8), *types]) if segments > 1 else None
    return EncodedTexts(input_ids, offsets, targets, pad_token_id, shortened, token_type_ids=numbers)


def _checked_targets(targets: np.ndarray) -> np.ndarray:
    """The targets as float32 where they are that, else as int64.

    Raises:
        ValueError: label ids have a fraction.
    """
    if targets.dtype == np.float32:
        return targets
    ids = targets.astype(np.int64)
    if not np.array_equal(ids, targets):
        raise ValueError("targets are no whole numbers, as label ids are; give numbers to predict as float32.")
    return ids


def shorten(ids: list[Item], capacity: int, long_text: LongText) -> list[Item]:
    """At most ``capacity`` of the ids: the first ones, the last ones, or half from each end."""
    if len(ids) <= capacity:
        return ids
    tail = {"tail": capacity, "head_tail": capacity // 2}.get(long_text, 0)
    return ids[: capacity - tail] + ids[len(ids) - tail :]


@dataclass(frozen=True)
class TextProcessing:
    """What inference must know of a text model beside its tokenizer: where long texts end, as the run's settings say.

    For pictures, preprocessor_config.json says the like (`ImageProcessing`). The defaults are those of a checkpoint
    from elsewhere.
    """

    max_length: int | None = None
    """Longest input in tokens, special tokens included; None: the model's limit."""
    long_text: LongText = "head"
    """What is kept of a longer text that is classified as a whole. Texts whose words are labelled are windowed."""
    pairs: bool | None = None
    """Whether the model was trained on pairs of texts; None: it is not known."""
    reading: Reading = AS_FOUND
    """How the files that it was trained on were read: others of their form are read so too."""

    def longest(self, positions: int) -> int:
        """Most tokens of one input of a model with room for so many."""
        return min(self.max_length or positions, positions)

    def to_dict(self) -> dict[str, Any]:
        """The content of text_processing.json."""
        read = {name: value for name, value in asdict(self.reading).items() if value and name in REMEMBERED}
        own = {"max_length": self.max_length, "long_text": self.long_text, "pairs": self.pairs}
        return own | ({"reading": read} if read else {})

    def to_json(self) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def save(self, folder: str | Path) -> None:
        """Write text_processing.json into a folder."""
        write_json(Path(folder) / TEXT_PROCESSING_FILE, self.to_dict())

    @classmethod
    def from_json(cls, text: str, where: str) -> TextProcessing:
        """From the content of text_processing.json.

        Raises:
            ValueError: it is damaged. The message begins with ``where``.
        """
        return cls._from_dict(json_object(text, where), where)

    @classmethod
    def read(cls, folder: str | Path) -> TextProcessing:
        """From text_processing.json in a model's folder; the defaults where there is none.

        Raises:
            ValueError: the file is damaged.
        """
        path = Path(folder) / TEXT_PROCESSING_FILE
        if not path.is_file():
            return cls()
        remedy = "Restore it, or delete it to have long texts cut at the model's limit."
        return cls._from_dict(read_json_object(path, remedy), str(path))

    @classmethod
    def _from_dict(cls, values: Mapping[str, Any], where: str) -> TextProcessing:
        max_length, long_text = values.get("max_length"), values.get("long_text", "head")
        if max_length is not None and (type(max_length) is not int or max_length < 1):
            raise ValueError(f"{where}: max_length is {max_length!r}, expected a number of tokens or null.")
        if long_text not in get_args(LongText):
            raise ValueError(f"{where}: long_text is {long_text!r}, expected one of {', '.join(get_args(LongText))}.")
        pairs = values.get("pairs")
        if pairs not in (None, False, True):
            raise ValueError(f"{where}: pairs is {pairs!r}, expected true, false or null.")
        read = values.get("reading", {})
        if not isinstance(read, dict) or not all(isinstance(value, str) for value in read.values()):
            raise ValueError(f"{where}: reading is {read!r}, expected an object of texts.")
        try:
            reading = Reading(**{name: value for name, value in read.items() if name in REMEMBERED})
        except ValueError as error:
            raise ValueError(f"{where}: reading: {error}") from error
        return cls(max_length, long_text, pairs, reading)
