"""Batches without their padding: everything but attention works on the real tokens alone.

Packed rows come in multiples of ``ROWS``; the last ones may be empty: they are zero where they enter, nothing reads
what becomes of them, and their gradient is zero. oneDNN makes a program of some 300 kB for every number of rows that a
product meets and keeps a thousand of them, so without this every batch would need new ones, and gigabytes for all.

On a GPU the layout is the same. It is made of the mask's copy on the host where the mask brings one (models/host.py);
to ask the GPU for it, the host would have to wait.

Shapes: B sentences, T tokens (padded), N real tokens in all sentences together, R rows (N rounded up), H hidden size.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lora_core.models.host import on_host, send

ROWS = 32


@dataclass(frozen=True)
class Layout:
    """Where the real tokens of a padded batch are."""

    sentences: int
    tokens: int
    device: torch.device
    mask: Tensor | None
    """What is added to the attention scores, (B, 1, 1, T)."""
    index: Tensor | None
    """Places of the real tokens among all B * T, (N,); None when all are real."""
    lengths: Tensor | None = None
    """Real tokens of each sentence, (B,), on the CPU; None when all are real."""

    @classmethod
    def of(cls, hidden: Tensor, mask: Tensor | None) -> "Layout":
        """The layout of a batch (B, T, H) with a mask from ``additive_mask``."""
        sentences, tokens = hidden.shape[:2]
        real = None if mask is None else (on_host(mask) == 0).expand(sentences, 1, 1, tokens).flatten(1)
        if real is None or bool(real.all()):
            return cls(sentences, tokens, hidden.device, None, None)
        index = real.flatten().nonzero().squeeze(1)
        return cls(sentences, tokens, hidden.device, mask, send(index, hidden.device), real.sum(1))

    @cached_property
    def boundaries(self) -> tuple[Tensor, int]:
        """Where among the packed rows each sentence begins, and the last one ends, (B + 1,) int32 on the device; and
        the length of the longest.

        The empty rows at the end, if any, are a sentence more, so that what is computed of them is finite.
        """
        if self.lengths is None:
            starts = torch.arange(0, self.sentences * self.tokens + 1, self.tokens, dtype=torch.int32)
            return send(starts, self.device), self.tokens
        lengths = F.pad(self.lengths, (0, 1), value=int(-self.lengths.sum() % ROWS))
        starts = F.pad(lengths.cumsum(0), (1, 0)).int()
        return send(starts, self.device), int(lengths.max())

    def pack(self, padded: Tensor) -> Tensor:
        """(B, T, H) -> (R, H)."""
        flat = padded.reshape(-1, padded.shape[-1])
        return flat if self.index is None else _Take.apply(flat, self.index)

    def pad(self, packed: Tensor) -> Tensor:
        """(R, H) -> (B, T, H), with zeros at the padding."""
        if self.index is not None:
            packed = _Put.apply(packed, self.index, self.sentences * self.tokens)
        return packed.view(self.sentences, -1, packed.shape[-1])


def take(rows: Tensor, index: Tensor) -> Tensor:
    """The rows at the places ``index`` (N,), and behind them zeros: (R, H)."""
    real = len(index)
    found = rows.new_empty(-(-real // ROWS) * ROWS, rows.shape[1])
    torch.index_select(rows, 0, index, out=found[:real])
    found[real:] = 0
    return found


def put(rows: Tensor, index: Tensor, count: int) -> Tensor:
    """The first N of ``rows`` at the places ``index`` (N,) among ``count`` rows of zeros."""
    return rows.new_zeros(count, rows.shape[1]).index_copy_(0, index, rows[: len(index)])


class _Take(Function):
    """Rows at unique places. torch's index_select has to reckon with repeated ones in its backward pass."""

    @staticmethod
    def forward(ctx, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.count = len(rows)
        return take(rows, index)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return put(grad, index, ctx.count), None


class _Put(Function):
    @staticmethod
    def forward(ctx, rows: Tensor, index: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(index)
        return put(rows, index, count)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return take(grad, index), None, None
