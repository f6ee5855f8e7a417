"""A process that ends with the one that started it, so that no orphan works on beside the run that takes over."""

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(_: int = 0, by: signal.Signals = signal.SIGKILL) -> None:
    """Have the system send this process a signal when its parent ends, however that ends, and whatever this one is at.

    Linux alone has this; elsewhere nothing changes. The argument, a worker's number, makes it a `worker_init_fn` of
    torch's DataLoader, whose workers look after their parent between two batches only.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)
