"""GELU whose backward pass needs no memory of its own."""

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


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
