"""Dropout whose random numbers are cheap on a CPU, and whose mask takes one byte an element.

torch draws one double per element and then compares; on a CPU that takes a fifth of a training step. Two
random bytes per element, drawn eight at a time, give the same distribution with a rate exact to 1/65536.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_INT64_MIN = -(2**63)
LEVELS = 2**16
"""Rates of dropout are multiples of one in so many."""
_SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Dropout(nn.Dropout):
    """nn.Dropout: same distribution, scaling and random state (torch's default generator), less time on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        if x.device.type != "cpu" or too_sparse(self.p) or torch.compiler.is_compiling():
            return F.dropout(x, self.p, training=True)
        keep, scale = keep_mask(x.shape, self.p)
        return (x * keep).mul_(scale)


class _DropoutAdd(Function):
    """residual + scale * keep * x, without a copy of x."""

    @staticmethod
    def forward(ctx, x: Tensor, residual: Tensor, p: float) -> Tensor:
        keep, ctx.scale = keep_mask(x.shape, p)
        ctx.save_for_backward(keep)
        ctx.dtype = x.dtype
        return torch.add(residual, drop(x, keep), alpha=ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        (keep,) = ctx.saved_tensors
        dx = drop(grad, keep).mul_(ctx.scale).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        return dx, grad, None


def dropout_add(x: Tensor, residual: Tensor, dropout: nn.Dropout) -> Tensor:
    """``dropout(x) + residual``; the result has the wider of their dtypes."""
    if not dropout.training or dropout.p == 0.0:
        return x + residual
    if x.device.type != "cpu" or too_sparse(dropout.p):
        return F.dropout(x, dropout.p) + residual
    return _DropoutAdd.apply(x, residual, dropout.p)


def keep_mask(shape: Sequence[int], p: float) -> tuple[Tensor, float]:
    """0 with probability ``p``, else 1, as uint8 of ``shape`` on the CPU; and the factor that keeps the mean.

    Bytes that are typed as numbers multiply a float tensor three times faster than bools do.
    """
    keep = torch.empty(shape, dtype=torch.uint8)
    count = keep.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64).random_(_INT64_MIN, None).view(torch.int16)[:count]
    dropped = round(p * LEVELS)  # of the 65536 values of an int16, which is uniform from -32768
    torch.ge(bits, dropped - LEVELS // 2, out=keep.view(-1))
    return keep, LEVELS / (LEVELS - dropped)


def drop(x: Tensor, keep: Tensor, *, in_place: bool = False) -> Tensor:
    """``x`` where ``keep`` is 1, and 0 where it is 0; not for autograd.

    The bits are multiplied as integers, which for bf16 takes a third of the time.
    """
    bits = x.view(_SAME_SIZE[x.itemsize])
    return (bits.mul_(keep) if in_place else bits * keep).view(x.dtype)


def too_sparse(p: float) -> bool:
    """Whether so little is kept that 65536 levels cannot tell it from nothing."""
    return p > 1 - 1 / LEVELS
