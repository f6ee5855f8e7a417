"""Words to pieces: every distinct word is tokenised once.

A tokenizer treats each word of a text that is already split on its own, so the pieces are those of whole
sentences. A corpus of 445,000 words has 21,000 distinct ones, so this costs a fraction of the time.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count, islice

import numpy as np
from tokenizers import Tokenizer

from trainers.data.rows import refuse_lone_surrogates
from trainers.data.tokenizer import for_words
from trainers.show import progress_bar

CHUNK = 20_000
"""Distinct words per call of the tokenizer; the progress bar shows from two chunks on."""
MOST_WORDS = 300_000
"""Distinct words that a part of a table keeps (some 60 MB). A fuller one is dropped: memory must not grow with text."""


@dataclass(frozen=True)
class WordPieces:
    """The pieces of W words, sentence after sentence."""

    ids: np.ndarray
    """(distinct pieces,) int32: token ids of the distinct words, one word after another."""
    first: np.ndarray
    """(W,) int64: where in `ids` each word's pieces begin."""
    counts: np.ndarray
    """(W,) int64: pieces of each word, at least 1 and at most `capacity`."""
    cumulative: np.ndarray
    """(W + 1,) int64: pieces before each word of the text."""
    sentence_offsets: np.ndarray
    """(sentences + 1,) int64: words before each sentence."""
    prefix: list[int]
    """Special token ids that open a model input, such as [CLS]."""
    suffix: list[int]
    """Special token ids that close it, such as [SEP]."""
    capacity: int
    """Pieces that fit between them."""


def split_words(words: Sequence[Sequence[str]], tokenizer: Tokenizer, max_length: int) -> WordPieces:
    """Pieces of all words of all sentences for windows of `max_length` positions."""
    return WordTable(tokenizer, max_length).split(words)


class WordTable:
    """The pieces of every distinct word met so far: what streams of sentences have in common.

    Threads may share a table. What it knows stands in parts, and a part belongs to one call of `split` at a time: there
    are as many as calls ever ran at once, each of at most `MOST_WORDS` words.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        self.tokenizer = for_words(tokenizer)
        self.prefix, self.suffix = special_ids(tokenizer)
        self.capacity = max_length - len(self.prefix) - len(self.suffix)
        if self.capacity < 1:
            raise ValueError(
                f"max_length={max_length} leaves no room for text: the special tokens alone take "
                f"{len(self.prefix) + len(self.suffix)} positions. Give a larger max_length."
            )
        self._idle: list[_KnownWords] = []

    def split(self, words: Sequence[Sequence[str]]) -> WordPieces:
        """Pieces of all words of all sentences."""
        try:
            known = self._idle.pop()  # one step, also among threads; and no lock that a fork could leave closed
        except IndexError:
            known = _KnownWords(self.tokenizer, self.capacity)
        first, counts = known.find(words)  # if words are refused the part is dropped: it holds some without pieces
        pieces = WordPieces(
            ids=known.ids,
            first=first,
            counts=counts,
            cumulative=np.concatenate([[0], np.cumsum(counts)]),
            sentence_offsets=np.cumsum([0, *map(len, words)]),
            prefix=self.prefix,
            suffix=self.suffix,
            capacity=self.capacity,
        )
        if len(known) <= MOST_WORDS:
            self._idle.append(known)
        return pieces


class _KnownWords:
    """Distinct words and their pieces; for one thread at a time."""

    def __init__(self, tokenizer: Tokenizer, capacity: int) -> None:
        self.tokenizer, self.capacity = tokenizer, capacity
        self.ids = np.empty(0, dtype=np.int32)
        """(distinct pieces,) int32: token ids, one word after another. Replaced as words come, never written into."""
        self._types: defaultdict[str, int] = defaultdict(count().__next__)
        self._first = self._counts = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._types)

    def find(self, words: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
        """For each of W words where in `ids` its pieces begin, and how many they are: (W,) and (W,) int64."""
        known = len(self._types)
        word_type = self._number(words)
        self._learn(list(islice(self._types, known, None)))
        return self._first[word_type], self._counts[word_type]

    def _number(self, words: Sequence[Sequence[str]]) -> np.ndarray:
        """For each word of the text its index in the table; new words get the next ones."""
        for index, sentence in enumerate(words):
            if isinstance(sentence, str):
                raise ValueError(
                    f"sentence {index} is the string {sentence[:80]!r}, expected a list of words, such as "
                    f"{sentence[:80].split()!r}."
                )
        try:
            return np.fromiter(map(self._types.__getitem__, chain.from_iterable(words)), dtype=np.int64)
        except TypeError as error:
            raise ValueError(f"expected words that are strings, got something else: {error}") from error

    def _learn(self, new: list[str]) -> None:
        """Tokenise words that the table has numbered, in the order of their numbers."""
        for word in new:
            if not isinstance(word, str):
                raise ValueError(f"expected words that are strings, got {word!r} of type {type(word).__name__}.")
        refuse_lone_surrogates("".join(new))
        rows = _tokenise(new, self.tokenizer, self.capacity)
        counts = np.array([len(row) for row in rows], dtype=np.int64)
        self._first = np.concatenate([self._first, len(self.ids) + np.cumsum(counts) - counts])
        self._counts = np.concatenate([self._counts, counts])
        ids = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(counts.sum()))
        self.ids = np.concatenate([self.ids, ids])


def _tokenise(distinct: list[str], tokenizer: Tokenizer, capacity: int) -> list[list[int]]:
    rows: list[list[int]] = []
    with progress_bar("tokenise", len(distinct), unit="word", delay=1) as progress:
        for start in range(0, len(distinct), CHUNK):
            chunk = [[word] for word in distinct[start : start + CHUNK]]
            encodings = tokenizer.encode_batch_fast(chunk, is_pretokenized=True, add_special_tokens=False)
            rows.extend(encoding.ids[:capacity] for encoding in encodings)
            progress.update(len(chunk))
    if not all(rows):
        unknown = _unknown_id(tokenizer, distinct[rows.index([])])
        rows = [row or [unknown] for row in rows]
    return rows


def special_ids(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and behind a text."""
    encoding = tokenizer.encode(["a"], is_pretokenized=True)
    is_text = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)
    if is_text.size == 0:
        raise ValueError("the tokenizer turns the word 'a' into no token at all: it is broken or badly configured.")
    return encoding.ids[: is_text[0]], encoding.ids[is_text[-1] + 1 :]


def _unknown_id(tokenizer: Tokenizer, word: str) -> int:
    names = [getattr(tokenizer.model, "unk_token", None), "[UNK]", "<unk>"]
    ids = [tokenizer.token_to_id(name) for name in names if name is not None]
    found = next((index for index in ids if index is not None), None)
    if found is None:
        raise ValueError(
            f"the tokenizer makes no token of the word {word!r} and has no unknown token to stand for "
            f"it. Remove such words from the data."
        )
    return found
