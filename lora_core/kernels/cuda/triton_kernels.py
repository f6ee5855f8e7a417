"""The products of products.py as Triton kernels, each one launch for all adapters, with dropout inside.

A mask is one random number, the seed. Whether an element is dropped follows from the seed and the element's place by
the counter-based generator Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), so the kernels
of the backward pass find the mask again and none is stored. The seed is drawn and read on the GPU: no host waits for
it, and a captured CUDA graph draws a new one at every replay.

The kernels read much and compute little: X and Y pass once through them, and the factors, in fp32 as they are trained,
are rounded as they are loaded. Products of 16-bit numbers are summed in fp32; those of fp32 are exact (no TF32).

Shapes: n adapters, N rows, r rank, C columns. In kernels, in capitals: M rows, R of the rank and K columns at a time.
"""

# What Triton's decorator makes of a function takes other arguments than the function: numbers for constants.
# pyright: reportCallIssue=false, reportArgumentType=false

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import cdiv, next_power_of_2

from lora_core.kernels.cuda.products import Mask

ROWS, COLUMNS = 64, 64
"""M and K: what a program works on at a time."""
SPLITS = 32
"""Most parts in which `reduce` sums the rows, side by side. Their sums are added in order, so results repeat."""


def new_mask(x: Tensor, p: float, adapters: int) -> Mask:
    """A mask for any number of adapters, drawn from the random numbers of the device: the seed, (1,) int64."""
    return Mask(torch.randint(2**62, (1,), device=x.device), p)


def down(x: Tensor, factors: Tensor, mask: Mask | None = None, *, apart: bool = False, scale: float = 1.0) -> Tensor:
    """S (N, n r), in the dtype of ``x``."""
    adapters, rank, columns = factors.shape
    s = x.new_empty(len(x), adapters * rank)
    grid = cdiv(len(x), ROWS), adapters
    sizes = len(x), rank, columns
    strides = x.stride(0), columns if apart else 0, *factors.stride()
    _down[grid](s, x, factors, *_draws(mask, x), scale, *sizes, *strides, mask is not None, **_blocks(rank))
    return s


def up_(
    out: Tensor, s: Tensor, factors: Tensor, mask: Mask | None = None, *, apart: bool = False, scale: float = 1.0
) -> None:
    """Adds to ``out`` in place."""
    adapters, rank, columns = factors.shape
    # Adapters that write the same columns are summed by one program.
    programs, each = (adapters, 1) if apart else (1, adapters)
    grid = cdiv(len(s), ROWS), cdiv(columns, COLUMNS), programs
    sizes = len(s), rank, columns
    strides = out.stride(0), columns if apart else 0, s.stride(0), *factors.stride()
    _up[grid](out, s, factors, *_draws(mask, s), scale, *sizes, *strides, mask is not None, each, **_blocks(rank))


