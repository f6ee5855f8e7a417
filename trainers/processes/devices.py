"""Which device a process computes on, how its gradients travel, and whether this build of torch has code for the card.

Nothing here asks CUDA before it is told to: what is decided follows from the environment and a few numbers.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch

NCCL_SETTINGS = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",  # a lost exchange ends the process, instead of leaving it on the GPU
    "TORCH_NCCL_BLOCKING_WAIT": "0",  # the host does not wait for an exchange: gradients travel while others are made
}
"""Environment variables that are set for NCCL where the user has not set them."""
NCCL_MARGIN = timedelta(minutes=1)
"""NCCL's own timeout ends a process with many words, so exchanges over the CPU are to notice so much earlier."""
LAST_FOR_VOLTA = (7, 5)
"""Cards below this capability (V100: 7.0) are only in builds of torch for CUDA 12.6, up to torch 2.14."""


@dataclass(frozen=True)
class Placement:
    """One process's place in a run."""

    rank: int
    size: int
    device: torch.device
    backend: Literal["nccl", "gloo"]
    """What exchanges gradients."""

    def group_options(self, timeout: timedelta) -> dict[str, Any]:
        """What `torch.distributed.init_process_group` is told beside the store.

        Args:
            timeout: how long the processes wait for each other.
        """
        if self.backend == "gloo":
            return {"backend": "gloo", "timeout": timeout}
        # Bound to its GPU, the group is made at once: what is wrong with it shows here, and no GPU is guessed later.
        return {"backend": "nccl", "timeout": timeout + NCCL_MARGIN, "device_id": self.device}


def placement(environment: Mapping[str, str], gpus: int, *, has_nccl: bool) -> Placement:
    """The place of the process that torchrun's environment describes; without one it is alone.

    Args:
        gpus: how many GPUs this process sees.
        has_nccl: whether this build of torch has NCCL.

    Raises:
        ValueError: there is no GPU for it, and others have one.
    """
    rank, size = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
    if not gpus:
        return Placement(rank, size, torch.device("cpu"), "gloo")
    local, here = int(environment.get("LOCAL_RANK", 0)), int(environment.get("LOCAL_WORLD_SIZE", 1))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if gpus == 1 and visible is not None and "," not in visible:
        local = 0  # as SLURM shows every process a GPU of its own
    if local >= gpus:
        seen = f", of CUDA_VISIBLE_DEVICES={visible}" if visible else ""
        raise ValueError(
            f"Rank {rank} is process {local} (counted from 0) of {max(here, local + 1)} on this machine, which has "
            f"{gpus} GPU{'s' * (gpus > 1)}{seen}: start one process for each, torchrun --nproc-per-node {gpus}, or "
            'train on the CPU with CUDA_VISIBLE_DEVICES="".'
        )
    return Placement(rank, size, torch.device("cuda", local), "nccl" if has_nccl else "gloo")


def nccl_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The `NCCL_SETTINGS` that are not in the environment yet."""
    return {name: value for name, value in NCCL_SETTINGS.items() if name not in environment}


def check_card(
    name: str, capability: tuple[int, int], architectures: Sequence[str], version: str | None = None
) -> None:
    """Refuse a card that this build of torch has no code for, where the first kernel would fail with "no kernel image".

    Args:
        capability: of the card, as `torch.cuda.get_device_capability` gives it.
        architectures: `torch.cuda.get_arch_list()`, such as "sm_80" (code for 8.0 and later 8.x) and "compute_90"
            (which the driver translates for any later card).
        version: of torch.

    Raises:
        ValueError: it has none. The message says which build has.
    """
    named = re.findall(r"\b(sm|compute)_(\d+)", " ".join(architectures))
    known = [(kind, _capability(digits)) for kind, digits in named]
    if not known:  # a build for AMD's cards, or one that does not say
        return
    for kind, built in known:
        if built == capability or (built < capability and (kind == "compute" or built[0] == capability[0])):
            return
    version = version or torch.__version__
    remedy = (
        'the builds for CUDA 12.6, up to torch 2.14, are the last that have it: pip install "torch<2.15" --index-url '
        "https://download.pytorch.org/whl/cu126"
        if capability < LAST_FOR_VOLTA
        else "install a newer build, see https://pytorch.org/get-started/locally"
    )
    raise ValueError(
        f"{name} has compute capability {capability[0]}.{capability[1]}, for which torch {version} has no code (it has "
        f'{", ".join(architectures)}): {remedy}. Or stay on the CPU with CUDA_VISIBLE_DEVICES="".'
    )


def _capability(digits: str) -> tuple[int, int]:
    """(12, 0) for "120"."""
    return int(digits[:-1]), int(digits[-1])


def usable(device: torch.device) -> torch.device:
    """The device, if this build of torch has code for it.

    Raises:
        ValueError: as `check_card`.
    """
    if device.type == "cuda":
        name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        check_card(name, capability, torch.cuda.get_arch_list())
    return device
