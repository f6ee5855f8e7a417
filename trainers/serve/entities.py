"""Named entities in running text or in lists of words: from scores of pieces to labels of words, and to entities.

Legend: B batch, T longest window of the batch, L labels, P pieces, W words.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypedDict, get_args

import numpy as np

from lora_core.models.decoding import marginals, split_scores, viterbi
from trainers.data.raw_text import Span, split_text
from trainers.data.tokenizer import check_vocabulary
from trainers.data.tokens.bio import bio_labels, find_entities
from trainers.data.tokens.pieces import WordTable
from trainers.data.tokens.windows import IGNORED_LABEL, TokenWindows, encode_chunk
from trainers.serve.pipeline import Pipeline
from trainers.serve.served_model import Served

Strategy = Literal["first", "average", "max"]


class _Entity(TypedDict):
    entity_group: str
    """Its type, such as `protein`."""
    score: float
    """Mean over its words of the probability of their label, 0 to 1."""
    word: str
    """The text of the entity, as it was written."""
    start: int
    """`text[start:end]` is the entity; for a list of words, the text is the words with a space between."""
    end: int


class Entity(_Entity, total=False):
    """One entity, under the names that transformers' pipeline uses."""

    words: tuple[int, int]
    """For a list of words: (first word, one past the last) of the entity."""


def word_labels(scores: np.ndarray, counts: np.ndarray, strategy: Strategy) -> tuple[np.ndarray, np.ndarray]:
    """The label id (W,) of each word and its probability (W,), from those of its pieces.

    `scores` (P, L): probabilities of all pieces, word after word; `counts` (W,): pieces of each word, at least 1.
    `first` takes the word's first piece, on which the model was trained; `average` the mean over the pieces;
    `max` the piece with the highest probability of any label.
    """
    starts = np.cumsum(counts) - counts
    if strategy == "first":
        scores = scores[starts]
    elif strategy == "average" and len(starts):
        scores = np.add.reduceat(scores, starts) / counts[:, None]
    elif strategy == "max" and len(starts):
        best = scores.max(axis=1)  # (P,)
        is_best = best == np.repeat(np.maximum.reduceat(best, starts), counts)
        # The first of a word's best pieces: argmax of a boolean finds it, on the pieces sorted by word.
        pieces = np.flatnonzero(is_best)
        _, first = np.unique(np.repeat(np.arange(len(counts)), counts)[pieces], return_index=True)
        scores = scores[pieces[first]]
    ids = scores.argmax(axis=1)
    return ids, scores[np.arange(len(ids)), ids]


def find_spans(
    text: str, spans: Sequence[Span], tags: Sequence[str], scores: Sequence[float], *, strict: bool
) -> list[tuple[int, int, Entity]]:
    """The entities of one text in order, each with (first word, one past the last).

    `spans` are the places of its words, `tags` their BIO labels, `scores` the labels' probabilities. An `I-` that
    continues no entity of its type opens one; with `strict` (IOB2) it belongs to none.
    """
    found = []
    for kind, first, end in sorted(find_entities(tags, strict=strict), key=_first_word):
        start, stop = spans[first][0], spans[end - 1][1]
        score = sum(scores[first:end]) / (end - first)
        entity: Entity = {"entity_group": kind, "score": score, "word": text[start:stop], "start": start, "end": stop}
        found.append((first, end, entity))
    return found


def _first_word(entity: tuple[str, int, int]) -> int:
    return entity[1]


