"""The store through which processes find each other: that of torchrun's agent, or one that rank 0 serves.

The agent starts the processes again when one fails (`--max-restarts`). Its store outlives them, so that what an earlier
start wrote there, addresses of processes that are dead among it, is in the way of the next: every start meets in a part
of the store of its own.
"""

import os
import time
import uuid
from datetime import timedelta

from torch.distributed import Store, TCPStore, rendezvous  # pyright: ignore[reportPrivateImportUsage]


def is_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def open_store(rank: int, size: int, timeout: timedelta) -> Store:
    """The store that the environment names: the agent's under torchrun, else one that rank 0 serves."""
    return next(rendezvous("env://", rank, size, timeout=timeout))[0]


def connect(timeout: timedelta) -> Store:
    """Another connection to the store that `open_store` opened."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(host, port, is_master=False, timeout=timeout)


def meet(store: Store, rank: int, size: int, timeout: timedelta) -> str:
    """A prefix for keys of the store that the processes of this start share with no earlier start.

    torchrun's count of restarts cannot be it: each node counts its own. So rank 0 draws one and publishes it, the
    others answer with names of their own, and rank 0 confirms what it was answered; whoever is not among those
    confirmed has read the prefix of an earlier start, and reads again.

    Raises:
        TimeoutError: a process did not come in time.
    """
    mine = uuid.uuid4().hex
    end = time.monotonic() + timeout.total_seconds()

    def late(who: str) -> None:
        if time.monotonic() > end:
            raise TimeoutError(f"{who} has not come within {timeout.total_seconds():g} s (--timeout).")
        time.sleep(0.02)

    def answer(other: int) -> str:
        while not store.check([f"{mine}/{other}"]):
            late(f"rank {other}")
        return store.get(f"{mine}/{other}").decode()

    if rank == 0:
        store.set("meeting", mine)
        store.set(f"{mine}/confirmed", " ".join([answer(other) for other in range(1, size)]))
        return mine
    while True:
        if store.check(["meeting"]):
            prefix = store.get("meeting").decode()
            store.set(f"{prefix}/{rank}", mine)
            confirmed = f"{prefix}/confirmed"
            if store.check([confirmed]) and mine in store.get(confirmed).decode().split():
                return prefix
        late("Another process")
