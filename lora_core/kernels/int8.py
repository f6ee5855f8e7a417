"""Products with frozen weights in int8, forward and for the gradient of the input, for training on a CPU.

A frozen weight is rounded once, with a scale for each output channel; what it is multiplied with is rounded as it
comes, with a scale for each row. Both are symmetric:

    x = s_x (q_x - 128)     q_x uint8, s_x = max |row of x| / 127
    W = s_W q_W             q_W int8,  s_W = max |row of W| / 127
    x W^T = s_x s_W^T ((q_x - 128) q_W^T)

The product of the integers is exact, in int32. The gradient of the input sums over the output channels, so it takes a
second rounding of the weight, with a scale for each input channel. The error of a product of random matrices is 0.7%.

Activations are unsigned because the instructions (VNNI, AMX) multiply unsigned by signed bytes: oneDNN has a slow path
for all else.

Shapes: N tokens, I in_features, O out_features.
"""

from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lora_core.kernels.native.build import ops

ZERO_POINT = 128
LARGEST = 127


class Rows(NamedTuple):
    """A matrix of which each row is rounded with a scale of its own."""

    values: Tensor
    """uint8 (N, I) with `ZERO_POINT`."""
    scale: Tensor
    """fp32 (N,); of a row with a number that is not finite NaN or infinite, so that it is not lost."""


def round_rows(x: Tensor) -> Rows:
    """``x`` (N, I), fp32 or bf16, rounded."""
    native = ops()
    if native is not None:
        return Rows(*native.quantize_rows(x.contiguous()))
    scale = x.abs().amax(1).float().div_(LARGEST)  # (N,)
    values = x.float() / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    return Rows(values.round_().add_(ZERO_POINT).to(torch.uint8), scale)


class Int8Weight:
    """A frozen weight (O, I), rounded and laid out for oneDNN; twice, once it is asked for a gradient."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.detach()
        self.forward = _Packed.of(self.weight)

    def __reduce__(self) -> tuple:
        return Int8Weight, (self.weight,)  # oneDNN's layout can be neither copied nor pickled

    @cached_property
    def backward(self) -> "_Packed":
        return _Packed.of(self.weight.T)

    def product(self, x: Rows, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        """x W^T + bias, (N, O) in ``dtype``."""
        return self.forward.product(x, bias, dtype)

    def input_gradient(self, grad: Rows, dtype: torch.dtype) -> Tensor:
        """``grad`` (N, O) times W, (N, I) in ``dtype``."""
        return self.backward.product(grad, None, dtype)


class _Packed(NamedTuple):
    """A matrix (O, I) with a scale for each row."""

    values: Tensor
    """int8, in oneDNN's own layout."""
    scale: Tensor
    """fp32 (O,)."""
    zero_point: Tensor
    """int32 (O,), zeros."""

    @classmethod
    def of(cls, weight: Tensor) -> "_Packed":
        weight = weight.float()
        scale = weight.abs().amax(1).div_(LARGEST)  # (O,)
        values = weight / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        packed = torch.ops.onednn.qlinear_prepack(values.round_().to(torch.int8).contiguous(), None)
        return cls(packed, scale, torch.zeros(len(scale), dtype=torch.int32))

    def product(self, x: Rows, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        found = torch.ops.onednn.qlinear_pointwise(
            x.values, 1.0, ZERO_POINT, self.values, self.scale, self.zero_point, None, 1.0, 0, dtype, "none", [], ""
        )  # (N, O)
        native = ops()
        if native is not None:
            return native.rescale_rows_(found, x.scale, bias)
        scale = x.scale[:, None]
        return (found * scale if bias is None else torch.addcmul(bias, found, scale)).to(dtype)


@lru_cache
def unsupported(device: str = "cpu") -> str | None:
    """Why this machine does not compute products in int8 faster than in fp32; None: it does.

    Args:
        device: the type of that which computes.
    """
    if device != "cpu":
        return f"the model is on {device}, int8 is for CPUs"
    if not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return "this build of torch has no oneDNN"
    has = torch.cpu._is_vnni_supported() or torch.cpu._is_amx_tile_supported()
    return None if has else "this CPU has neither AVX512-VNNI nor AMX"
