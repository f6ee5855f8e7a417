"""A model shared out over the processes (FSDP2), for one that does not fit the memory of each.

Every parameter, with its gradient and moments, lies in parts: each process has one. The layers are put together one
after another, while they compute. Between steps the model's parameters are DTensors, so what reads or writes their
values as a whole goes through here; all processes must do so together.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_core.kernels.fused import stacks


def shard(model: nn.Module, device: torch.device, size: int) -> None:
    """Share out the parameters over ``size`` processes, in place, and move them to ``device``, layer by layer.

    Raises:
        ValueError: on the CPU, with a torch whose FSDP2 is for GPUs alone (2.6).
    """
    if not can_shard(device):
        raise ValueError(
            f"--parallel fsdp on the CPU needs a newer torch than {torch.__version__}. Upgrade, or use --parallel ddp."
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # It warns of changes in place to what the model returns; logits are not changed.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (size,))
    for stack in stacks(model):
        for layer in stack.children():
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def can_shard(device: torch.device) -> bool:
    """Whether this torch can share out a model on such a device: its FSDP2 records events of streams."""
    return device.type != "cpu" or hasattr(torch.cpu.current_stream(), "record_event")


def is_sharded(model: nn.Module) -> bool:
    """Whether the parameters are shared out."""
    return hasattr(model, "set_requires_gradient_sync")  # of FSDPModule, which is not imported where it is not used


def put_away(model: nn.Module) -> None:
    """Leave the parameters in parts, where a forward pass without a backward pass has left some whole."""
    if is_sharded(model):
        model.reshard()  # type: ignore[operator]


def whole(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """The same with every part put together, on every process. Tensors that are whole are left as they are."""
    return {name: tensor.full_tensor() if _is_part(tensor) else tensor for name, tensor in tensors.items()}


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, on the device of ``like`` and shared out as it is."""
    tensor = tensor.to(like.device)
    if not _is_part(like) or tensor.shape != like.shape:  # an optimiser's count of steps is whole
        return tensor
    from torch.distributed.tensor import distribute_tensor

    placed: Any = like
    return distribute_tensor(tensor, placed.device_mesh, placed.placements)


@torch.no_grad()
def copy_tensors(values: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into those of the same names, which may be shared out."""
    for name, tensor in into.items():
        tensor.copy_(part_like(values[name], tensor))


def _is_part(tensor: object) -> bool:
    """Whether it is a DTensor; asked so that nothing is imported for those that are not."""
    return hasattr(tensor, "full_tensor")
