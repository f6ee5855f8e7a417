"""Signals that ask to stop: Ctrl-C (SIGINT), SIGTERM, SIGHUP of a lost terminal, SIGUSR1 of a batch system.

Most work ends at once, by an exception that lets open files be put away (`raising`). Training first comes to the border
of a step and writes a checkpoint: there a signal is noted, and asked for where it suits (`deferred`). A second signal
ends the process without further ado. It needs no torch: the command line answers to Ctrl-C from its first moment.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
SAME_REQUEST = 2.0
"""Seconds within which more signals are the first one over again: torchrun passes on to its workers what a batch system
sends to every process."""


class Interrupted(KeyboardInterrupt):
    """A signal has ended what was going on."""

    def __init__(self, signum: int, where: str = "", remedy: str = "") -> None:
        """
        Args:
            where: what was reached, to stand after "stopped by SIGTERM".
            remedy: how to go on.
        """
        super().__init__(f"stopped by {signal.Signals(signum).name}{where and f' {where}'}.{remedy and f' {remedy}'}")
        self.signum, self.where, self.remedy = signum, where, remedy

    def __reduce__(self) -> tuple[Any, ...]:  # a pool hands it from process to process
        return type(self), (self.signum, self.where, self.remedy)

    @property
    def exit_status(self) -> int:
        """What the process ends with: 128 + the signal's number, as shells have it. 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signum

    def with_remedy(self, remedy: str) -> "Interrupted":
        """The same with other advice."""
        return Interrupted(self.signum, self.where, remedy)


class _Listener:
    """A signal handler: what the first signal does, and the second."""

    def __init__(self, first: Callable[[int], None]) -> None:
        self.signum = 0
        """The signal that has come; 0: none."""
        self._first, self._since, self._process = first, 0.0, os.getpid()

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if os.getpid() != self._process:  # a forked process has inherited the handler, but not the work
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        elif not self.signum:
            self.signum, self._since = signum, now
            self._first(signum)
        elif now - self._since > SAME_REQUEST:
            _say(f"{signal.Signals(signum).name} again: ended at once.")
            os._exit(128 + signum)


_deferring: _Listener | None = None
"""The listener of `deferred`. Signals come to the main thread, so there is one."""


@contextmanager
def raising() -> Iterator[None]:
    """Within it the first signal raises Interrupted, wherever the main thread is."""

    def stop(signum: int) -> None:
        raise Interrupted(signum)

    with _listening(_Listener(stop)):
        yield


@contextmanager
def deferred() -> Iterator[None]:
    """Within it signals are noted, for `requested` to tell. One that came too late to be asked for is passed on at the
    end to what handled signals before.

    Outside of the main thread, where Python handles no signals, nothing changes.
    """
    global _deferring
    if _deferring is not None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(signum: int) -> None:
        name = signal.Signals(signum).name
        _say(f"{name}: stopping after this step or batch, with a checkpoint. A second signal ends it at once.")

    _deferring = listener = _Listener(note)
    try:
        with _listening(listener):
            yield
    finally:
        _deferring = None
    if listener.signum:
        signal.raise_signal(listener.signum)


def requested() -> int:
    """The signal that this process has noted within `deferred`; 0: none."""
    if _deferring is None or threading.current_thread() is not threading.main_thread():
        return 0
    return _deferring.signum


@contextmanager
def unheard_by_children() -> Iterator[None]:
    """Processes that are started within it never hear the signals: they end when their parent wants, which a signal to
    the whole group of processes, as torchrun sends it, would forestall."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _listening(listener: _Listener) -> Iterator[None]:
    """The listener handles the signals; but those that are ignored, as SIGHUP is under nohup, stay so."""
    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for signum in STOP_SIGNALS:
                if signal.getsignal(signum) not in (signal.SIG_IGN, None):
                    before[signum] = signal.signal(signum, listener)
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _say(line: str) -> None:
    """Write to standard error from a handler, which may have interrupted a write; the first process speaks for all."""
    if os.environ.get("RANK", "0") == "0":
        below_progress_bar = "\n" if os.isatty(2) else ""
        os.write(2, f"{below_progress_bar}{line}\n".encode())
