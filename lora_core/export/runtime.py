"""ONNX files of this library as modules of torch: what `OnnxSession` does, on tensors.

Shapes: B texts or images, T tokens (padded), C channels, L labels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lora_core.export.session import Backend, OnnxSession


class OnnxModel(nn.Module, OnnxSession):
    """An ONNX file as a model: `model(input_ids, attention_mask)` or `model(pixel_values=...)` gives the logits.

    Args, attributes and errors are those of `OnnxSession`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        spinning: bool = True,
        providers: Sequence[str] | None = None,
        backend: Backend = "onnx",
    ) -> None:
        nn.Module.__init__(self)
        OnnxSession.__init__(self, path, threads=threads, spinning=spinning, providers=providers, backend=backend)

    @classmethod
    def of(cls, session: OnnxSession) -> "OnnxModel":
        """The same session as a module."""
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model.__dict__.update(vars(session))
        return model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the logits in float32, on the inputs' device, as `OnnxSession.run`.

        Raises:
            ValueError: the inputs are not this model's.
        """
        candidates = {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values,
                      "token_type_ids": token_type_ids}  # fmt: skip
        given = {name: tensor for name, tensor in candidates.items() if tensor is not None}
        logits = torch.from_numpy(self.run(**{name: _array(tensor) for name, tensor in given.items()}))
        return logits.to(next(iter(given.values())).device)

    def extra_repr(self) -> str:
        precision = " ".join([self.metadata["precision"], self.activations]).strip()
        return (
            f"{str(self.path)!r}, task={self.task!r}, labels={len(self.labels)}, precision={precision!r}, "
            f"providers={self.providers}"
        )


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