def reduce(
    s: Tensor,
    x: Tensor,
    shape: tuple[int, int, int],
    mask: Mask | None = None,
    *,
    apart: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """G (n, r, C), which is ``shape``, in fp32."""
    adapters, rank, columns = shape
    blocks = cdiv(len(x), ROWS)
    each = cdiv(blocks, SPLITS)  # blocks of rows for each program
    splits = cdiv(blocks, each) if blocks else 0
    sums = torch.empty(splits, *shape, dtype=torch.float32, device=x.device)
    grid = cdiv(columns, COLUMNS), splits, adapters
    sizes = len(x), rank, columns
    strides = s.stride(0), x.stride(0), columns if apart else 0
    if splits:
        _reduce[grid](sums, s, x, *_draws(mask, x), scale, *sizes, *strides, each, mask is not None, **_blocks(rank))
    return sums[0] if splits == 1 else sums.sum(0)


def _draws(mask: Mask | None, like: Tensor) -> tuple[Tensor, int]:
    """The seed, and below which of 2^32 random numbers an element is dropped."""
    return (like, 0) if mask is None else (mask.state, min(round(mask.p * 2**32), 2**32 - 1))


def _blocks(rank: int) -> dict[str, int]:
    """Tensor cores multiply no fewer than 16 rows and columns."""
    return {"M": ROWS, "R": max(16, int(next_power_of_2(rank))), "K": COLUMNS}


@triton.jit
def _kept(seed, threshold, adapter, row, column, M: tl.constexpr, K: tl.constexpr):
    """Whether the elements of M rows and K columns are kept, which begin at the given ones; (M, K).

    Philox gives four numbers for one counter, so a counter (place of the quadruple, row, adapter) serves four columns.
    """
    none = tl.zeros((M, K // 4), tl.int32)
    quadruple = (column // 4 + tl.arange(0, K // 4))[None, :] + none
    rows = (row + tl.arange(0, M))[:, None] + none
    first, second, third, fourth = tl.philox(tl.load(seed), quadruple, rows, none + adapter, none)
    bits = tl.interleave(tl.interleave(first, third), tl.interleave(second, fourth))
    return bits >= threshold


@triton.jit
def _down(s, x, factors, seed, threshold, scale, rows, rank, columns,
          x_row, x_adapter, f_adapter, f_rank, f_column,
          DROPS: tl.constexpr, M: tl.constexpr, R: tl.constexpr, K: tl.constexpr):  # fmt: skip
    first, adapter = tl.program_id(0) * M, tl.program_id(1)
    row, in_rank = first + tl.arange(0, M), tl.arange(0, R)
    x += row.to(tl.int64)[:, None] * x_row + adapter * x_adapter
    factors += adapter * f_adapter + in_rank[None, :] * f_rank
    total = tl.zeros((M, R), tl.float32)
    for start in range(0, columns, K):
        column = start + tl.arange(0, K)
        part = tl.load(x + column[None, :], (row < rows)[:, None] & (column < columns)[None, :], other=0.0)
        if DROPS:
            part = tl.where(_kept(seed, threshold, adapter, first, start, M, K), part, 0.0).to(part.dtype)
        factor = tl.load(
            factors + column[:, None] * f_column, (column < columns)[:, None] & (in_rank < rank)[None, :], other=0.0
        )
        total = tl.dot(part, factor.to(part.dtype), total, input_precision="ieee")
    s += row.to(tl.int64)[:, None] * (tl.num_programs(1) * rank) + adapter * rank + in_rank[None, :]
    tl.store(s, (total * scale).to(s.dtype.element_ty), (row < rows)[:, None] & (in_rank < rank)[None, :])


@triton.jit
def _up(out, s, factors, seed, threshold, scale, rows, rank, columns,
        out_row, out_adapter, s_row, f_adapter, f_rank, f_column,
        DROPS: tl.constexpr, EACH: tl.constexpr, M: tl.constexpr, R: tl.constexpr, K: tl.constexpr):  # fmt: skip
    first, start, program = tl.program_id(0) * M, tl.program_id(1) * K, tl.program_id(2)
    row, column, in_rank = first + tl.arange(0, M), start + tl.arange(0, K), tl.arange(0, R)
    out += row.to(tl.int64)[:, None] * out_row + program * out_adapter + column[None, :]
    s += row.to(tl.int64)[:, None] * s_row + in_rank[None, :]
    factors += in_rank[:, None] * f_rank + column[None, :] * f_column
    total = tl.zeros((M, K), tl.float32)
    for adapter in range(program * EACH, (program + 1) * EACH):
        left = tl.load(s + adapter * rank, (row < rows)[:, None] & (in_rank < rank)[None, :], other=0.0)
        factor = tl.load(
            factors + adapter * f_adapter, (in_rank < rank)[:, None] & (column < columns)[None, :], other=0.0
        )
        update = tl.dot(left, factor.to(left.dtype), input_precision="ieee")
        if DROPS:
            update = tl.where(_kept(seed, threshold, adapter, first, start, M, K), update, 0.0)
        total += update
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(out, (tl.load(out, inside, other=0.0) + total * scale).to(out.dtype.element_ty), inside)


@triton.jit
def _reduce(sums, s, x, seed, threshold, scale, rows, rank, columns,
            s_row, x_row, x_adapter, each,
            DROPS: tl.constexpr, M: tl.constexpr, R: tl.constexpr, K: tl.constexpr):  # fmt: skip
    start, split, adapter = tl.program_id(0) * K, tl.program_id(1), tl.program_id(2)
    column, in_rank = start + tl.arange(0, K), tl.arange(0, R)
    s += adapter * rank + in_rank[None, :]
    x += adapter * x_adapter + column[None, :]
    total = tl.zeros((R, K), tl.float32)
    for block in range(split * each, (split + 1) * each):
        row = block * M + tl.arange(0, M)
        left = tl.load(
            s + row.to(tl.int64)[:, None] * s_row, (row < rows)[:, None] & (in_rank < rank)[None, :], other=0.0
        )
        part = tl.load(
            x + row.to(tl.int64)[:, None] * x_row, (row < rows)[:, None] & (column < columns)[None, :], other=0.0
        )
        if DROPS:
            part = tl.where(_kept(seed, threshold, adapter, block * M, start, M, K), part, 0.0).to(part.dtype)
        total = tl.dot(tl.trans(left), part.to(left.dtype), total, input_precision="ieee")
    sums += ((split * tl.num_programs(2) + adapter) * rank + in_rank)[:, None] * columns + column[None, :]
    tl.store(sums, total * scale, (in_rank < rank)[:, None] & (column < columns)[None, :])
