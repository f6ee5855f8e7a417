"""Parts that all encoders share: attention and its mask, activations, dropout, the check of the input.

Shapes: B sentences, T tokens (padded), H hidden size, N attention heads, D = H / N.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_core.dropout import Dropout

__all__ = [
    "ACTIVATIONS",
    "Dropout",
    "activation",
    "additive_mask",
    "check_input",
    "multi_head_attention",
]

ACTIVATIONS: dict[str, tuple[type[nn.Module], dict[str, str]]] = {
    "gelu": (nn.GELU, {}),
    "gelu_new": (nn.GELU, {"approximate": "tanh"}),
    "gelu_fast": (nn.GELU, {"approximate": "tanh"}),
    "gelu_pytorch_tanh": (nn.GELU, {"approximate": "tanh"}),
    "relu": (nn.ReLU, {}),
    "silu": (nn.SiLU, {}),
    "swish": (nn.SiLU, {}),
}
"""Activations by the names that config.json uses. The three tanh forms of GELU are one formula."""

MASKED = -(2.0**15)
"""Added to the attention score of a padded token. exp() of it is 0, and unlike the least float32 it is finite
in float16 and bfloat16 too, where an infinity would turn a row of nothing but padding into NaN."""


def activation(name: str) -> nn.Module:
    """Return the activation module that config.json calls `name`."""
    module, options = ACTIVATIONS[name]
    return module(**options)


def additive_mask(attention_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Turn a mask (B, T), zero or False at padding, into what is added to the scores (B, 1, 1, T)."""
    if attention_mask is None:
        return None
    padding = (attention_mask == 0)[:, None, None, :]  # (B, 1, 1, T)
    return torch.zeros_like(padding, dtype=dtype).masked_fill_(padding, MASKED)


def multi_head_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, num_heads: int, dropout_p: float
) -> Tensor:
    """Scaled dot-product attention over `num_heads` slices of H.

    `query`, `key`, `value` and the result are (B, T, H), `mask` is from `additive_mask`; `dropout_p` is
    applied to the attention weights as it stands, so pass 0 outside training.
    """
    query, key, value = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    context = F.scaled_dot_product_attention(query, key, value, mask, dropout_p)  # (B, N, T, D)
    return context.transpose(1, 2).flatten(2)  # (B, T, H)


def check_input(input_ids: Tensor, attention_mask: Tensor | None, max_tokens: int) -> None:
    """Raise ValueError when the shapes do not fit, where the layers would fail with an unrelated message."""
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; expected (sentences, tokens)")
    if input_ids.shape[1] > max_tokens:
        raise ValueError(
            f"input_ids has {input_ids.shape[1]} tokens a sentence, the model positions for {max_tokens}; "
            "cut longer text into windows"
        )
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; expected that of input_ids, "
            f"{tuple(input_ids.shape)}"
        )
