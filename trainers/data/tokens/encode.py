"""A file of tagged sentences to windows: in chunks, so that memory does not grow with the file, and kept on disk."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import tokenizers
from tokenizers import Tokenizer

from trainers.data.cache import Arrays, Notes, arrays_in_memory, cached_arrays
from trainers.data.rows import BadRows, OnBadRow
from trainers.data.tokens.pieces import WordTable
from trainers.data.tokens.windows import TokenWindows, encode_chunk
from trainers.show import progress_bar

CHUNK_SENTENCES = 4096
CHUNK_WORDS = 200_000
"""A chunk is full when it has that many sentences or words."""
MOST_LABELS = np.iinfo(np.int16).max

Sentence = tuple[list[str], list[int]]


class Sentences(Protocol):
    """A split that can be read again and again: a `TokenFile`, or a `TokenDataset` in memory."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def on_bad_row(self) -> OnBadRow: ...

    def sentences(self, bad_rows: BadRows) -> Iterator[Sentence]: ...

    def content_key(self) -> dict[str, Any]: ...


def load_windows(
    source: Sentences, tokenizer: Tokenizer, max_length: int, pad_token_id: int, *, cache: bool = True
) -> TokenWindows:
    """The windows of all sentences of a split, as `encode_tokens` makes them, in the narrowest integer types.

    With `cache` they are mapped from disk (see trainers/data/cache.py) and made only when they are not there; without,
    they are made in memory. Bad rows that the split leaves out are reported either way.

    Raises:
        ValueError: there are too many labels, or the source or `encode_tokens` refuses something.
    """
    if len(source.labels) > MOST_LABELS:
        raise ValueError(f"there are {len(source.labels)} labels, but at most {MOST_LABELS} can be stored.")

    def make(notes: Notes) -> Iterator[Arrays]:
        bad_rows = BadRows(source.on_bad_row)
        yield from _chunks_of_windows(source.sentences(bad_rows), tokenizer, max_length, pad_token_id)
        notes["bad_rows"] = {"count": bad_rows.count, "first": bad_rows.first, "changed": bad_rows.changed}

    if cache:
        key = {
            "sentences": source.content_key(),
            "tokenizer": hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
            "tokenizers": tokenizers.__version__,
            "max_length": max_length,
        }
        arrays, notes = cached_arrays("tokens", key, make)
    else:
        arrays, notes = arrays_in_memory(make)
    BadRows(source.on_bad_row, **notes["bad_rows"]).report()
    return TokenWindows(
        arrays["input_ids"],
        arrays["labels"],
        arrays["word_ids"],
        np.concatenate([[0], np.cumsum(arrays["lengths"], dtype=np.int64)]),
        arrays["sentence"],
        pad_token_id,
        arrays["label_counts"],
    )


def _chunks_of_windows(
    sentences: Iterable[Sentence], tokenizer: Tokenizer, max_length: int, pad_token_id: int
) -> Iterator[Arrays]:
    """The arrays of the windows, chunk after chunk."""
    table = WordTable(tokenizer, max_length)
    largest_id = max(tokenizer.get_vocab(with_added_tokens=True).values())
    id_type = np.uint16 if largest_id <= np.iinfo(np.uint16).max else np.int32
    first = 0
    with progress_bar("tokenise", unit=" sentences", delay=2) as progress:
        for words, tags in _chunks(sentences):
            windows = encode_chunk(words, tags, table, pad_token_id)
            yield {
                "input_ids": windows.input_ids.astype(id_type),
                "labels": windows.labels.astype(np.int16),
                "word_ids": windows.word_ids,
                "lengths": windows.lengths.astype(np.int32),
                "label_counts": windows.label_counts.astype(np.int32),
                "sentence": windows.sentence + np.int32(first),
            }
            first += len(words)
            progress.update(len(words))
    if first == 0:
        raise ValueError("there are no sentences to tokenise.")


def _chunks(sentences: Iterable[Sentence]) -> Iterator[tuple[list[list[str]], list[list[int]]]]:
    """Words and tags of the sentences, a chunk of sentences at a time."""
    words: list[list[str]] = []
    tags: list[list[int]] = []
    count = 0
    for sentence, sentence_tags in sentences:
        words.append(sentence)
        tags.append(sentence_tags)
        count += len(sentence)
        if len(words) >= CHUNK_SENTENCES or count >= CHUNK_WORDS:
            yield words, tags
            words, tags, count = [], [], 0
    if words:
        yield words, tags
