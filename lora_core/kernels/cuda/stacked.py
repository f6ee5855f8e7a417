"""Linear layers that read one input as one layer, with their low-rank updates, forward and backward by hand.

    Y = X [W_1; W_2; ...]^T + b,   Y_j += alpha (keep_j * X) A_j^T B_j^T        alpha = scaling / (1 - p)

A GPU computes the layers of a small encoder faster than a host can start them, so what counts is the number of kernels.
Query, key and value are one matrix product, which cuBLAS does better than a kernel of one's own; the updates of all
three are one product down to S = (keep * X) A^T, for which their A's lie one below the other, and one that adds S B^T
to the output in place. S is kept for the backward pass, which costs a few hundredths of X and saves a pass over it; the
mask is not (triton_kernels.py). For query, key and value that all have an adapter with dropout, forward and backward
take 24 kernels, where the layers themselves, under autocast, take 70 (test_stacked.py counts them).

Shapes: N tokens, I in_features, O out_features of each layer, n adapters, r rank.
"""

import logging
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lora_core.kernels.cuda import products as in_torch

logger = logging.getLogger("lora_core")


class Stack(NamedTuple):
    """Layers that are computed as one: those with an adapter stand first, and are of one width, rank and so on."""

    layers: tuple[tuple[Tensor, Tensor | None], ...]
    """Weight (O, I) and bias (O,) of each."""
    copy: Tensor | None = None
    """The weights one below the other in the dtype of the products, (sum of O, I), where they are frozen."""
    adapters: tuple[tuple[Tensor, Tensor], ...] = ()
    """A (r, I) and B (O, r) of the first n layers."""
    scaling: float = 1.0
    dropout: float = 0.0


def project_stack(
    x: Tensor, stack: Stack, dtype: torch.dtype, products: ModuleType | None = None
) -> tuple[Tensor, ...]:
    """The outputs (N, O) of the layers for one input (N, I), in ``dtype``; they share memory, so change none in place.

    Args:
        products: the module with the products of rank r; None: the one that `products_for` chooses.
    """
    weights, biases = zip(*stack.layers, strict=True)
    factors = [factor for adapter in stack.adapters for factor in adapter]
    settings = stack.copy, len(weights), stack.scaling, stack.dropout
    out = _Stack.apply(x, dtype, settings, products or products_for(x.device), *weights, *biases, *factors)
    return out.split([len(weight) for weight in weights], 1)


