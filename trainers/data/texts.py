"""Whole texts to model inputs: one sequence for each, cut to the length that the model can take.

All texts lie one after another in a flat array. Legend: N texts, B batch, T longest text of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from trainers.data.pieces import special_ids
from trainers.data.rows import refuse_lone_surrogates

LongText = Literal["head", "head_tail"]

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
        """A batch of texts: ({"input_ids": (B, T), "attention_mask": (B, T)}, labels (B,)), all int64.

        The same in every `epoch`: texts are not augmented.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size == 0:
            raise ValueError("collate got no text indices: a batch needs at least one text.")
        lengths = self.lengths[indices][:, None]
        columns = np.arange(lengths.max())  # (T,)
        inside = columns < lengths  # (B, T)
        flat = np.where(inside, self.offsets[indices][:, None] + columns, 0)  # (B, T)
        input_ids = np.where(inside, self.input_ids[flat], self.pad_token_id).astype(np.int64)
        inputs = {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(inside.astype(np.int64)),
        }
        return inputs, torch.from_numpy(self.targets[indices].astype(np.int64))


def encode_texts(
    texts: Sequence[str],
    targets: Sequence[int] | np.ndarray,
    tokenizer: Tokenizer,
    max_length: int,
    pad_token_id: int,
    long_text: LongText = "head",
) -> EncodedTexts:
    """Tokenise texts, and shorten those of more than `max_length` tokens, special tokens included.

    `targets`: one label id per text. `long_text`: "head" keeps the first tokens, "head_tail" half from each end (one
    more from the head if the number is odd); the special tokens stay around them. Raises ValueError for texts that
    are no strings, for targets that do not fit, and for a `max_length` without room for text.
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
    shortened = 0
    with tqdm(total=len(texts), desc="tokenise", unit="text", disable=len(texts) < 10 * CHUNK) as progress:
        for start in range(0, len(texts), CHUNK):
            chunk = list(texts[start : start + CHUNK])
            for index, text in enumerate(chunk, start):
                if not isinstance(text, str):
                    raise ValueError(f"text {index} is {type(text).__name__}, expected a string.")
            refuse_lone_surrogates("".join(chunk))
            for encoding in tokenizer.encode_batch_fast(chunk, add_special_tokens=False):
                ids = encoding.ids
                shortened += len(ids) > capacity
                rows.append(np.array([*prefix, *shorten(ids, capacity, long_text), *suffix], dtype=np.int32))
            progress.update(len(chunk))
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    input_ids = np.concatenate([np.empty(0, dtype=np.int32), *rows])
    return EncodedTexts(input_ids, offsets, targets, pad_token_id, shortened)


def shorten(ids: list[int], capacity: int, long_text: LongText) -> list[int]:
    """At most `capacity` of the ids: the first ones, or half from each end."""
    if len(ids) <= capacity:
        return ids
    tail = capacity // 2 if long_text == "head_tail" else 0
    return ids[: capacity - tail] + ids[len(ids) - tail :]
