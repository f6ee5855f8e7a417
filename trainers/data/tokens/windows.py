"""Words to model inputs and back: one path for training, evaluation and inference, however long the text.

A window is one model input: special tokens around the pieces of consecutive words. A sentence that fits is
one window; a longer one is cut on word borders into windows that overlap, and each word is predicted in the
window where it stands most central. So every word gets exactly one prediction, made with context on both
sides. Where to cut, and which window predicts which word, is decided by `cut_sentence`.

All windows lie one after another in flat arrays. Legend: N windows, B batch, T longest window of the batch.
"""

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from itertools import chain

import numpy as np
from tokenizers import Tokenizer

from trainers.data.batches import Batch, as_tensors
from trainers.data.tokens.pieces import WordPieces, WordTable

IGNORED_LABEL = -100
"""Label of a position that is not predicted; torch's cross_entropy leaves it out."""


@dataclass(frozen=True)
class TokenWindows:
    """Tokenised sentences, ready to batch. Build it with `encode_tokens`, or from a file with `load_windows`.

    The arrays may be mapped from disk, with narrower integers than those named here.
    """

    input_ids: np.ndarray
    """(total,) int32: token ids, special tokens included, of all windows."""
    labels: np.ndarray
    """(total,) int64: label id at the first piece of each word that this window predicts, -100 elsewhere."""
    word_ids: np.ndarray
    """(total,) int32: at those first pieces the word's index in its sentence, -1 elsewhere."""
    offsets: np.ndarray
    """(N + 1,) int64: window n lies at offsets[n] to offsets[n + 1] of the flat arrays."""
    sentence: np.ndarray
    """(N,) int32, rising: index of the sentence that each window comes from."""
    pad_token_id: int
    """Token id that fills short windows up in a batch."""
    known_label_counts: InitVar[np.ndarray | None] = None
    """`label_counts`, where it need not be counted."""

    lengths: np.ndarray = field(init=False)
    """(N,) int64: positions of each window, special tokens included."""
    label_counts: np.ndarray = field(init=False)
    """(N,) int64: labelled words of each window, the terms of its summed loss."""

    def __post_init__(self, known_label_counts: np.ndarray | None) -> None:
        if known_label_counts is None:
            known_label_counts = _sums(self.labels != IGNORED_LABEL, self.offsets)
        object.__setattr__(self, "lengths", np.diff(self.offsets))
        object.__setattr__(self, "label_counts", known_label_counts)

    def __len__(self) -> int:
        return len(self.sentence)

    def collate(self, indices: Sequence[int] | np.ndarray, epoch: int | None = None) -> Batch:
        """`arrays` as tensors. The same in every `epoch`: words are not augmented."""
        return as_tensors(*self.arrays(indices))

    def arrays(self, indices: Sequence[int] | np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """A batch of windows: ({"input_ids": (B, T), "attention_mask": (B, T)}, labels (B, T)), all int64."""
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size == 0:
            raise ValueError("collate got no window indices: a batch needs at least one window.")
        lengths = self.lengths[indices][:, None]
        columns = np.arange(lengths.max())  # (T,)
        inside = columns < lengths  # (B, T)
        flat = np.where(inside, self.offsets[indices][:, None] + columns, 0)  # (B, T)
        input_ids = np.where(inside, self.input_ids[flat], self.pad_token_id).astype(np.int64)
        labels = np.where(inside, self.labels[flat], IGNORED_LABEL).astype(np.int64)
        return {"input_ids": input_ids, "attention_mask": inside.astype(np.int64)}, labels

    def content(self) -> tuple[int, list[np.ndarray]]:
        """How many sentences there are, and all that the model is given of them."""
        count = int(self.sentence[-1]) + 1 if len(self) else 0
        return count, [self.input_ids, self.labels, self.offsets, self.sentence]

    def words_from(self, predictions: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Per-position predictions to per-word predictions, each word exactly once.

        Args:
            predictions: one array per window, in window order, of shape (T, ...) with T at least the window's length
                (padding behind it is ignored): label ids (T,) or scores (T, L).

        Returns:
            One array (words, ...) per sentence.

        Raises:
            ValueError: there is not one array per window, or one is too short.
        """
        if len(predictions) != len(self):
            raise ValueError(f"words_from got predictions for {len(predictions)} windows, expected {len(self)}.")
        arrays = [np.asarray(values)[:length] for values, length in zip(predictions, self.lengths, strict=True)]
        short = next((n for n, values in enumerate(arrays) if len(values) < self.lengths[n]), None)
        if short is not None:
            raise ValueError(
                f"words_from got {len(arrays[short])} predictions for window {short}, which has "
                f"{self.lengths[short]} positions. Give predictions in window order, one per position."
            )
        if not arrays:
            return []
        values = np.concatenate(arrays)[self.word_ids >= 0]
        # Windows of a sentence predict its words in order, so they already lie side by side.
        words = np.bincount(self.sentence, weights=_sums(self.word_ids >= 0, self.offsets)).astype(np.int64)
        return np.split(values, np.cumsum(words)[:-1])


def encode_tokens(
    words: Sequence[Sequence[str]],
    tags: Sequence[Sequence[int]] | None,
    tokenizer: Tokenizer,
    max_length: int,
    pad_token_id: int,
) -> TokenWindows:
    """Tokenise sentences of words, align their label ids, cut what exceeds `max_length` into windows.

    A word without pieces (say, one control character) becomes the unknown token; a word longer than a whole window
    keeps the pieces that fit. An empty sentence becomes a window of special tokens alone.

    Args:
        words: sentences of words.
        tags: one label id per word (-100: not scored), or None for text without labels.
        tokenizer: makes pieces of words.
        max_length: positions of a window, special tokens included.
        pad_token_id: fills short windows up in a batch.

    Raises:
        ValueError: a word is no string, or the tags do not fit.
    """
    return encode_chunk(words, tags, WordTable(tokenizer, max_length), pad_token_id)


def encode_chunk(
    words: Sequence[Sequence[str]], tags: Sequence[Sequence[int]] | None, table: WordTable, pad_token_id: int
) -> TokenWindows:
    """`encode_tokens` for a part of the sentences; the table carries the pieces of known words to the next part."""
    pieces = table.split(words)
    sentence, start, end, owned_start, owned_end = cut_windows(pieces).T
    tag_of_word = _flat_tags(words, tags)

    # Each place of a word in a window: which word of the text, which window, how many pieces.
    inside, inside_window = _ranges(start, end)
    size = pieces.counts[inside]
    prefix, suffix = pieces.prefix, pieces.suffix
    before = pieces.cumulative
    offsets = _cumulative(len(prefix) + before[end] - before[start] + len(suffix))
    # A word begins behind the window's prefix and the pieces of the words before it in the window.
    position = offsets[inside_window] + len(prefix) + before[inside] - before[start][inside_window]

    input_ids = np.empty(offsets[-1], dtype=np.int32)
    for index, token in enumerate(prefix):
        input_ids[offsets[:-1] + index] = token
    for index, token in enumerate(suffix):
        input_ids[offsets[1:] - len(suffix) + index] = token
    source, _ = _ranges(pieces.first[inside], pieces.first[inside] + size)
    target, _ = _ranges(position, position + size)
    input_ids[target] = pieces.ids[source]

    owned = (inside >= owned_start[inside_window]) & (inside < owned_end[inside_window])
    word_ids = np.full(offsets[-1], -1, dtype=np.int32)
    word_ids[position[owned]] = inside[owned] - pieces.sentence_offsets[sentence[inside_window[owned]]]
    labels = np.full(offsets[-1], IGNORED_LABEL, dtype=np.int64)
    if tag_of_word is not None:
        labels[position[owned]] = tag_of_word[inside[owned]]
    return TokenWindows(input_ids, labels, word_ids, offsets, sentence.astype(np.int32), pad_token_id)


def _flat_tags(words: Sequence[Sequence[str]], tags: Sequence[Sequence[int]] | None) -> np.ndarray | None:
    if tags is None:
        return None
    if len(tags) != len(words):
        raise ValueError(f"got tags for {len(tags)} sentences, but {len(words)} sentences of words.")
    for index, (sentence, sentence_tags) in enumerate(zip(words, tags, strict=True)):
        if len(sentence) != len(sentence_tags):
            raise ValueError(f"sentence {index} has {len(sentence)} words but {len(sentence_tags)} tags.")
    flat = np.fromiter(chain.from_iterable(tags), dtype=np.int64)
    wrong = flat[(flat < 0) & (flat != IGNORED_LABEL)]
    if wrong.size:
        raise ValueError(f"tag {wrong[0]} is no label id: ids start at 0, and {IGNORED_LABEL} leaves a word out.")
    return flat


def _cumulative(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)])


def _sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Sum of each window's part of a flat array."""
    return np.diff(_cumulative(values)[offsets])


def _ranges(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All integers of the ranges, one range after another, and for each the index of its range."""
    counts = end - start
    which = np.repeat(np.arange(len(counts)), counts)
    before = _cumulative(counts)[:-1]
    return np.arange(len(which)) + (start - before)[which], which


def cut_windows(pieces: WordPieces) -> np.ndarray:
    """All windows, (N, 5) int64: sentence, start, end, owned start, owned end.

    Start and end count the words of the whole text. A window sees the words from start to end and predicts
    those from owned start to owned end; over the windows of a sentence every word is predicted exactly once.
    """
    starts, ends = pieces.sentence_offsets[:-1], pieces.sentence_offsets[1:]
    sentence = np.arange(len(starts))
    whole = np.stack([sentence, starts, ends, starts, ends], axis=1)  # (sentences, 5)
    too_long = np.flatnonzero(pieces.cumulative[ends] - pieces.cumulative[starts] > pieces.capacity)
    if too_long.size == 0:
        return whole
    rows = np.split(whole, too_long)
    for place, index in enumerate(too_long, start=1):
        first = starts[index]
        cut = cut_sentence(pieces.cumulative[first : ends[index] + 1], pieces.capacity)
        cut_rows = np.column_stack([np.full(len(cut), index), cut + first])
        rows[place] = np.concatenate([cut_rows, rows[place][1:]])
    return np.concatenate(rows)


def cut_sentence(cumulative: np.ndarray, capacity: int) -> np.ndarray:
    """Windows of one long sentence: (windows, 4) of start, end, owned start, owned end, in words.

    `cumulative` (words + 1,): pieces of the text before each word, and at the end. Neighbours share about a
    third of a window, so a word between two windows keeps at least about a sixth of a window as context on
    either side.
    """
    words = len(cumulative) - 1
    overlap = capacity // 3
    windows: list[tuple[int, int]] = []
    start = end = 0
    while True:
        end = int(np.searchsorted(cumulative, cumulative[start] + capacity, side="right")) - 1
        if end == words:  # the last window reaches back as far as it can: more context at the same price
            start = int(np.searchsorted(cumulative, cumulative[words] - capacity))
        windows.append((start, end))
        if end == words:
            break
        # Share `overlap` pieces, but leave room for the next word, however many pieces it has.
        reach = max(cumulative[end] - overlap, cumulative[end + 1] - capacity)
        start = int(np.searchsorted(cumulative, reach))

    owner = np.zeros(words, dtype=np.int64)
    best = np.full(words, -1, dtype=np.int64)
    for index, (start, end) in enumerate(windows):
        left = cumulative[start:end] - cumulative[start]
        right = cumulative[end] - cumulative[start + 1 : end + 1]
        centrality = np.minimum(left, right)  # pieces of context on the poorer side
        better = centrality > best[start:end]
        best[start:end][better] = centrality[better]
        owner[start:end][better] = index
    # A word nearer to a later window's centre is followed by words nearer still: `owner` never falls.
    owners, owned_start, counts = np.unique(owner, return_index=True, return_counts=True)
    return np.column_stack([np.array(windows)[owners], owned_start, owned_start + counts])