@lru_cache
def products_for(device: torch.device) -> ModuleType:
    """The module whose products of rank r serve this device best: Triton's only where they have been tried."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    if not by_triton(device.type, capability, torch.version.hip is not None):
        return in_torch
    try:
        from lora_core.kernels.cuda import triton_kernels
    except ImportError:  # wheels of torch for CUDA bring Triton along, builds of one's own may not
        return in_torch
    trouble = trouble_with(triton_kernels, device)
    if trouble is None:
        return triton_kernels
    logger.warning("Triton's kernels are not used, but torch's, which take longer: on %s %s.", device, trouble)
    return in_torch


def trouble_with(products: ModuleType, device: torch.device) -> str | None:
    """What is wrong with these products on this device, next to those in torch; None: nothing.

    Triton compiles for the GPU at hand, with the host's own C compiler, which may be missing.
    """
    numbers = torch.Generator().manual_seed(0)  # not the training's
    x, s, factors = (torch.randn(shape, generator=numbers).to(device) for shape in ((70, 40), (70, 10), (2, 5, 40)))
    x, s, added, expected = x.half(), s.half(), x.half(), x.half()
    try:
        products.up_(added, s, factors)
        found = added, products.down(x, factors), products.reduce(s, x, (2, 5, 40))
    except Exception as error:  # whatever a compiler says
        return f"they fail: {type(error).__name__}: {error}"
    in_torch.up_(expected, s, factors)
    wanted = expected, in_torch.down(x, factors), in_torch.reduce(s.float(), x.float(), (2, 5, 40))
    near = all(torch.allclose(a, b, rtol=0.02, atol=0.1) for a, b in zip(found, wanted, strict=True))
    return None if near else "they compute something else"


def by_triton(device_type: str, capability: tuple[int, int], rocm: bool = False) -> bool:
    """Whether Triton's kernels are for such a device: NVIDIA's from the A100 (8, 0) on.

    Triton supports no older ones, such as the V100 (7, 0): there the same products are torch's.
    """
    return device_type == "cuda" and not rocm and capability >= (8, 0)


class _Stack(Function):
    @staticmethod
    def forward(
        ctx, x: Tensor, dtype: torch.dtype, settings: tuple, products: ModuleType, *tensors: Tensor | None
    ) -> Tensor:
        copy, layers, scaling, p = settings
        weights, biases, factors = tensors[:layers], tensors[layers : 2 * layers], tensors[2 * layers :]
        ctx.input_dtype, ctx.products, ctx.layers, ctx.p = x.dtype, products, layers, p
        ctx.widths = [len(weight) for weight in weights if weight is not None]
        x = x.to(dtype).contiguous()  # Triton's kernels take rows of neighbouring numbers
        weight = _below_each_other(weights).to(dtype) if copy is None else copy
        out = F.linear(x, weight, _one_bias(biases, ctx.widths, weight))  # (N, sum of O)
        a = b = s = mask = None
        ctx.alpha = scaling / (1 - p)
        if factors:
            a = torch.stack(factors[0::2])  # type: ignore[arg-type]  # (n, r, I)
            b = torch.stack(factors[1::2]).mT  # type: ignore[arg-type]  # (n, r, O)
            mask = products.new_mask(x, p, len(a)) if p > 0 else None
            s = products.down(x, a, mask)  # (N, n r)
            products.up_(out, s, b, apart=True, scale=ctx.alpha)
        needs = ctx.needs_input_grad[4:]
        reads_x = any(needs[:layers]) or any(needs[2 * layers :: 2])
        drops = None if mask is None else mask.state
        ctx.save_for_backward(x if reads_x else None, weight, a, b, s, drops)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, s, drops = ctx.saved_tensors
        products, layers = ctx.products, ctx.layers
        needs_x, _, _, _, *needs = ctx.needs_input_grad
        needs_weight, needs_bias, needs_factor = needs[:layers], needs[layers : 2 * layers], needs[2 * layers :]
        mask = None if drops is None else in_torch.Mask(drops, ctx.p)
        g = g.to(weight.dtype).contiguous()  # (N, sum of O)
        of_weights = (g.T @ x).float().split(ctx.widths) if any(needs_weight) else [None] * layers
        of_biases = g.sum(0).float().split(ctx.widths) if any(needs_bias) else [None] * layers
        ds = None
        of_factors: list[Tensor | None] = []
        if needs_factor:
            ds = products.down(g, b, apart=True, scale=ctx.alpha)  # (N, n r)
            of_a = products.reduce(ds, x, a.shape, mask) if any(needs_factor[0::2]) else [None] * len(a)
            of_b = (
                products.reduce(s, g, b.shape, apart=True, scale=ctx.alpha).mT
                if any(needs_factor[1::2])
                else [None] * len(a)
            )
            of_factors = [factor for pair in zip(of_a, of_b, strict=True) for factor in pair]
        dx = None
        if needs_x:
            dx = g @ weight  # (N, I)
            if ds is not None:
                products.up_(dx, ds, a, mask)
            dx = dx.to(ctx.input_dtype)
        found = [*of_weights, *of_biases, *of_factors]
        return dx, None, None, None, *(grad if need else None for grad, need in zip(found, needs, strict=True))


def _one_bias(biases: tuple[Tensor | None, ...], widths: list[int], weight: Tensor) -> Tensor | None:
    """The biases (sum of O,), with zeros for a layer that has none."""
    if all(bias is None for bias in biases):
        return None
    parts = [weight.new_zeros(width) if bias is None else bias for bias, width in zip(biases, widths, strict=True)]
    return _below_each_other(parts).to(weight.dtype)


def _below_each_other(tensors: Sequence[Any]) -> Tensor:
    """All tensors as one; a single one is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat([*tensors])
