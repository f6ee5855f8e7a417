"""Dropout in the fused layers: what is kept, as a mask or as the seed that the C++ kernels make the same mask of again.

A seed is cheap to draw and to keep, and takes no memory that grows with the batch. It is drawn from torch's default
generator, so seeds and checkpoints of its state decide over all that follows, whatever the number of threads. The two
forms draw different masks of the same distribution: a run that goes on where there is no compiler meets other ones.
"""

import torch
from torch import Tensor

from lora_core import dropout
from lora_core.kernels.native.build import ops


def draw_keep(x: Tensor, p: float) -> tuple[Tensor, float]:
    """What dropout keeps of ``x``, each element with probability 1 - ``p``, and the factor that keeps the mean.

    Returns:
        For the functions below: uint8 of the shape of ``x``, or int64 (2,), a seed and how many of 65536 values drop.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16) or ops() is None:
        return dropout.keep_mask(x.shape, p)
    dropped = round(p * dropout.LEVELS)
    keep = torch.empty(2, dtype=torch.int64).random_()
    keep[1] = dropped
    return keep, dropout.LEVELS / (dropout.LEVELS - dropped)


def drop(x: Tensor, keep: Tensor) -> Tensor:
    """``x`` where ``keep`` keeps it, and 0 elsewhere; not for autograd."""
    return ops().drop(x.contiguous(), keep) if keep.dtype == torch.int64 else dropout.drop(x, keep)


def add_dropped(y: Tensor, x: Tensor, keep: Tensor) -> Tensor:
    """``y`` plus `drop` of ``x``, in place of ``y``; ``x`` may be overwritten."""
    if keep.dtype == torch.int64:
        return ops().add_dropped_(y, x, keep)
    return y.add_(dropout.drop(x, keep, in_place=True))
