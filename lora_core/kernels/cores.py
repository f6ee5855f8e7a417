"""How many cores a process may use, which in a container are fewer than the machine has; and how busy others are."""

import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

_OWN, _CONTROL_GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_STATISTICS = Path("/proc/stat")


def usable_cores() -> int:
    """Cores that this process may use at a time, at least 1: those that the system lets it run on (its affinity), or
    as many as its control groups give it time for, rounded up, if these are fewer.

    Time is what containers are given (`docker --cpus`, limits of Kubernetes, systemd's CPUQuota): all cores are seen
    there, and threads for all of them stop together once their time is used up.
    """
    return max(1, math.ceil(min([_visible_cores(), *_quotas()])))


def limit_threads() -> None:
    """Let this process and those that it starts compute with at most as many threads as it may use cores, and say so,
    unless OMP_NUM_THREADS is set. It sets that, which torch reads when it is imported."""
    cores = usable_cores()
    if "OMP_NUM_THREADS" in os.environ or cores >= _visible_cores():
        return
    os.environ["OMP_NUM_THREADS"] = str(cores)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(min(cores, torch.get_num_threads()))
    logger.info(
        "computing with %d thread%s: the control group gives this process the time of no more of the %d cores "
        "(OMP_NUM_THREADS says otherwise)",
        cores, "" if cores == 1 else "s", _visible_cores(),
    )  # fmt: skip


class OtherWork:
    """What other processes compute on this machine from when this is made, as Linux tells; elsewhere none is known."""

    def __init__(self) -> None:
        self._before = self._now()

    def cores(self) -> float:
        """How many cores they have kept busy on average. What runs at a lower priority (nice) does not count, nor do
        this process and its children that have ended."""
        (began, all_before, own_before), (now, all_now, own_now) = self._before, self._now()
        return max(0.0, (all_now - all_before - (own_now - own_before)) / max(now - began, 1e-9))

    def _now(self) -> tuple[float, float, float]:
        """The time, and seconds of computation of all processes and of this one."""
        if not _STATISTICS.exists():
            return time.monotonic(), 0.0, 0.0
        user, _nice, system = map(int, _STATISTICS.read_text().split(maxsplit=4)[1:4])
        return time.monotonic(), (user + system) / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4])


def _visible_cores() -> int:
    """Those that the system lets this process run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas() -> Iterator[float]:
    """The cores' worth of time of each control group that the process is in, versions 1 and 2."""
    if not _OWN.exists():
        return
    for line in _OWN.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _CONTROL_GROUPS / "cpu" if controllers else _CONTROL_GROUPS
        group = root / path.strip("/")
        # In a container the path may be the host's, and its own group what it sees as the root.
        for folder in [group, *group.parents]:
            if folder.is_relative_to(root):
                yield _quota(folder)


def _quota(group: Path) -> float:
    try:
        if (group / "cpu.max").exists():
            most, period = (group / "cpu.max").read_text().split()
        else:
            most, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(most) / int(period) if int(most) > 0 else math.inf
    except (OSError, ValueError):  # no such group; one without a limit ("max")
        return math.inf
