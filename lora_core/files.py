"""Files that are whole or not there: written under another name, flushed to disk, then renamed. And what they hold.

Used by everything here and above that writes or checks a file; it needs the standard library alone.
"""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 1 << 20
"""Bytes that are read at a time."""

_unfinished: set[str] = set()  # names of the temporaries that threads of this process are making


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; the block makes a file or a folder there.

    If the block succeeds, what it made is flushed to disk and takes the name ``path``, in the place of what bore it: a
    reader sees the old or the new, never a part, after a power cut too (of a folder, perhaps neither). If the block
    fails, the temporary is removed and ``path`` is as it was; what a killed process of this machine left is removed by
    the next one. Files get the permissions that the user's umask gives.
    """
    path = Path(path)
    own = f".{path.name}.{socket.gethostname()}-"  # a folder may be shared by machines, whose processes have one number
    for abandoned in path.parent.glob(f"{glob.escape(own)}*"):
        process = abandoned.name.removeprefix(own).split("-")[0]
        if abandoned.name not in _unfinished and not _is_alive(process):
            _remove(abandoned)
    temporary = path.with_name(f"{own}{os.getpid()}-{threading.get_ident()}")
    replaced = temporary.with_name(f"{temporary.name}-old")
    _unfinished.update((temporary.name, replaced.name))
    try:
        temporary.touch()
        permissions = temporary.stat().st_mode  # what the umask leaves; reading it would set it, for all threads
        temporary.unlink()
        yield temporary
        if temporary.is_dir():
            for part in (*temporary.rglob("*"), temporary):
                _flush(part)
            if os.path.lexists(path):  # a folder cannot be renamed over another: for an instant neither has the name
                os.replace(path, replaced)
        else:
            temporary.chmod(permissions)
            _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        if os.path.lexists(replaced) and not os.path.lexists(path):  # a signal came in that instant
            os.replace(replaced, path)
        _remove(temporary)
        _remove(replaced)
        _unfinished.difference_update((temporary.name, replaced.name))


def write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` in UTF-8, whole or not at all (`replacing`); the folder is made if need be. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_json(path: str | Path, value: Any) -> Path:
    """Write ``value`` as readable JSON, as `write_text` does. Returns the path."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json_object(path: str | Path, remedy: str) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON in UTF-8, or holds something else. The message names the file and ends in ``remedy``.
    """
    text = Path(path).read_bytes()
    try:
        value = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, numbers or nesting without end
        raise ValueError(f"{path} is not JSON in UTF-8 ({error}). {remedy}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__} instead of a JSON object. {remedy}")
    return value


def sha256_of_file(path: str | Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_alive(process: str) -> bool:
    """Whether a process of this machine, other than this one, has the number; True for what is no number."""
    if not process.isdecimal():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to someone else
        return True
    return int(process) != os.getpid()
