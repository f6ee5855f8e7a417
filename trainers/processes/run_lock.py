"""One run, one folder: a lock that the process which writes a run folder holds for as long as the run lasts.

The operating system holds it (flock) and takes it back when the process ends, however it ends: a lock file that a
killed run left behind is no obstacle.
"""

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from lora_core.files import make_folder

logger = logging.getLogger("trainers")

NAME = "run.lock"
"""The lock's file in the run folder; it holds who has the lock, for the message to others."""
_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}

_held: set[int] = set()  # descriptors of the locks of this process


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder; the folder is made for it, and removed again where nothing else came into it.

    A file system without locks is used without one; a warning says so.

    Raises:
        ValueError: another process holds the lock, here or on another machine that shares the folder.
        OSError: the folder cannot be made or written to.
    """
    made = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    descriptor = _take(folder)
    _held.add(descriptor)
    try:
        yield
    finally:
        _held.discard(descriptor)
        (folder / NAME).unlink(missing_ok=True)  # before the lock is free: afterwards the file may be another's
        os.close(descriptor)
        with suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


def _take(folder: Path) -> int:
    """The descriptor of the lock's file, locked by this process."""
    path = folder / NAME
    while True:
        make_folder(folder)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # whoever had the lock has just removed the folder
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise ValueError(
                f"The run folder {folder} is in use by {holder}. Wait for its end, stop it, or choose another "
                "--output-dir."
            ) from error
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(descriptor)
                raise
            logger.warning(
                "The file system of %s has no locks (%s): see to it that no second run uses the folder.",
                folder,
                error.strerror,
            )
            return descriptor
        if _is_at(descriptor, path):
            mine = {
                "process": os.getpid(),
                "host": socket.gethostname(),
                "started": datetime.now().isoformat(" ", "seconds"),
            }
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(mine).encode(), 0)
            return descriptor
        os.close(descriptor)  # its holder ended and removed the file between our opening and locking it


def _holder(descriptor: int) -> str:
    """Who wrote the lock's file, in words."""
    try:
        holder = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {holder['process']} on host {holder['host']}, started {holder['started']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has the lock and has not yet written, or wrote otherwise
        return "another process"


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the path still names the opened file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _forget_in_child() -> None:
    """Close a forked child's copies of the locks: it must not keep a lock alive when the process that runs is dead."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
