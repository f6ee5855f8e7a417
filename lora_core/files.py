"""Files that are whole or not there: written under another name, flushed to disk, then renamed. And what they hold.

Used by everything here and above that writes or checks a file; it needs the standard library alone.
"""

import contextlib
import glob
import hashlib
import json
import os
import re
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
    reader sees the old or the new, never a part, after a power cut too (of a folder, for a moment neither). If the
    block fails, the temporary is removed and ``path`` is as it was; what a killed process of this machine left is
    removed by the next one. Files get the permissions that the user's umask gives.
    """
    path = Path(path)
    remove_abandoned(path.parent, path.name)
    temporary, old = _temporary(path), _temporary(path, "-old")
    _unfinished.update((temporary.name, old.name))
    try:
        temporary.touch()
        permissions = temporary.stat().st_mode  # what the umask leaves; reading it would set it, for all threads
        temporary.unlink()
        yield temporary
        if temporary.is_dir():
            for part in (*temporary.rglob("*"), temporary):
                _flush(part)
            if os.path.lexists(path):  # a folder takes no other's place; renamed, it is away for a moment only
                os.replace(path, old)
        else:
            temporary.chmod(permissions)
            _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        if os.path.lexists(old) and not os.path.lexists(path):
            os.replace(old, path)
        _remove(temporary)
        _remove(old)
        _unfinished.difference_update((temporary.name, old.name))


def discard(path: str | Path) -> None:
    """Remove a file or a folder; under its name it is whole or gone, also when the process is killed meanwhile."""
    path = Path(path)
    going = _temporary(path, "-gone")
    _unfinished.add(going.name)
    try:
        os.replace(path, going)
        _remove(going)
    finally:
        _unfinished.discard(going.name)


def remove_abandoned(folder: str | Path, name: str | None = None) -> list[Path]:
    """Remove what `replacing` and `discard` left in a folder when their process was killed; what is removed.

    What another folder was to replace, and did not, gets its name back. Files of living processes stay, and those of
    other machines, of whose processes nothing is known here.

    Args:
        folder: it need not be there.
        name: only what was to become, or was, the file of this name; None: any.
    """
    bears = r".+" if name is None else re.escape(name)
    pattern = re.compile(rf"\.({bears})\.{re.escape(socket.gethostname())}-(\d+)-\d+(-old|-gone)?", re.DOTALL)
    removed = []
    for path in Path(folder).glob(".*" if name is None else f".{glob.escape(name)}.*"):
        found = pattern.fullmatch(path.name)
        if found is None or path.name in _unfinished or _is_alive(found[2]):
            continue
        with contextlib.suppress(FileNotFoundError):  # another process removes it at the same time
            if found[3] == "-old" and not os.path.lexists(path.with_name(found[1])):
                os.replace(path, path.with_name(found[1]))
                continue
            _remove(path)
            removed.append(path)
    return removed


def make_folder(path: str | Path) -> Path:
    """Make a folder, and those above it that are missing, and wait until the disk has their names. Returns the path."""
    path = Path(path)
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _flush(path.parent)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` in UTF-8, whole or not at all (`replacing`); the folder is made if need be. Returns the path."""
    path = Path(path)
    make_folder(path.parent)
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


def _temporary(path: Path, end: str = "") -> Path:
    """The name beside ``path`` that this thread uses; it tells other processes whose it is.

    A folder may be shared by machines, whose processes have one number.
    """
    own = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
    return path.with_name(f".{path.name}.{own}{end}")


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
    """Whether a process of this machine, other than this one, has the number."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to someone else
        return True
    return int(process) != os.getpid()
