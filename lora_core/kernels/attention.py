"""Attention in bf16, with softmax in fp32.

torch's flash attention for CPUs is slow in bf16 (its backward pass seven times slower than in fp32), while batched
products of bf16 matrices are four times faster than those of fp32. So attention is computed as it is written, a few
sentences at a time. The attention weights are kept for the backward pass where they are small beside query, key and
value, and computed again where they are not, so memory grows with T and not with its square.

Shapes: B sentences, T tokens (padded), Q tokens that ask (T, or fewer), H hidden size, N heads, D = H / N.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

SCORES_AT_ONCE = 2**21
"""Most attention scores that are computed at a time, unless one sentence has more."""


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, num_heads: int) -> Tensor:
    """`multi_head_attention` without dropout for bf16 inputs (B, Q, H), (B, T, H), (B, T, H); result (B, Q, H)."""
    return _Attend.apply(query, key, value, mask, num_heads)


class _Attend(Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, num_heads: int) -> Tensor:
        ctx.num_heads, ctx.scale = num_heads, (query.shape[-1] // num_heads) ** -0.5
        query, key, value = (_split(x, num_heads) for x in (query, key, value))  # (B N, T, D)
        query = query * ctx.scale
        out, kept = torch.empty_like(query), []
        for part, masked in _parts(query, key, mask, num_heads):
            weights = _weights(query[part], key[part], masked, num_heads)
            torch.bmm(weights, value[part], out=out[part])
            if key.shape[1] <= 3 * key.shape[2]:
                kept.append(weights)
        ctx.save_for_backward(query, key, value, mask, *kept)
        return _join(out, num_heads)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, *kept = ctx.saved_tensors
        grad = _split(grad, ctx.num_heads)  # (B N, Q, D)
        dquery, dkey, dvalue = (torch.empty_like(x) for x in (query, key, value))
        for number, (part, masked) in enumerate(_parts(query, key, mask, ctx.num_heads)):
            weights = kept[number] if kept else _weights(query[part], key[part], masked, ctx.num_heads)
            torch.bmm(weights.mT, grad[part], out=dvalue[part])
            dweights = torch.bmm(grad[part], value[part].mT)  # (B N, Q, T)
            dscores = torch.ops.aten._softmax_backward_data(dweights.float(), weights.float(), -1, torch.float32).to(
                weights.dtype
            )
            torch.bmm(dscores, key[part], out=dquery[part])
            torch.bmm(dscores.mT, query[part], out=dkey[part])
        return *(_join(x, ctx.num_heads) for x in (dquery.mul_(ctx.scale), dkey, dvalue)), None, None


def _parts(query: Tensor, key: Tensor, mask: Tensor | None, num_heads: int) -> Iterator[tuple[slice, Tensor | None]]:
    """Rows of (B N, ...) to work on at a time, those of whole sentences, and their mask."""
    sentences = len(query) // num_heads
    step = max(1, SCORES_AT_ONCE // (num_heads * query.shape[1] * key.shape[1]))
    for start in range(0, sentences, step):
        stop = min(start + step, sentences)
        yield slice(start * num_heads, stop * num_heads), None if mask is None else mask[start:stop]


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, num_heads: int) -> Tensor:
    """Attention weights (B N, Q, T) of queries that are scaled already."""
    scores = torch.bmm(query, key.mT).float()
    if mask is not None:
        scores.unflatten(0, (-1, num_heads)).add_(mask)
    return torch.softmax(scores, -1, out=scores).to(query.dtype)


def _split(x: Tensor, num_heads: int) -> Tensor:
    """(B, T, H) -> (B N, T, D)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2).contiguous().flatten(0, 1)


def _join(x: Tensor, num_heads: int) -> Tensor:
    """(B N, T, D) -> (B, T, H)."""
    return x.unflatten(0, (-1, num_heads)).transpose(1, 2).flatten(2)
