"""The three products of rank r that LoRA adds to a linear layer, in torch. triton_kernels.py has the same in Triton.

    down     S_j = scale * drop_j(X_j) F_j^T     (N, C) -> (N, r)            x to S; the output's gradient to that of S
    up_      Y_j += scale * drop_j(S_j F_j)      (N, r) -> (N, C)            S to the output; its gradient to that of x
    reduce   G_j = scale * S_j^T drop_j(X_j)     (N, r), (N, C) -> (r, C)    the gradients of A and B

Each is computed for n adapters j at once, all of one rank and width, whose S lie side by side, (N, n r). The adapters
read (or write) all the same C columns of X (or Y), or each its own, one after another: ``apart``. X and Y may have more
columns behind those.

``drop_j`` sets elements to 0; what is kept is not scaled up, ``scale`` sees to that. A mask is made by `new_mask` of
the module that reads it, and drops the same in all products that are given it.

Shapes: n adapters, N tokens, r rank, C columns; the factors F are (n, r, C).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Mask(NamedTuple):
    """Which elements of an input are dropped, for each adapter others."""

    state: Tensor
    """What the masks are known by: here they are themselves, (n, N, C) uint8, 0 at what is dropped, else 1."""
    p: float
    """The probability that an element is dropped."""


def new_mask(x: Tensor, p: float, adapters: int) -> Mask:
    """A mask for ``x`` (N, C), drawn from the random numbers of its device."""
    return Mask(torch.empty(adapters, *x.shape, dtype=torch.uint8, device=x.device).bernoulli_(1 - p), p)


def down(x: Tensor, factors: Tensor, mask: Mask | None = None, *, apart: bool = False, scale: float = 1.0) -> Tensor:
    """S (N, n r), in the dtype of ``x``."""
    adapters, _, columns = factors.shape
    factors = factors.to(x.dtype)
    if mask is None and not apart:
        return _scaled(x @ factors.flatten(0, 1).T, scale)
    parts = [_kept(_part(x, columns, apart, j), mask, j) @ factors[j].T for j in range(adapters)]
    return _scaled(torch.cat(parts, 1), scale)


def up_(
    out: Tensor, s: Tensor, factors: Tensor, mask: Mask | None = None, *, apart: bool = False, scale: float = 1.0
) -> None:
    """Adds to ``out`` in place."""
    adapters, rank, columns = factors.shape
    factors = factors.to(s.dtype)
    for j in range(adapters):
        s_j, out_j = s.narrow(1, j * rank, rank), _part(out, columns, apart, j)
        if mask is None:
            out_j.addmm_(s_j, factors[j], alpha=scale)
        else:
            out_j.add_(_kept(s_j @ factors[j], mask, j), alpha=scale)


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
    parts = [s.narrow(1, j * rank, rank).T @ _kept(_part(x, columns, apart, j), mask, j) for j in range(adapters)]
    return _scaled(torch.stack(parts).float(), scale)


def _part(x: Tensor, columns: int, apart: bool, adapter: int) -> Tensor:
    """What of ``x`` an adapter reads or writes, (N, C)."""
    return x.narrow(1, adapter * columns if apart else 0, columns)


def _kept(x: Tensor, mask: Mask | None, adapter: int) -> Tensor:
    return x if mask is None else x * mask.state[adapter]


def _scaled(x: Tensor, scale: float) -> Tensor:
    """``x`` times ``scale``, in place and only where that changes something."""
    return x if scale == 1.0 else x.mul_(scale)
