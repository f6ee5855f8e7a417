"""A transformer layer as a sequence of the kernels beside this file.

Shapes: B sentences, T tokens (padded), N real tokens of the batch, H hidden size, F intermediate size.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lora_core.kernels.attention import attend, attend_short, is_short
from lora_core.kernels.linear import Products, is_plain, project
from lora_core.kernels.native.build import ops
from lora_core.kernels.packed_attention import attend_packed
from lora_core.kernels.packing import Layout
from lora_core.kernels.residual import add, add_norm
from lora_core.models.layers import GatedActivation, LayerParts, MultiHeadAttention, TransformerLayer


def run_layer(
    layer: TransformerLayer,
    x: Tensor,
    layout: Layout,
    products: Products,
    shared: tuple[Tensor, ...] = (),
    read: int | None = None,
) -> Tensor:
    """Layer output (N, H) for the packed input (N, H).

    Args:
        products: how the matrix products are computed.
        shared: as `LayerStack.forward` takes it.
        read: the number of leading tokens of each sentence whose states are wanted, in a batch without padding; the
            output is (B * read, H) then. None: all.
    """
    parts, native = layer.parts(), kernels(layer, x)
    normed = parts.attention_norm(x) if layer.norm_first else x
    asking = normed
    if read is not None:
        asking, x = (layout.pad(t)[:, :read].flatten(0, 1) for t in (normed, x))
    attended = scaled(attention(parts, asking, normed, layout, products, shared, native), parts.attention_scale)
    if layer.norm_first:
        x = add(attended, x, parts.attention_output_dropout)
        outcome = scaled(feed_forward(parts, parts.output_norm(x), products), parts.output_scale)
        return add(outcome, x, parts.output_dropout)
    x = add_norm(attended, x, parts.attention_output_dropout, parts.attention_norm, native)
    outcome = scaled(feed_forward(parts, x, products), parts.output_scale)
    return add_norm(outcome, x, parts.output_dropout, parts.output_norm, native)


def kernels(layer: nn.Module, x: Tensor) -> Any:
    """The C++ kernels, where the layer is trained on a CPU and they can be had; else None.

    In evaluation torch's operators do, so those who never train build nothing.
    """
    return ops() if layer.training and torch.is_grad_enabled() and x.device.type == "cpu" else None


def attention(
    parts: LayerParts,
    asking: Tensor,
    x: Tensor,
    layout: Layout,
    products: Products,
    shared: tuple[Tensor, ...],
    native: Any,
) -> Tensor:
    """Attention of the tokens ``asking`` to the tokens ``x``, with its output projection."""
    query, key, value = query_key_value(parts.query_key_value, asking, x, products)  # (N, H)
    own = parts.attention
    drops = own.dropout.p > 0.0 and own.dropout.training
    if x.device.type != "cpu" and type(own).attend is MultiHeadAttention.attend:
        context = attend_packed(query, key, value, layout, own.num_heads, own.dropout.p if drops else 0.0)
        return project(context, (parts.attention_output,), products)[0]
    usual = not drops and type(own).attend is MultiHeadAttention.attend
    if usual and native is not None and is_short(query, layout, own.num_heads):
        context = attend_short(query, key, value, layout, own.num_heads, native)
        return project(context, (parts.attention_output,), products)[0]
    if usual and query.dtype == torch.bfloat16:
        context = attend(query, key, value, layout, own.num_heads, native)
        return project(context, (parts.attention_output,), products)[0]
    query, key, value = (layout.pad(t) for t in (query, key, value))  # (B, T, H)
    shared = own.project_shared(partial(project_rows, products=products), *shared)
    if not own.attends_in_half:
        query, key, value = query.float(), key.float(), value.float()
    context = own.attend(query, key, value, layout.mask, *shared)
    return project(layout.pack(context), (parts.attention_output,), products)[0]


def project_rows(x: Tensor, layers: tuple[nn.Module, ...], products: Products) -> tuple[Tensor, ...]:
    """`project` for an input of any shape (..., I)."""
    found = project(x.flatten(0, -2), layers, products)
    return tuple(y.unflatten(0, x.shape[:-1]) for y in found)


def query_key_value(layers: tuple[nn.Module, ...], asking: Tensor, x: Tensor, products: Products) -> tuple[Tensor, ...]:
    """Queries of the tokens ``asking``, keys and values of the tokens ``x``, by three layers or one."""
    if len(layers) == 1:
        (found,) = project(x, layers, products)
        query, key, value = found.chunk(3, -1)
        return query if asking is x else project(asking, layers, products)[0].chunk(3, -1)[0], key, value
    if asking is x:
        return project(x, layers, products)
    return *project(asking, layers[:1], products), *project(x, layers[1:], products)


def feed_forward(parts: LayerParts, x: Tensor, products: Products) -> Tensor:
    """The two dense layers, (N, H) -> (N, F) -> (N, H)."""
    (inner,) = project(x, (parts.intermediate,), products)
    inner = activate(parts.activation, inner, sole_reader=is_plain(parts.output))
    return project(inner, (parts.output,), products)[0]


def scaled(x: Tensor, scale: nn.Module | None) -> Tensor:
    """``x``, scaled if there is something that does it."""
    return x if scale is None else scale(x)


def activate(activation: nn.Module, x: Tensor, *, sole_reader: bool) -> Tensor:
    """``activation(x)``; ``sole_reader`` says that only one `project` (linear.py) reads the result."""
    if type(activation) is nn.GELU and sole_reader:
        return _Gelu.apply(x, activation.approximate)
    if type(activation) is GatedActivation and type(activation.activation) is nn.GELU:
        return activation.dropout(_GatedGelu.apply(x, activation.activation.approximate))
    return activation(x)


class _Gelu(Function):
    """GELU whose backward pass needs no memory of its own."""

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


class _GatedGelu(Function):
    """GeGLU that keeps nothing but its input, (N, 2 F) -> (N, F)."""

    @staticmethod
    def forward(ctx, x: Tensor, approximate: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.approximate = approximate
        value, gate = x.chunk(2, -1)
        return torch.ops.aten.gelu(value, approximate=approximate).mul_(gate)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        value, gate = x.chunk(2, -1)
        found = torch.empty_like(x)
        of_value, of_gate = found.chunk(2, -1)
        torch.mul(grad, torch.ops.aten.gelu(value, approximate=ctx.approximate), out=of_gate)
        torch.ops.aten.gelu_backward.grad_input(grad * gate, value, approximate=ctx.approximate, grad_input=of_value)
        return found, None
