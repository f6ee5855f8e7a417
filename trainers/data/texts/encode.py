"""Whole texts to model inputs: one sequence for each, cut to the length that the model can take, or cut into windows.

All texts lie one after another in a flat array. Legend: N texts, B texts of a batch, R its rows (B, or the windows of
B texts), T its longest row.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from trainers.data.rows import refuse_lone_surrogates
from trainers.data.texts.augment import WordAugmentation
from trainers.data.tokens.pieces import special_ids
from trainers.data.tokens.windows import IGNORED_LABEL

# DOC """What inference must know of a text model beside its tokenizer: where long texts end, as
# the run's settings have it.
#
# For images, preprocessor_config.json says the like (image_processing.py).
# """

LongText = Literal["head", "head_tail", "windows"]
Item = TypeVar("Item")

CHUNK = 1000
"""Texts per call of the tokenizer; the progress bar shows from ten chunks on."""


@dataclass(frozen=True)
class EncodedTexts:
    """Tokenised texts with their labels, ready to batch. Build it with `encode_texts`."""

    input_ids: np.ndarray
    """(total,) int32: token ids, special tokens included, of all texts."""
    offsets: np.ndarray
    """(N + 1,) int64: text n lies at offsets[n] to offsets[n + 1]."""
    targets: np.ndarray
    """(N,) int64: label ids."""
    pad_token_id: int
    """Token id that fills short texts up in a batch."""
    shortened: int
    """How many texts did not fit and lost tokens."""
    words: np.ndarray | None = None
    """(total,) int32: number of each token's word within its text, -1 for special tokens; only for `augmentation`."""
    augmentation: WordAugmentation | None = None
    """How training changes the texts; None: not at all."""
    cutter: "WindowCutter | None" = None
    """How long texts become several rows; None: every text is one row."""

    lengths: np.ndarray = field(init=False)
    """(N,) int64: tokens of each text."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", np.diff(self.offsets))

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def label_counts(self) -> np.ndarray:
        """(N,) ones: a text has one label."""
        return np.broadcast_to(np.int64(1), len(self))

    def collate(
        self, indices: Sequence[int] | np.ndarray, epoch: int | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """A batch of texts: ({"input_ids": (R, T), "attention_mask": (R, T)}, labels (R,)), all int64.

        With an `epoch`, so in training, the texts are changed as `augmentation` says. Where texts are cut into
        windows, the label stands at the first window of a text, and IGNORED_LABEL at its others.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size == 0:
            raise ValueError("collate got no text indices: a batch needs at least one text.")
        tokens, starts, lengths = self.input_ids, self.offsets[indices], self.lengths[indices]
        labels = self.targets[indices].astype(np.int64)
        if self.cutter is not None or (self.augmentation is not None and epoch is not None):
            texts = [self._text(index, epoch) for index in indices.tolist()]
            windows = [[text] if self.cutter is None else self.cutter(text) for text in texts]
            rows = [row for text in windows for row in text]
            labels = np.concatenate([[label, *[IGNORED_LABEL] * (len(text) - 1)]
                                     for label, text in zip(labels, windows, strict=True)])  # fmt: skip
            tokens, lengths = np.concatenate(rows), np.array([len(row) for row in rows])
            starts = np.cumsum(lengths) - lengths
        columns = np.arange(lengths.max())  # (T,)
        inside = columns < lengths[:, None]  # (R, T)
        flat = np.where(inside, starts[:, None] + columns, 0)  # (R, T)
        input_ids = np.where(inside, tokens[flat], self.pad_token_id).astype(np.int64)
        inputs = {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(inside.astype(np.int64)),
        }
        return inputs, torch.from_numpy(labels)

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


def mean_of_windows(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits (B, L) of texts: means over the windows' logits (R, L). `labels` (R,) are those of `collate`."""
    text = (labels != IGNORED_LABEL).cumsum(0) - 1  # (R,) the text of each window
    count = torch.bincount(text)  # (B,)
    sums = torch.zeros(len(count), logits.shape[1], dtype=torch.float32, device=logits.device)
    return sums.index_add(0, text, logits.float()) / count[:, None]


def encode_texts(
    texts: Sequence[str],
    targets: Sequence[int] | np.ndarray,
    tokenizer: Tokenizer,
    max_length: int,
    pad_token_id: int,
    long_text: LongText = "head",
    augmentation: WordAugmentation | None = None,
) -> EncodedTexts:
    """Tokenise texts, and shorten those of more than `max_length` tokens, special tokens included.

    `targets`: one label id per text. `long_text`: "head" keeps the first tokens, "head_tail" half from each end (one
    more from the head if the number is odd); the special tokens stay around them. "windows" keeps all tokens, and
    batches hold several rows of at most `max_length` for a long text. `augmentation`: how training changes
    the texts. Raises ValueError for texts that are no strings, for targets that do not fit, and for a `max_length`
    without room for text.
    """
    targets = np.asarray(targets, dtype=np.int64)
    if targets.shape != (len(texts),):
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
    with tqdm(total=len(texts), desc="tokenise", unit="text", disable=len(texts) < 10 * CHUNK) as progress:
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


def shorten(ids: list[Item], capacity: int, long_text: LongText) -> list[Item]:
    """At most `capacity` of the ids: the first ones, or half from each end."""
    if len(ids) <= capacity:
        return ids
    tail = capacity // 2 if long_text == "head_tail" else 0
    return ids[: capacity - tail] + ids[len(ids) - tail :]


TEXT_PROCESSING_FILE = "text_processing.json"
"""The name beside a model's weights, and in the metadata of an ONNX file."""


@dataclass(frozen=True)
class TextProcessing:
    """The defaults are those of a checkpoint from elsewhere."""

    max_length: int | None = None
    """Longest input in tokens, special tokens included; None: the model's limit."""
    long_text: LongText = "head"
    """What is kept of a longer text that is classified as a whole. Texts whose words are labelled are windowed."""

    def to_json(self) -> str:
        """The content of text_processing.json."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def save(self, folder: str | Path) -> None:
        """Write text_processing.json into a folder."""
        (Path(folder) / TEXT_PROCESSING_FILE).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def from_json(cls, text: str, where: str) -> "TextProcessing":
        """From the content of text_processing.json. ValueError, which begins with ``where``, for anything else."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{where} is not JSON: {error}.") from error
        if not isinstance(values, Mapping):
            raise ValueError(f"{where} holds {type(values).__name__} instead of a JSON object.")
        return cls(_max_length(values.get("max_length"), where), _long_text(values.get("long_text", "head"), where))

    @classmethod
    def read(cls, folder: str | Path) -> "TextProcessing":
        """From text_processing.json in a model's folder; the defaults where there is none.

        Raises:
            ValueError: the file is damaged.
        """
        path = Path(folder) / TEXT_PROCESSING_FILE
        return cls.from_json(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else cls()


def _max_length(value: Any, where: str) -> int | None:
    if value is None or (type(value) is int and value >= 1):
        return value
    raise ValueError(f"{where}: max_length is {value!r}, expected a number of tokens or null.")


def _long_text(value: Any, where: str) -> LongText:
    if value == "head" or value == "head_tail" or value == "windows":
        return value
    raise ValueError(f"{where}: long_text is {value!r}, expected 'head', 'head_tail' or 'windows'.")
