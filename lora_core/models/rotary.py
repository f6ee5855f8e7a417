"""Positions that turn queries and keys (RoPE, Su et al. 2021, https://arxiv.org/abs/2104.09864).

Entry i of a head's first half and entry i of its second half are the coordinates of a point, which is turned by the
angle position * theta^(-2i / D). The product of a query with a key then depends on their distance alone.

Shapes: B sentences, T tokens (padded), N attention heads, D size of a head, H = N D.
"""

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lora_core.models.host import send
from lora_core.models.layers import MICROSOFT, GraphBuilder


def rotation(tokens: int, head_size: int, theta: float, device: torch.device | None = None) -> Tensor:
    """Cosines and sines of the angles at the positions 0 to T - 1, (2, T, D / 2), in float32."""
    places = torch.arange(tokens, device=device, dtype=torch.float32)
    angles = places[:, None] * send(_frequencies(head_size, theta), places.device)  # (T, D / 2)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: Tensor, by: Tensor) -> Tensor:
    """Queries or keys (B, T, H), turned by a `rotation`; computed in float32."""
    cos, sin = by[:, :, None]  # (T, 1, D / 2)
    halves = x.float().unflatten(-1, (-1, 2, cos.shape[-1]))  # (B, T, N, 2, D / 2)
    return _Rotate.apply(halves, cos, sin).flatten(2).to(x.dtype)


class _Rotate(Function):
    """Nothing but the angles is kept for the backward pass, which turns back."""

    @staticmethod
    def forward(ctx, halves: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(halves, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, -sin), None, None


def _turned(halves: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out = halves * cos[:, :, None]
    out[..., 0, :].addcmul_(halves[..., 1, :], sin, value=-1)
    out[..., 1, :].addcmul_(halves[..., 0, :], sin)
    return out


def onnx_rotation(graph: GraphBuilder, tokens: str, head_size: int, theta: float) -> tuple[str, str]:
    """`rotation` as a graph for T `tokens`, an int64 scalar: cosines and sines, (T, D / 2) each."""
    places = graph.op("Range", graph.constant(0), tokens, graph.constant(1))
    column = graph.op("Unsqueeze", graph.cast(places, np.float32), graph.constant([1]))
    angles = graph.op("Mul", column, graph.constant(_frequencies(head_size, theta).numpy(), np.float32))
    return graph.op("Cos", angles), graph.op("Sin", angles)


def onnx_rotate(graph: GraphBuilder, x: str, by: tuple[str, str]) -> str:
    """`rotate` as a graph, (B, T, H) -> (B, T, H)."""
    return graph.op("RotaryEmbedding", x, graph.constant([0]), *by, domain=MICROSOFT)


def _frequencies(head_size: int, theta: float) -> Tensor:
    """theta^(-2i / D), (D / 2,), on the CPU whatever torch's default device is."""
    return 1 / theta ** (torch.arange(0, head_size, 2, dtype=torch.float32, device="cpu") / head_size)