class TokenPipeline(Pipeline):
    """`ner(text)` gives the entities of a text; `ner(texts)` those of several.

    A text is a string, or a list of words (several: a list of such lists). Its words go through the tokeniser, the
    alignment and the windows of training, so a text of any length has exactly one prediction for each word. Texts
    without words have no entities.

    Entities are dicts with `entity_group`, `score`, `word`, `start`, `end`, see `trainers.serve.entities.Entity`.
    """

    options: ClassVar[tuple[str, ...]] = ("aggregation_strategy", "strict")
    fields: ClassVar[tuple[str, ...]] = ("text", "tokens")
    result_name: ClassVar[str] = "entities"

    def __init__(self, served: Served, **options: Any) -> None:
        self._in_sequence = getattr(served.model, "head_kind", None) == "crf"
        super().__init__(served, **options)
        tokenizer = served.tokenizer()
        check_vocabulary(tokenizer, served.vocab_size)
        self._table = WordTable(tokenizer, served.max_length)
        self._tags = bio_labels(self.labels)
        self._is_outside = np.array([tag == "O" for tag in self._tags])

    def choose(self, *, aggregation_strategy: Strategy = "first", strict: bool = False) -> None:
        """
        Args:
            aggregation_strategy: which pieces decide a word's label: the `first`, on which training puts the label;
                the `average` of all; or the one with the highest probability (`max`).
            strict: IOB2 by the letter: an `I-` that continues no entity of its type belongs to none. Otherwise it
                opens one, as in the lenient scores.

        Raises:
            ValueError: another strategy, or one that the head does not take.
        """
        if aggregation_strategy not in get_args(Strategy):
            raise ValueError(
                f"aggregation_strategy is {aggregation_strategy!r}; expected one of {', '.join(get_args(Strategy))}."
            )
        if self._in_sequence and aggregation_strategy != "first":
            raise ValueError(
                f"aggregation_strategy is {aggregation_strategy!r}, but the head crf labels whole words. Leave it out."
            )
        self.strategy: Strategy = aggregation_strategy
        self.strict = strict

    def is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str) or super().is_one(inputs)

    def predict(self, inputs: Sequence[str | Sequence[str]]) -> list[list[Entity]]:
        if not inputs:
            return []
        inputs = self.without_columns(inputs)
        for index, source in enumerate(inputs):
            if not isinstance(source, (str, list, tuple)):
                raise ValueError(f"input {index} is {type(source).__name__}, expected a text or a list of words.")
        texts, spans, words = zip(*map(_words, inputs), strict=True)
        found = self.word_predictions(words)
        results = []
        for index, (ids, scores) in enumerate(found):
            if self._is_outside[ids].all():
                results.append([])
                continue
            tags = [self._tags[label] for label in ids]
            entities = find_spans(texts[index], spans[index], tags, scores.tolist(), strict=self.strict)
            if not isinstance(inputs[index], str):
                for first, end, entity in entities:
                    entity["words"] = (first, end)
            results.append([entity for _, _, entity in entities])
        return results

    def word_predictions(self, words: Sequence[Sequence[str]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each text, given as its words: the label id (W,) of every word and its probability (W,) float32."""
        if self._in_sequence:
            return self._sequences(words)
        windows = encode_chunk(words, None, self._table, self.served.pad_token_id)
        first = np.flatnonzero(windows.word_ids >= 0)  # (W,): the words of all texts, in order
        if self.strategy == "first":
            counts, pieces = np.ones(len(first), dtype=np.int64), first
        else:
            counts = self._table.split(words).counts
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            pieces = np.repeat(first, counts) + within  # (P,)
        ids, scores = word_labels(self._probabilities_at(pieces, windows), counts, self.strategy)
        cuts = np.cumsum([len(text) for text in words])[:-1]
        return list(zip(np.split(ids, cuts), np.split(scores, cuts), strict=True))

    def _sequences(self, words: Sequence[Sequence[str]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The same by a CRF: the best sequence of each window's words, and each label's marginal probability."""
        chained = [[0] * len(text) for text in words]  # any label: it marks the words that a window owns
        windows = encode_chunk(words, chained, self._table, self.served.pad_token_id)
        ids: dict[int, np.ndarray] = {}
        scores: dict[int, np.ndarray] = {}
        for indices in self.batches_of(windows.lengths):
            inputs, labels = windows.arrays(indices)
            parts, mask = split_scores(self.logits(inputs)), labels != IGNORED_LABEL
            best = viterbi(*parts, mask)  # (B, T)
            found = np.take_along_axis(marginals(*parts, mask), best[..., None], 2)[..., 0]
            ids.update(zip(indices.tolist(), best, strict=True))
            scores.update(zip(indices.tolist(), found, strict=True))
        order = range(len(windows))
        of_words = (windows.words_from([values[index] for index in order]) for values in (ids, scores))
        return list(zip(*of_words, strict=True))

    def _probabilities_at(self, positions: np.ndarray, windows: TokenWindows) -> np.ndarray:
        """Probabilities (P, L) at some of the windows' flat positions."""
        slots = np.full(len(windows.input_ids), -1)
        slots[positions] = np.arange(len(positions))
        found = np.empty((len(positions), len(self.labels)), dtype=np.float32)
        for indices in self.batches_of(windows.lengths):
            inputs, _ = windows.arrays(indices)
            probabilities = self.probabilities(inputs)  # (B, T, L)
            columns = np.arange(probabilities.shape[1])
            inside = columns < windows.lengths[indices][:, None]  # (B, T)
            slot = np.where(inside, slots[np.where(inside, windows.offsets[indices][:, None] + columns, 0)], -1)
            found[slot[slot >= 0]] = probabilities[slot >= 0]
        return found


def _words(source: str | Sequence[str]) -> tuple[str, list[Span], list[str]]:
    """The text, the place of each of its words, and the words."""
    if isinstance(source, str):
        spans = split_text(source)
        return source, spans, [source[start:end] for start, end in spans]
    words = list(source)
    if not all(isinstance(word, str) for word in words):
        raise ValueError(f"expected words that are strings, got {words!r}.")
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    return " ".join(words), [(int(end) - len(word), int(end)) for word, end in zip(words, ends, strict=True)], words
