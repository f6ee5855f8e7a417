"""Peak memory of a stretch of work."""

import contextlib
import resource
import sys
from pathlib import Path

import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring anew, so that earlier work in this process does not count (where the system allows it)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # no Linux, or a container without the right to write there
        _CLEAR.write_text("5")  # sets the peak resident size to the present one


def peak_memory_bytes(device: torch.device) -> int:
    """Most bytes in use since the reset: allocated on a GPU, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_memory(device: torch.device) -> dict[str, int]:
    """Peaks since the reset, in bytes: `resident` in this process and, on a GPU, `allocated` and `reserved` there.

    Tensors are allocated; torch's cache reserves, and is what other programs see as taken.
    """
    peaks = {"resident": peak_memory_bytes(torch.device("cpu"))}
    if device.type == "cuda":
        peaks["allocated"] = torch.cuda.max_memory_allocated(device)
        peaks["reserved"] = torch.cuda.max_memory_reserved(device)
    return peaks
