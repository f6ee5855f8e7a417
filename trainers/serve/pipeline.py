"""What the pipelines of all tasks share (one input or many, streams without end in pieces of bounded memory, batches by
length, the forward pass), and those that give one label, or the best few, for each text or image.
"""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypedDict, TypeVar

import numpy as np

from lora_core.models.decoding import softmax
from lora_core.models.labels import ProblemType
from trainers.data.batches import evaluation_batches
from trainers.data.images.arrays import is_array
from trainers.data.images.columns import picture_of
from trainers.data.images.decode import is_picture
from trainers.data.images.processing import PREPROCESSOR_FILE, ImageProcessing
from trainers.data.labels import Decision
from trainers.data.reading import AS_FOUND
from trainers.data.rows import short
from trainers.data.table import is_table, rows_of
from trainers.data.texts.encode import KEPT, KEPT_OF_PAIR, EncodedTexts, encode_pairs, encode_texts
from trainers.data.tokenizer import check_vocabulary
from trainers.data.tokens.windows import IGNORED_LABEL
from trainers.serve.rows import InputRows
from trainers.serve.served_model import Served

logger = logging.getLogger(__name__)

MAX_TOKENS = {"cpu": 512, "cuda": 16_384}
"""Positions of a batch, padding included: work enough for the device; on a CPU more would leave its caches."""


