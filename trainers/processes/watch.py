"""The watch over a run of several processes: signs of life, and the first failure, in a store that all can read.

A process that fails or hangs leaves the others waiting in an exchange, which then breaks or times out with words about
sockets. So a thread of every process writes down how far it is, and the first failure is written down; whoever notices
that something is wrong reads there what it was, and the user is told once.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta

from torch.distributed import DistError, Store  # pyright: ignore[reportPrivateImportUsage]

from trainers.processes.failure import Failure
from trainers.processes.torchrun import is_torchrun

BEAT = 0.5
"""Seconds between two signs of life."""
SILENT = 2.5
"""Seconds without a new sign of life after which a process is taken for dead or stopped."""
GRACE = 2.0
"""Seconds that a process has to end by itself when another has failed; it may be about to meet the same error."""
PATIENCE = BEAT + GRACE + 1.5
"""Seconds within which another process has noticed a failure, and told or left."""
GLOO = ("gloo", "pair closure", "connection closed by peer", "connection reset by peer")
"""What stands in the RuntimeErrors of exchanges between processors."""
FAILURE, TOLD = "failure", "told"
"""Keys of the store: the first failure, and that the user has read of it."""


@dataclass(frozen=True)
class Life:
    """A sign of life."""

    beat: int
    """How many the process has given: it grows while the process runs, whatever it is at."""
    meetings: int
    """How often it has come where all processes meet; one that others wait for has come there less often."""
    step: int
    """Optimiser steps done."""


class Watch:
    """This process's part of the watch; over when the context ends."""

    def __init__(self, store: Store, rank: int, size: int, timeout: timedelta) -> None:
        """
        Args:
            store: shared by the processes of this start alone, over a connection of its own.
            timeout: how long the processes wait for each other.
        """
        self.rank, self.size, self.timeout = rank, size, timeout
        self.meetings = self.step = self._beat = 0
        self._store, self._agent = store, os.getppid()
        self._ends, self._is_failing = threading.Event(), False
        self._give_sign()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._leave()

    def meet(self) -> None:
        """Count that this process has come where all meet; called just before it waits for the others."""
        self.meetings += 1

    def fail(self, error: Exception) -> Failure:
        """Make known that this process met an error, or learn which failure of another caused it.

        Returns:
            The first failure of all processes.
        """
        self._is_failing = True
        mine = Failure.of(error, self.rank)
        try:
            if _is_lost_contact(error):
                mine = self._first(wait=2 * BEAT) or self._absent(error) or mine
            else:
                self._store.set(f"error/{self.rank}", mine.to_json())
            first = Failure.from_json(self._store.compare_set(FAILURE, "", mine.to_json()).decode())
            return replace(mine, common=True) if self._all_met(mine) else first
        except RuntimeError:  # the store is gone
            return self._gone()

    def tell(self, failure: Failure) -> None:
        """Tell the user of the failure, or wait until another process has.

        Rank 0 does; if it does not answer, whoever made the failure known.
        """
        failure.write_for_torchrun()  # its summary shows whoever ended first
        with suppress(RuntimeError):  # no store, no others to wait for
            if self.rank != 0 and self._is_set([TOLD], PATIENCE):
                return
        if self.rank in (0, failure.by):
            print(f"{failure.detail}error: {failure.line}", file=sys.stderr, flush=True)
            with suppress(RuntimeError):
                self._store.set(TOLD, "")

    def _run(self) -> None:
        """Give signs of life, and end the process when another has failed and this one does not end by itself.

        It may be at something long, or wait in an exchange: the failed process tells why before its connections break.
        """
        failure, noticed = None, 0.0
        while not self._ends.wait(BEAT):
            if is_torchrun() and os.getppid() != self._agent:
                os._exit(1)
            if failure is None:
                try:
                    self._give_sign()
                    failure = self._first()
                except RuntimeError:
                    failure = self._gone()
                noticed = time.monotonic()
            elif time.monotonic() > noticed + GRACE and not self._is_failing:
                if self.rank == 0:
                    print(file=sys.stderr)  # its progress bar is in the line
                self.tell(failure)
                self._leave()
                os._exit(failure.status)

    def _give_sign(self) -> None:
        self._beat += 1
        self._store.set(f"life/{self.rank}", json.dumps(asdict(Life(self._beat, self.meetings, self.step))))

    def _lives(self) -> dict[int, Life]:
        """The last sign of life of every process."""
        return {rank: Life(**json.loads(self._store.get(f"life/{rank}"))) for rank in range(self.size)}

    def _leave(self) -> None:
        """Give no more signs of life, and do not use the store any more.

        If rank 0 serves it, it waits for the others to say so: without it they would complain.
        """
        self._ends.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=2 * BEAT)  # longer only if the store does not answer any more
        with suppress(RuntimeError):
            self._store.set(f"left/{self.rank}", "")
            if self.rank == 0 and not is_torchrun():
                self._is_set([f"left/{rank}" for rank in range(1, self.size)], PATIENCE)

    def _first(self, wait: float = 0) -> Failure | None:
        """The failure that a process has made known; None if after ``wait`` seconds there is none."""
        return Failure.from_json(self._store.get(FAILURE).decode()) if self._is_set([FAILURE], wait) else None

    def _all_met(self, error: Failure) -> bool:
        """Whether every process meets this error, or will in a moment."""
        keys = [f"error/{rank}" for rank in range(self.size)]
        if not self._is_set(keys, wait=2 * BEAT):
            return False
        others = [Failure.from_json(self._store.get(key).decode()) for key in keys]
        return all((other.cause, other.message) == (error.cause, error.message) for other in others)

    def _is_set(self, keys: list[str], wait: float = 0) -> bool:
        """Whether all keys are in the store within ``wait`` seconds."""
        end = time.monotonic() + wait
        while not self._store.check(keys):
            if time.monotonic() >= end:
                return False
            time.sleep(0.05)
        return True

    def _absent(self, error: Exception) -> Failure | None:
        """The failure of the process that the others wait for; None if none can be named."""
        before = self._lives()
        time.sleep(SILENT)
        lives = self._lives()
        silent = {rank for rank in lives if lives[rank].beat == before[rank].beat}
        rank = min(lives, key=lambda rank: (lives[rank].meetings, rank not in silent))
        if rank not in silent and lives[rank].meetings == max(life.meetings for life in lives.values()):
            return None
        reached = f"step {max(self.step, lives[rank].step)}"  # exchanges keep all at one step
        if _is_timeout(error):
            message = (
                f"rank {rank} has not answered for {self.timeout.total_seconds():g} s: its last sign of life was at "
                f"{reached}. If it only needs longer, raise --timeout; else --resume auto continues the run."
            )
        else:
            message = (
                f"rank {rank} has ended without a word at {reached}: it was killed, perhaps for want of memory. "
                "--resume auto continues the run."
            )
        return Failure(rank, self.rank, message)

    def _gone(self) -> Failure:
        """The failure that a lost store is; the lowest rank that is left tells it."""
        message = "rank 0, or the torchrun that started it, has ended. --resume auto continues the run."
        return Failure(0, by=1, message=message)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Take no SIGTERM: torchrun sends it to the others as soon as one process has ended, before they can speak."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_lost_contact(error: Exception) -> bool:
    """Whether an exchange between processes broke, for another of them has ended or does not answer."""
    text = str(error).lower()
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and any(word in text for word in GLOO))


def _is_timeout(error: Exception) -> bool:
    """Whether an exchange was waited for too long."""
    text = str(error).lower()
    return "timed out" in text or "timeout" in text
