"""What the pipelines of all tasks share: one input or many, streams, batches by length, and the forward pass."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from trainers.data.batches import evaluation_batches
from trainers.served import Served
from trainers.streaming import chunks

MAX_TOKENS = {"cpu": 1024, "cuda": 16_384}
"""Positions of a batch, padding included: work enough for the device; on a CPU more would leave its caches."""


class Pipeline:
    """A function from inputs to predictions; subclasses say what an input is and predict a list of them."""

    options: ClassVar[tuple[str, ...]] = ()
    """Keywords that the subclass takes beside `max_tokens`."""

    def __init__(self, served: Served, *, max_tokens: int | None = None) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens={max_tokens}: expected at least 1.")
        self.served = served
        self.labels = served.labels
        """Label names in the order of the logits."""
        self.max_tokens = max_tokens or MAX_TOKENS.get(served.device.type, MAX_TOKENS["cpu"])

    def __call__(self, inputs: Any) -> Any:
        """The result of one input, a list of results for a list, an iterator over results for another iterable."""
        if self.is_one(inputs):
            return self.predict([inputs])[0]
        if isinstance(inputs, (bytes, dict)) or not isinstance(inputs, Iterable):
            raise ValueError(f"the input is {type(inputs).__name__}; expected one input, or a list or stream of them.")
        results = self.stream(inputs)
        return list(results) if isinstance(inputs, (list, tuple)) else results

    def stream(self, inputs: Iterable[Any]) -> Iterator[Any]:
        """The results in order, while at most a chunk of inputs (about a thousand) is held in memory."""
        for chunk in chunks(inputs):
            yield from self.predict(chunk)

    def is_one(self, inputs: Any) -> bool:
        """Whether this is a single input, and not several."""
        raise NotImplementedError

    def predict(self, inputs: Sequence[Any]) -> list[Any]:
        """The results of these inputs, which are prepared and sorted by length together."""
        raise NotImplementedError

    def batches_of(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Indices (B,) of every batch: inputs of similar length, longest first, within `max_tokens`."""
        return evaluation_batches(lengths, self.max_tokens)

    @torch.inference_mode()
    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        """The model's logits in float32, on its device."""
        return self.served.model(**{name: tensor.to(self.served.device) for name, tensor in inputs.items()}).float()

    def probabilities(self, inputs: dict[str, Tensor]) -> np.ndarray:
        """Softmax of the model's logits, (B, L) or (B, T, L) float32."""
        return self.logits(inputs).softmax(dim=-1).cpu().numpy()