class Pipeline:
    """A function from inputs to predictions; subclasses say what an input is and predict a list of them.

    Threads may share a pipeline: each call's results are what it would give alone. So may processes forked from the one
    that made it, where torch then computes with one thread (ONNX files: only if they were loaded with one).
    """

    options: ClassVar[tuple[str, ...]] = ()
    """Keywords that the subclass takes beside `max_tokens`."""
    fields: ClassVar[tuple[str, ...]]
    """Names under which a JSON object can hold an input; the first is also what a line of plain text is."""
    result_name: ClassVar[str] = "labels"
    """What results are called in a JSON object."""

    def __init__(self, served: Served, *, max_tokens: int | None = None, **options: Any) -> None:
        """
        Args:
            options: those of the subclass, see its `choose`.

        Raises:
            ValueError: max_tokens is below 1; an option is unknown or its value wrong.
        """
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens={max_tokens}: expected at least 1.")
        self.served = served
        self.labels = served.labels
        """Label names in the order of the logits."""
        self.max_tokens = max_tokens or MAX_TOKENS.get(served.device.partition(":")[0], MAX_TOKENS["cpu"])
        self._input_rows = InputRows(self.fields, AS_FOUND, served.reading)
        self._options: dict[str, Any] = {}
        self._take(options)

    def _take(self, options: Mapping[str, Any]) -> None:
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            raise ValueError(
                f"a pipeline for {self.served.task} has no option {unknown[0]!r}; it has {', '.join(self.options)}."
            )
        self._options = {**self._options, **options}
        self.choose(**self._options)

    def choose(self) -> None:
        """Take up the options."""

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """The result of one input, a list of results for a list or a table, an iterator over those of another iterable.

        Options are for this call alone; the others are the pipeline's.

        A table is a pandas or polars DataFrame, a datasets.Dataset or a dict of lists; a dict is a row. Of its columns
        those are read that the model was trained on, or that have usual names.
        """
        if options:
            once = copy.copy(self)
            once._take(options)
            return once(inputs)
        if is_table(inputs):
            rows, _ = rows_of(inputs, "the table")
            return list(self.stream(rows))
        if self.is_one(inputs):
            return self.predict([inputs])[0]
        if isinstance(inputs, bytes) or not isinstance(inputs, Iterable):
            raise ValueError(f"the input is {type(inputs).__name__}; expected one input, or a list or stream of them.")
        results = self.stream(inputs)
        return list(results) if isinstance(inputs, (list, tuple)) else results

    def stream(self, inputs: Iterable[Any]) -> Iterator[Any]:
        """The results in order, while at most a chunk of inputs (about a thousand) is held in memory."""
        for chunk in chunks(inputs):
            yield from self.predict(chunk)

    def is_one(self, inputs: Any) -> bool:
        """Whether this is a single input, and not several."""
        return isinstance(inputs, Mapping) and not is_table(inputs)

    def predict(self, inputs: Sequence[Any]) -> list[Any]:
        """The results of these inputs, which are prepared and sorted by length together."""
        raise NotImplementedError

    def without_columns(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """The inputs, of rows (dicts) the columns that are predicted from.

        Raises:
            ValueError: a row has none of them, or they hold something else.
        """
        if not any(isinstance(one, Mapping) for one in inputs):
            return inputs
        found = []
        for index, one in enumerate(inputs):
            try:
                found.append(self._input_of(one) if isinstance(one, Mapping) else one)
            except ValueError as problem:
                raise ValueError(f"input {index}: {problem}.") from problem
        return found

    def _input_of(self, row: Mapping[str, Any]) -> Any:
        return self._input_rows.input_of(row)

    def batches_of(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Indices (B,) of every batch: inputs of similar length, longest first, within `max_tokens`."""
        return evaluation_batches(lengths, self.max_tokens)

    def logits(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The model's logits in float32 for its keyword arguments."""
        return self.served.logits(**inputs)

    def probabilities(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Softmax of the model's logits, (B, L) or (B, T, L) float32."""
        return softmax(self.logits(inputs))


Item = TypeVar("Item")

CHUNK_ITEMS = 1024
"""Inputs that are prepared and sorted by length together."""
CHUNK_CHARACTERS = 1 << 20
"""Characters after which a chunk is full, however few inputs it has."""


def chunks(items: Iterable[Item], of: Callable[[Item], Any] | None = None) -> Iterator[list[Item]]:
    """The items in order, in lists of bounded size; no more than one list is read ahead.

    ``of`` gives the input that an item holds; None: the item is one.
    """
    chunk: list[Item] = []
    characters = 0
    for item in items:
        chunk.append(item)
        held = item if of is None else of(item)
        characters += len(held) if isinstance(held, str) else 8 * len(held) if isinstance(held, (list, tuple)) else 0
        if len(chunk) == CHUNK_ITEMS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


PIXELS_PER_TOKEN = 256
"""A patch of the usual 16 x 16 pixels is one position of an image model."""


class LabelScore(TypedDict):
    """A label under the names that transformers' pipeline uses."""

    label: str
    score: float
    """Its probability, 0 to 1; the value itself for a regression."""


class ClassificationPipeline(Pipeline):
    """The best label of each input; with `top_k` other than 1 a list of labels, best first.

    As in transformers, a single input gives a list of labels in either case. A multi-label model gives a list of every
    label above its threshold, which may be empty, unless `top_k` is given.
    """

    options: ClassVar[tuple[str, ...]] = ("top_k", "threshold")

    def choose(self, *, top_k: int | Literal["auto"] | None = "auto", threshold: float | None = None) -> None:
        """
        Args:
            top_k: labels to give for each input; None: all of them; "auto": one, or for a multi-label model those above
                their thresholds.
            threshold: multi-label models: give the labels with a score above it, of `top_k` at most. None: each label's
                own, which training chose, or 0.5.

        Raises:
            ValueError: top_k is below 1, or a threshold is no probability or not for this model.
        """
        if isinstance(top_k, int) and top_k < 1:
            raise ValueError(f"top_k={top_k}: expected at least 1, or None for all labels.")
        served = self.served
        several = served.problem_type == "multi_label_classification"
        if threshold is not None and not several:
            raise ValueError(
                f"threshold={threshold}: it is for models with problem_type multi_label_classification, but that of "
                f"{served.source} is {served.problem_type or 'not given'}. Leave it out."
            )
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold}: expected a probability, 0 to 1.")
        self.thresholds: np.ndarray | None = None
        """(L,) the score above which a label is given; None: `top_k` alone counts."""
        if threshold is not None:
            self.thresholds = np.full(len(self.labels), threshold)
        elif several and top_k == "auto":
            self.thresholds = Decision(thresholds=served.thresholds).of(self.labels)
        if top_k == "auto":
            top_k = None if several else 1
        self.top_k = min(top_k or len(self.labels), len(self.labels))
        self.single = top_k == 1 and self.thresholds is None

    def __call__(self, inputs: Any, **options: Any) -> Any:
        result = super().__call__(inputs, **options)
        if options:  # the pipeline that has them has seen to it
            return result
        return [result] if self.single and self.is_one(inputs) else result

    def predict(self, inputs: Sequence[Any]) -> list[Any]:
        inputs = self.without_columns(inputs)
        logits = np.zeros((len(inputs), len(self.labels)), dtype=np.float32)
        rows = np.zeros((len(inputs), 1), dtype=np.float32)
        for indices, batch in self.batches(inputs):
            np.add.at(logits, indices, self.logits(batch))
            np.add.at(rows, indices, 1)
        # Of an input of several rows, the mean of their logits counts.
        scores = scores_of_logits(logits / rows, self.served.problem_type)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self.top_k]  # (inputs, top_k)
        given = np.ones_like(scores, dtype=bool) if self.thresholds is None else scores > self.thresholds
        results = [
            [LabelScore(label=self.labels[label], score=float(row[label])) for label in labels if wanted[label]]
            for row, labels, wanted in zip(scores, best, given, strict=True)
        ]
        return [labels[0] for labels in results] if self.single else results

    def batches(self, inputs: Sequence[Any]) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """(The input of each row, the model's keyword arguments) of every batch; an input may have several rows, also
        in several batches."""
        raise NotImplementedError


def scores_of_logits(logits: np.ndarray, problem_type: ProblemType | None) -> np.ndarray:
    """The scores (B, L) of texts or images, as transformers' pipelines make them of logits (B, L).

    A regression's values are the logits. Labels that are there or not each for itself have the sigmoid; so has a label
    that is alone, whatever `problem_type` says of a classification. Of several labels that exclude each other it is
    the softmax.
    """
    if problem_type == "regression":
        return logits
    if problem_type == "multi_label_classification" or logits.shape[-1] == 1:
        return np.exp(-np.logaddexp(0, -logits, dtype=np.float64)).astype(logits.dtype)  # the sigmoid
    return softmax(logits)


class TextPipeline(ClassificationPipeline):
    """`classify(text)`: [{"label", "score"}]. Texts that exceed the model's length are shortened as in training.

    A pair of texts is ("a", "b") or a row such as {"text": "a", "text_pair": "b"}.
    """

    fields: ClassVar[tuple[str, ...]] = ("text",)

    def __init__(self, served: Served, **options: Any) -> None:
        super().__init__(served, **options)
        self.tokenizer = served.tokenizer()
        check_vocabulary(self.tokenizer, served.vocab_size)
        self._said_shortened = False

    def is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str) or _is_pair(inputs) or super().is_one(inputs)

    def encode(self, inputs: Sequence[Any]) -> EncodedTexts:
        """The texts, or the pairs of texts, in the model's tokens.

        Raises:
            ValueError: some are pairs and some are not, or the model was trained on the others.
        """
        given = [one if _is_pair(one) else (one, None) for one in inputs]
        pairs = [pair for _, pair in given if pair is not None]
        if pairs and len(pairs) < len(given):
            raise ValueError("some inputs are pairs of texts and some are single texts. Give one kind at a time.")
        if given and self.served.pairs is not None and self.served.pairs != bool(pairs):
            wanted = '("a", "b"), or "text" and "text_pair"' if self.served.pairs else "one text each"
            known = "pairs of texts" if self.served.pairs else "single texts"
            raise ValueError(f"{self.served.source} was trained on {known}: give {wanted}.")
        texts, targets, served = [text for text, _ in given], np.zeros(len(given), dtype=np.int64), self.served
        if pairs:
            encoded = encode_pairs(
                texts,
                pairs,
                targets,
                self.tokenizer,
                served.max_length,
                served.pad_token_id,
                served.segments,
                served.long_text,
            )
        else:
            encoded = encode_texts(
                texts, targets, self.tokenizer, served.max_length, served.pad_token_id, served.long_text
            )
        if encoded.shortened and not self._said_shortened:
            self._said_shortened = True
            kept = KEPT_OF_PAIR if pairs else KEPT.get(served.long_text, "")
            logger.warning(
                "%s reads at most %d tokens: of longer input, as here, %s is kept (said once)",
                served.source,
                served.max_length,
                kept,
            )
        return encoded

    def batches(self, inputs: Sequence[Any]) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        texts = self.encode(inputs)
        for indices in self.batches_of(texts.lengths):
            batch, labels = texts.arrays(indices)
            # A text of several windows is there as often: more rows, maybe, than a batch may have.
            owners = indices[np.cumsum(labels != IGNORED_LABEL) - 1]
            size = max(1, self.max_tokens // batch["input_ids"].shape[1])
            for start in range(0, len(owners), size):
                rows = slice(start, start + size)
                yield owners[rows], {name: array[rows] for name, array in batch.items()}


def _is_pair(inputs: Any) -> bool:
    """Whether this is ("a", "b"); a list of two strings is two texts."""
    return isinstance(inputs, tuple) and len(inputs) == 2 and all(isinstance(text, str) for text in inputs)


class ImagePipeline(ClassificationPipeline):
    """`classify("cell.png")`: [{"label", "score"}]. A picture is whatever `decode` takes: a path, the content of
    a file, a Pillow image, an array or a tensor. An array or tensor of four dimensions is a list of pictures."""

    fields: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, served: Served, **options: Any) -> None:
        super().__init__(served, **options)
        self.processing = _processing(served)
        height, width = self.processing.size
        self._rows = max(1, self.max_tokens * PIXELS_PER_TOKEN // (height * width))

    def __call__(self, inputs: Any, **options: Any) -> Any:
        return super().__call__(list(inputs) if is_array(inputs) and inputs.ndim == 4 else inputs, **options)

    def is_one(self, inputs: Any) -> bool:
        return is_picture(inputs) or super().is_one(inputs)

    def _input_of(self, row: Mapping[str, Any]) -> Any:
        columns = self._input_rows.columns(row)
        if columns is None:
            raise ValueError(f"expected a column image, got {short(list(row))}")
        value = row[columns.first[0]]
        return picture_of(value) if isinstance(value, Mapping) else value  # as data sets of the hub hold it

    def batches(self, inputs: Sequence[Any]) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        for start in range(0, len(inputs), self._rows):
            sources = inputs[start : start + self._rows]
            yield np.arange(start, start + len(sources)), {"pixel_values": self.processing.pixel_values(sources)}


def _processing(served: Served) -> ImageProcessing:
    if served.folder is not None:
        processing = ImageProcessing.read(served.folder)
    elif PREPROCESSOR_FILE in served.metadata:
        where = f"{served.source}: {PREPROCESSOR_FILE}"
        processing = ImageProcessing.from_json(served.metadata[PREPROCESSOR_FILE], where)
    else:
        processing = None
    if processing is None:
        raise ValueError(
            f"{served.source} has no {PREPROCESSOR_FILE}, so it is not known how its pictures are prepared."
        )
    return processing
