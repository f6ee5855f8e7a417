"""One label, or the best few, for each text or image."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import numpy as np
import torch
from torch import Tensor

from trainers.data.image_decode import COLOUR, GREY
from trainers.data.image_processing import PREPROCESSOR_FILE, ImageProcessing
from trainers.data.texts import encode_texts
from trainers.data.tokenizer import check_vocabulary
from trainers.data.windows import IGNORED_LABEL
from trainers.pipeline_base import Pipeline
from trainers.served import Served

if TYPE_CHECKING:
    from PIL.Image import Image


PIXELS_PER_TOKEN = 256
"""A patch of the usual 16 x 16 pixels is one position of an image model."""


class LabelScore(TypedDict):
    """A label under the names that transformers' pipeline uses."""

    label: str
    score: float
    """Its probability, 0 to 1."""


class ClassificationPipeline(Pipeline):
    """The best label of each input; with `top_k` other than 1 a list of labels, best first.

    As in transformers, a single input gives a list of labels in either case.
    """

    options: ClassVar[tuple[str, ...]] = ("top_k",)

    def __init__(self, served: Served, *, top_k: int | None = 1, max_tokens: int | None = None) -> None:
        """
        Args:
            top_k: labels to give for each input; None: all of them.
        """
        super().__init__(served, max_tokens=max_tokens)
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k}: expected at least 1, or None for all labels.")
        self.top_k = min(top_k or len(self.labels), len(self.labels))
        self.single = top_k == 1

    def __call__(self, inputs: Any) -> Any:
        result = super().__call__(inputs)
        return [result] if self.single and self.is_one(inputs) else result

    def predict(self, inputs: Sequence[Any]) -> list[Any]:
        logits = np.zeros((len(inputs), len(self.labels)), dtype=np.float32)
        rows = np.zeros((len(inputs), 1), dtype=np.float32)
        for indices, batch in self.batches(inputs):
            np.add.at(logits, indices, self.logits(batch).cpu().numpy())
            np.add.at(rows, indices, 1)
        # Of an input of several rows, the mean of their logits counts.
        probabilities = torch.from_numpy(logits / rows).softmax(dim=1).numpy()
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, : self.top_k]  # (inputs, top_k)
        results = [[LabelScore(label=self.labels[label], score=float(row[label])) for label in labels]
                   for row, labels in zip(probabilities, best, strict=True)]  # fmt: skip
        return [labels[0] for labels in results] if self.single else results

    def batches(self, inputs: Sequence[Any]) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        """(The input of each row, the model's keyword arguments) of every batch; an input may have several rows, also
        in several batches."""
        raise NotImplementedError


class TextPipeline(ClassificationPipeline):
    """`classify(text)`: [{"label", "score"}]. Texts that exceed the model's length are shortened as in training."""

    def __init__(self, served: Served, *, top_k: int | None = 1, max_tokens: int | None = None) -> None:
        super().__init__(served, top_k=top_k, max_tokens=max_tokens)
        self.tokenizer = served.tokenizer()
        check_vocabulary(self.tokenizer, served.vocab_size)

    def is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str)

    def batches(self, inputs: Sequence[str]) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        texts = encode_texts(inputs, np.zeros(len(inputs)), self.tokenizer, self.served.max_length,
                             self.served.pad_token_id, self.served.long_text)  # fmt: skip
        for indices in self.batches_of(texts.lengths):
            batch, labels = texts.collate(indices)
            # A text of several windows is there as often: more rows, maybe, than a batch may have.
            owners = indices[np.cumsum(labels.numpy() != IGNORED_LABEL) - 1]
            size = max(1, self.max_tokens // batch["input_ids"].shape[1])
            for start in range(0, len(owners), size):
                rows = slice(start, start + size)
                yield owners[rows], {name: tensor[rows] for name, tensor in batch.items()}


class ImagePipeline(ClassificationPipeline):
    """`classify("cell.png")`: [{"label", "score"}]. Paths, Pillow images, or arrays (H, W) or (H, W, 3) uint8."""

    def __init__(self, served: Served, *, top_k: int | None = 1, max_tokens: int | None = None) -> None:
        super().__init__(served, top_k=top_k, max_tokens=max_tokens)
        self.processing = _processing(served)
        height, width = self.processing.size
        self._rows = max(1, self.max_tokens * PIXELS_PER_TOKEN // (height * width))

    def is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, (str, Path, np.ndarray)) or hasattr(inputs, "convert")

    def batches(self, inputs: Sequence[Any]) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        for start in range(0, len(inputs), self._rows):
            sources = [_pixels(source) for source in inputs[start : start + self._rows]]
            yield np.arange(start, start + len(sources)), {"pixel_values": self.processing(sources)}


def _processing(served: Served) -> ImageProcessing:
    if served.folder is not None:
        processing = ImageProcessing.read(served.folder)
    elif PREPROCESSOR_FILE in served.metadata:
        processing = ImageProcessing.from_dict(json.loads(served.metadata[PREPROCESSOR_FILE]))
    else:
        processing = None
    if processing is None:
        raise ValueError(
            f"{served.source} has no {PREPROCESSOR_FILE}, so it is not known how its pictures are prepared."
        )
    return processing


def _pixels(source: "str | Path | np.ndarray | Image") -> str | Path | np.ndarray:
    """What `ImageProcessing` takes: a Pillow image becomes its pixels."""
    if isinstance(source, (str, Path, np.ndarray)):
        return source
    return np.asarray(source if source.mode in (GREY, COLOUR) else source.convert(COLOUR))
