"""A transformer layer as a sequence of the kernels beside this file.

`post_norm_layer` is BERT's, RoBERTa's and DistilBERT's, `pre_norm_layer` is ViT's; what differs between families is
where the parts are found (fused.py).

Shapes: N real tokens of the batch, H hidden size, F intermediate size.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lora_core.dropout import dropout_add
from lora_core.kernels.attention import attend
from lora_core.kernels.linear import is_plain, project
from lora_core.kernels.packing import Layout
from lora_core.models.layers import multi_head_attention

# DOC """GELU whose backward pass needs no memory of its own."""


class Parts(NamedTuple):
    """The modules of one transformer layer."""

    query: nn.Module
    key: nn.Module
    value: nn.Module
    num_heads: int
    attention_dropout: nn.Dropout
    attention_output: nn.Module
    attention_output_dropout: nn.Dropout | None
    attention_norm: nn.Module
    """After the first residual sum, or before the attention."""
    intermediate: nn.Module
    activation: nn.Module
    output: nn.Module
    output_dropout: nn.Dropout
    output_norm: nn.Module
    """After the second residual sum, or before the feed-forward layers."""


def post_norm_layer(parts: Parts, x: Tensor, layout: Layout, dtype: torch.dtype | None) -> Tensor:
    """Layer output (N, H) for the packed input (N, H); ``dtype`` is that of the matrix products, None: x's own."""
    attended = parts.attention_norm(add(attention(parts, x, x, layout, dtype), x, parts.attention_output_dropout))
    return parts.output_norm(add(feed_forward(parts, attended, dtype), attended, parts.output_dropout))


def pre_norm_layer(parts: Parts, x: Tensor, layout: Layout, dtype: torch.dtype | None, read: int | None) -> Tensor:
    """The same where norms come first; ``read`` is the number of leading tokens wanted, None for all."""
    normed = parts.attention_norm(x)
    asking = normed
    if read is not None:
        asking, x = (layout.pad(t)[:, :read].flatten(0, 1) for t in (normed, x))
    x = add(attention(parts, asking, normed, layout, dtype), x, parts.attention_output_dropout)
    return add(feed_forward(parts, parts.output_norm(x), dtype), x, parts.output_dropout)


def attention(parts: Parts, asking: Tensor, x: Tensor, layout: Layout, dtype: torch.dtype | None) -> Tensor:
    """Multi-head attention of the tokens ``asking`` to the tokens ``x``, with its output projection."""
    if asking is x:
        query, key, value = project(x, (parts.query, parts.key, parts.value), dtype)
    else:
        (query,), (key, value) = project(asking, (parts.query,), dtype), project(x, (parts.key, parts.value), dtype)
    query, key, value = (layout.pad(t) for t in (query, key, value))  # (B, T, H)
    dropout_p = parts.attention_dropout.p if parts.attention_dropout.training else 0.0
    if query.dtype == torch.bfloat16 and dropout_p == 0.0:
        context = attend(query, key, value, layout.mask, parts.num_heads)
    else:
        query, key, value = query.float(), key.float(), value.float()
        context = multi_head_attention(query, key, value, layout.mask, parts.num_heads, dropout_p)
    return project(layout.pack(context), (parts.attention_output,), dtype)[0]


def feed_forward(parts: Parts, x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The two dense layers, (N, H) -> (N, F) -> (N, H)."""
    (inner,) = project(x, (parts.intermediate,), dtype)
    inner = activate(parts.activation, inner, sole_reader=is_plain(parts.output))
    return project(inner, (parts.output,), dtype)[0]


def add(x: Tensor, residual: Tensor, dropout: nn.Dropout | None) -> Tensor:
    """``dropout(x) + residual``, in the dtype of the residual."""
    return x + residual if dropout is None else dropout_add(x, residual, dropout)


class _Gelu(Function):
    @staticmethod
    def forward(ctx, x: Tensor, approximate: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.approximate = approximate
        return torch.ops.aten.gelu(x, approximate=approximate)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        # The linear layer that follows made this gradient for this one reader, so its memory is free.
        torch.ops.aten.gelu_backward.grad_input(grad, x, approximate=ctx.approximate, grad_input=grad)
        return grad, None


def activate(activation: nn.Module, x: Tensor, *, sole_reader: bool) -> Tensor:
    """``activation(x)``; ``sole_reader`` says that only one `project` (linear.py) reads the result."""
    if type(activation) is nn.GELU and sole_reader:
        return _Gelu.apply(x, activation.approximate)
    return activation(x)
