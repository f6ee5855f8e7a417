"""Attention on a CPU, in other ways than torch's.

- `attend_short`: a C++ kernel that works on packed rows, a head of a sentence at a time. torch's flash attention takes
  padded sentences, whose heads have to be copied apart and together again, and works in blocks that are too large for
  short ones: forwards and backwards it takes 1.3 to 2.6 times as long up to 40 tokens in fp32, as long at 256.
- `attend`, in bf16 with softmax in fp32: torch's flash attention is slow there (its backward pass seven times slower
  than in fp32), while batched products of bf16 matrices are four times faster than those of fp32. So attention is
  computed as it is written, a few sentences at a time. The attention weights are kept for the backward pass where they
  are small beside query, key and value, and computed again where they are not, so memory grows with T and not with its
  square.

Shapes: R packed rows (packing.py), B sentences, T tokens (padded), Q tokens that ask (T, or fewer), H hidden size,
N heads, D = H / N.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lora_core.kernels.packing import Layout, put, take

SHORT = 192
"""Longest sentence, in tokens, for which the C++ kernel is the faster one."""
HALF_SIZE = 32
"""Largest head for which that is so in bf16, in which batched products gain with its size."""
SCORES_AT_ONCE = 2**21
"""Most attention scores that are computed at a time, unless one sentence has more."""


class Heads(NamedTuple):
    """How packed rows (R, H) become the heads of padded sentences (B N, T, D), and back."""

    layout: Layout
    number: int
    native: Any = None
    """The C++ kernels, which do it in one pass; None: torch's operators do."""

    def split(self, rows: Tensor, scale: float = 1.0) -> Tensor:
        """``rows`` times ``scale``, with zeros at the padding. They may be of fewer tokens where there is none."""
        index, sentences = self.layout.index, self.layout.sentences
        tokens = len(rows) // sentences if index is None else self.layout.tokens
        if self.native is not None:
            return self.native.split_heads(rows, index, sentences, tokens, self.number, scale)
        padded = rows if index is None else put(rows, index, sentences * tokens)
        split = padded.view(sentences, tokens, self.number, -1).transpose(1, 2).contiguous().flatten(0, 1)
        return split if scale == 1.0 else split * scale

    def join(self, split: Tensor, rows: int, scale: float = 1.0) -> Tensor:
        """``rows`` packed rows of ``split`` times ``scale``, with zeros behind the real ones."""
        index = self.layout.index
        if self.native is not None:
            return self.native.join_heads(split, index, rows, self.number, scale)
        if scale != 1.0:
            split = split * scale
        padded = split.unflatten(0, (-1, self.number)).transpose(1, 2).flatten(2).flatten(0, 1)  # (B T, H)
        return padded if index is None else take(padded, index)


def attend(query: Tensor, key: Tensor, value: Tensor, layout: Layout, num_heads: int, native: Any = None) -> Tensor:
    """`multi_head_attention` without dropout for packed bf16 rows.

    Args:
        query: (R, H), or (B Q, H) where there is no padding.
        key, value: (R, H).
        native: the C++ kernels, if they may be used.

    Returns:
        A row for each query.
    """
    return _Attend.apply(query, key, value, Heads(layout, num_heads, native))


def is_short(query: Tensor, layout: Layout, num_heads: int) -> bool:
    """Whether `attend_short` is the fastest for these sentences and heads."""
    size = query.shape[-1] // num_heads
    return layout.boundaries[1] <= SHORT and (query.dtype == torch.float32 or size <= HALF_SIZE)


def attend_short(query: Tensor, key: Tensor, value: Tensor, layout: Layout, num_heads: int, native: Any) -> Tensor:
    """`attend` for fp32 too, by the C++ kernels; all is computed in fp32 and nothing of the size T * T is kept."""
    told, _ = layout.boundaries
    asked = told
    if len(query) != len(key):  # the leading tokens of sentences without padding
        asked = torch.arange(0, len(query) + 1, len(query) // layout.sentences, dtype=torch.int32)
    return _AttendShort.apply(query, key, value, asked, told, num_heads, native)


class _AttendShort(Function):
    @staticmethod
    def forward(
        ctx, query: Tensor, key: Tensor, value: Tensor, asked: Tensor, told: Tensor, heads: int, native: Any
    ) -> Tensor:
        out, softmax = native.attend(query, key, value, asked, told, heads)
        ctx.save_for_backward(query, key, value, softmax, asked, told)
        ctx.heads, ctx.native = heads, native
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = ctx.native.attend_backward(grad.contiguous(), *ctx.saved_tensors, ctx.heads)
        return *found, None, None, None, None


class _Attend(Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, heads: Heads) -> Tensor:
        ctx.heads, ctx.rows = heads, (len(query), len(key))
        mask, num_heads = heads.layout.mask, heads.number
        ctx.scale = (query.shape[-1] // num_heads) ** -0.5
        query, key, value = heads.split(query, ctx.scale), heads.split(key), heads.split(value)  # (B N, T, D)
        out, kept = torch.empty_like(query), []
        for part, masked in _parts(query, key, mask, num_heads):
            weights = _weights(query[part], key[part], masked, num_heads)
            torch.bmm(weights, value[part], out=out[part])
            if key.shape[1] <= 3 * key.shape[2]:
                kept.append(weights)
        ctx.save_for_backward(query, key, value, *kept)
        return heads.join(out, ctx.rows[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        heads: Heads = ctx.heads
        mask, num_heads = heads.layout.mask, heads.number
        grad = heads.split(grad)  # (B N, Q, D)
        dquery, dkey, dvalue = (torch.empty_like(x) for x in (query, key, value))
        for number, (part, masked) in enumerate(_parts(query, key, mask, num_heads)):
            weights = kept[number] if kept else _weights(query[part], key[part], masked, num_heads)
            torch.bmm(weights.mT, grad[part], out=dvalue[part])
            dweights = torch.bmm(grad[part], value[part].mT)  # (B N, Q, T)
            dscores = torch.ops.aten._softmax_backward_data(dweights.float(), weights.float(), -1, torch.float32).to(
                weights.dtype
            )
            torch.bmm(dscores, key[part], out=dquery[part])
            torch.bmm(dscores.mT, query[part], out=dkey[part])
        asked, told = ctx.rows
        return heads.join(dquery, asked, ctx.scale), heads.join(dkey, told), heads.join(dvalue, told), None


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
