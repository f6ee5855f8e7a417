"""Between the host and a GPU without waiting.

A GPU works through what it is given while the host goes ahead. Whenever the host asks for a number back, or sends
memory that is not pinned, it waits until all of that is done, and the GPU then waits for the host. So what the host has
known before, such as a batch's lengths, is kept beside the tensor that was sent.
"""

from collections.abc import Callable

import torch
from torch import Tensor

HOST_COPY = "host_copy"
"""Attribute of a tensor on a device: the same tensor on the CPU."""


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on ``device``; the host does not wait."""
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def keep_on_host(tensor: Tensor, copy: Tensor) -> Tensor:
    """``tensor``, which from now on brings its copy on the CPU; no operation hands that on, but `on_both`."""
    if tensor is not copy:
        setattr(tensor, HOST_COPY, copy)
    return tensor


def on_host(tensor: Tensor) -> Tensor:
    """The tensor on the CPU: itself, the copy that it brings, or else a new one, for which the host waits."""
    if tensor.device.type == "cpu":
        return tensor
    copy = getattr(tensor, HOST_COPY, None)
    return tensor.cpu() if copy is None else copy


def put(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on ``device``, with its copy on the CPU; the host does not wait."""
    return keep_on_host(send(tensor, device), tensor)


def on_both(function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """``function(tensor)``; where the tensor brings its copy on the CPU, so does the result."""
    result, copy = function(tensor), getattr(tensor, HOST_COPY, None)
    return result if copy is None else keep_on_host(result, function(copy))
