"""Memory: the peak of a stretch of work, and what to do when there is not enough."""

import contextlib
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_SYSTEM, _CONTROL_GROUPS = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
_GROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
"""Of control groups 2 and 1: the limit, what is in use, and where it says how much of that is cache."""


class TooLittleMemoryError(MemoryError):
    """The memory of the process or of its GPU did not suffice; the message is one line and says what to change."""


@contextlib.contextmanager
def memory_errors(device: torch.device, tokens: int) -> Iterator[None]:
    """Turns running out of memory in passes of at most ``tokens`` tokens (or images) into a TooLittleMemoryError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, TooLittleMemoryError) or not is_out_of_memory(error):
            raise
        asked = re.search(r"tried to allocate ([\d.,]+ ?[A-Za-z]*)|allocate ([\d.,]+ \w+)", str(error), re.IGNORECASE)
        needed = f"{(asked[1] or asked[2]).strip()} more were needed" if asked else "more was needed"
        remedy = (
            f"Add --micro-batch-tokens {tokens // 2}, half of what one pass takes now; the results stay the same but "
            "for rounding."
            if tokens > 1
            else "One example is too much for it: use --precision bf16, a shorter --max-length or a smaller model."
        )
        raise TooLittleMemoryError(
            f"Out of memory on {device}: {needed}, {free_bytes(device):,} bytes are free. {remedy}"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory did not suffice, of the process (Python, NumPy, torch) or of a GPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = ("DefaultCPUAllocator: ", "can't allocate memory", "std::bad_alloc", "ALLOC_FAILED", "out of memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)


def free_bytes(device: torch.device) -> int:
    """Bytes that could still be taken on a GPU; or by this process, of the machine or the container that it is in."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = _kilobytes(_SYSTEM, "MemAvailable") if _SYSTEM.exists() else sys.maxsize
    for limit, used, details, cache in _GROUP_FILES:
        with contextlib.suppress(OSError, ValueError, KeyError):  # no container, or one without a limit
            most, now, text = ((_CONTROL_GROUPS / name).read_text() for name in (limit, used, details))
            reclaimable = int(dict(line.split() for line in text.splitlines())[cache])
            free = min(free, max(0, int(most) - int(now) + reclaimable))
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY and _STATUS.exists():
        free = min(free, max(0, most - _kilobytes(_STATUS, "VmSize")))
    return free


def _kilobytes(file: Path, name: str) -> int:
    """A number that one of Linux' files gives in kilobytes, in bytes."""
    lines = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024


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
        return _kilobytes(_STATUS, "VmHWM")
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
