"""The end of each half of a transformer layer: dropout, residual sum and, where a norm follows, LayerNorm.

Shapes: N tokens, H hidden size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lora_core.dropout import dropout_add, too_sparse
from lora_core.kernels.dropout import draw_keep


def add(x: Tensor, residual: Tensor, dropout: nn.Dropout | None) -> Tensor:
    """``dropout(x) + residual`` (N, H), in the dtype of the residual."""
    return x + residual if dropout is None else dropout_add(x, residual, dropout)


def add_norm(x: Tensor, residual: Tensor, dropout: nn.Dropout | None, norm: nn.Module, native: Any) -> Tensor:
    """``norm(dropout(x) + residual)`` (N, H).

    Args:
        native: the C++ kernels, which compute it in one pass each way; None: torch's operators do.
    """
    p = dropout.p if dropout is not None and dropout.training else 0.0
    known = type(norm) is nn.LayerNorm and len(norm.normalized_shape) == 1
    if native is None or not known or residual.dtype != torch.float32 or too_sparse(p):
        return norm(add(x, residual, dropout))
    assert isinstance(norm, nn.LayerNorm)
    return _AddNorm.apply(x, residual, norm.weight, norm.bias, norm.eps, p, native)


class _AddNorm(Function):
    """What waits for the backward pass is the residual sum, two numbers a token, and the seed of the mask."""

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        p: float,
        native: Any,
    ) -> Tensor:
        keep, ctx.scale = draw_keep(x, p) if p > 0.0 else (None, 1.0)
        ctx.native, ctx.dtype = native, x.dtype
        out, total, moments = native.add_norm(x.contiguous(), residual.contiguous(), weight, bias, eps, keep, ctx.scale)
        ctx.save_for_backward(total, moments, weight, keep)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        total, moments, weight, keep = ctx.saved_tensors
        needs_x, needs_residual, needs_weight, needs_bias = ctx.needs_input_grad[:4]
        dx, dresidual, dweight, dbias = ctx.native.add_norm_backward(
            grad.contiguous(), total, moments, weight, keep, ctx.scale, ctx.dtype, needs_x, needs_weight, needs_bias
        )
        return (
            dx if needs_x else None,
            dresidual if needs_residual else None,
            dweight if needs_weight else None,
            dbias if needs_bias else None,
            *(None, None, None),
        )
