"""Files that are whole or not there: written under another name, flushed to disk, then renamed. And what they hold.

Used by everything here and above that writes or checks a file; it needs the standard library alone.
"""

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 1 << 20
"""Bytes that are read at a time."""
MOST_JSON = 1 << 28
"""Bytes of a JSON file; the largest tokenizers have some 30 MB."""
MAKE_ROOM = "Make room there"
"""How advice on a full disk begins."""
MOST_NESTED = 100
"""Lists and objects inside each other in JSON; files of this field have some ten."""

_unfinished: set[str] = set()  # names of the temporaries that threads of this process are making


class DiskFullError(OSError):
    """A disk, a quota or a limit of a file's size let no more be written. The message is one line."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(number, message)
        self.message = message

    def __str__(self) -> str:
        return self.message


@contextlib.contextmanager
def disk_errors(path: str | Path, size: int | None = None, remedy: str = "") -> Iterator[None]:
    """Turns what stops the block from writing at ``path`` for want of room into a DiskFullError.

    Args:
        size: bytes that are to be written, where it is known.
        remedy: what to do; by default, to make room or to take another folder. Where a limit of a file's size is in the
            way, the words `MAKE_ROOM` in it become to raise that.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:  # OSError, and what safetensors and others make of one
        number = _room_error(error)
        if number is None:
            raise
        folder = next(parent for parent in Path(path).absolute().parents if parent.is_dir())
        free = f"{shutil.disk_usage(folder).free:,} bytes are free"
        needed = "" if size is None else f"{size:,} bytes are needed, "
        remedy = remedy or f"{MAKE_ROOM}, or name another folder."
        if number == errno.EFBIG:
            free = "a file may not be larger here (ulimit -f)"
            remedy = remedy.replace(MAKE_ROOM, "Raise that limit (ulimit -f unlimited)")
        raise DiskFullError(
            number, f"{path} could not be written: {os.strerror(number).lower()}; {needed}{free}. {remedy}"
        ) from error


def _room_error(error: Exception) -> int | None:
    """The number of the system's error for want of room that an exception tells of; None: it tells of none."""
    known = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in known else None
    told = re.search(r"\b(?:os error|code:|errno) (\d+)", str(error), re.IGNORECASE)  # Rust's words, and Python's
    return int(told[1]) if told and int(told[1]) in known else None


@contextlib.contextmanager
def replacing(path: str | Path, size: int | None = None, remedy: str = "") -> Iterator[Path]:
    """Give a temporary path beside ``path``; the block makes a file or a folder there, which takes the name ``path``
    when it is whole (`_replacing` says how).

    Args:
        size, remedy: for the message of a full disk, as for `disk_errors`.

    Raises:
        DiskFullError: there was no room. ``path`` is as it was.
    """
    with disk_errors(path, size, remedy), _replacing(path) as temporary:
        yield temporary


@contextlib.contextmanager
def _replacing(path: str | Path) -> Iterator[Path]:
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
                if part.is_file() and not part.is_symlink():
                    part.chmod(permissions)  # safetensors makes files that their owner alone can read
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


def regular_file(path: str | Path) -> Path:
    """``path``, to be opened for reading: it is a file, and no pipe or device, from which one could read for ever.

    Every reader of a file that another may have made calls it first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else than a file.
    """
    path = Path(path)
    if not stat.S_ISREG(path.stat().st_mode):
        kind = "a folder" if path.is_dir() else "a pipe, a socket or a device"
        raise ValueError(f"{path} is {kind} instead of a file. Remove it, and copy the file again.")
    return path


def file_inside(folder: str | Path, name: str) -> Path:
    """The file that another file of ``folder`` names, which must lie in it.

    A link may lead to the files of the hub's cache that the folder is a snapshot of, and nowhere else outside.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the name is a path, or the file is a link to one elsewhere, or no file.
    """
    folder = Path(folder)
    if not name or name in (".", "..") or "\0" in name or Path(name).name != name or "\\" in name:
        raise ValueError(f"{name!r} is not the plain name of a file in {folder}.")
    path = regular_file(folder / name)
    home, real = folder.resolve(), path.resolve()
    hub = next((parent.parent / "blobs" for parent in home.parents if parent.name == "snapshots"), home)
    if not (real.is_relative_to(home) or real.is_relative_to(hub)):
        raise ValueError(f"{path} is a link to {real}, outside its folder. Copy the file itself into the folder.")
    return path


def read_json_object(path: str | Path, remedy: str) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON in UTF-8, or holds something else. The message names the file and ends in ``remedy``.
    """
    path = regular_file(path)
    size = path.stat().st_size
    if size > MOST_JSON:
        raise ValueError(f"{path} has {size:,} bytes, more than the {MOST_JSON:,} that are read as JSON. {remedy}")
    try:
        return json_object(path.read_bytes(), str(path))
    except ValueError as error:
        raise ValueError(f"{error} {remedy}") from error


def json_object(text: bytes | str, where: str = "it") -> dict[str, Any]:
    """The JSON object in a text, of which no key stands twice and nothing is nested without end.

    Raises:
        ValueError: it is something else. The message begins with ``where``.
    """
    try:
        value = json.loads(text if isinstance(text, str) else text.decode("utf-8-sig"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, numbers or nesting without end
        raise ValueError(f"{where} is not JSON in UTF-8 ({error}).") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} holds {type(value).__name__} instead of a JSON object.")
    level: list[Any] = [value]
    for _ in range(MOST_NESTED):
        inner = (item for outer in level for item in (outer.values() if isinstance(outer, dict) else outer))
        level = [item for item in inner if isinstance(item, (dict, list))]
        if not level:
            return value
    raise ValueError(f"{where} is nested more than {MOST_NESTED} deep.")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; Python alone would let the last of equal keys count, and other readers the first."""
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:50]!r} stands twice")
    return value


def sha256_of_file(path: str | Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with regular_file(path).open("rb") as file:
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
