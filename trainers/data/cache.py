"""What pre-processing made, kept on disk: flat arrays that the next run maps into memory instead of making them again.

An entry is a folder `<kind>-<hash of its key>` of .npy files and meta.json, in $LORA_CACHE_DIR or
~/.cache/lora-core. Its key holds all that the arrays depend on, so an entry is never out of date; entries that are no
longer wanted can be deleted at any time. An entry appears whole, by renaming, and of several processes that want it
one makes it while the others wait.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

CACHE_DIR_VARIABLE = "LORA_CACHE_DIR"
FORMAT = 1
"""Raise it when the meaning of stored arrays changes: entries of another format are not found."""
META_FILE = "meta.json"
BLOCK = 1 << 20
"""Bytes that are read at a time."""

Arrays = dict[str, np.ndarray]
Notes = dict[str, Any]
Make = Callable[[Notes], Iterator[Arrays]]
"""Gives the arrays in chunks of the same names and types; may put remarks, as JSON holds them, into the notes."""


def cache_dir() -> Path:
    """The folder of all entries."""
    return Path(os.environ.get(CACHE_DIR_VARIABLE) or Path.home() / ".cache" / "lora-core")


def cached_arrays(kind: str, key: dict[str, Any], make: Make) -> tuple[Arrays, Notes]:
    """The arrays and notes of `key`, mapped from disk; made first when they are not there.

    Args:
        kind: a word for the entry's name.
        key: what the arrays depend on, as JSON can hold it.
        make: gives the arrays, chunk after chunk, each of at least one element. What it raises is passed on.

    A damaged entry is made again. Where the folder cannot be written, the arrays are made in memory, and a warning
    says so.
    """
    key = json.loads(json.dumps({"format": FORMAT, **key}))
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_dir() / f"{kind}-{name}"
    found = _load(folder, key)
    if found is not None:
        return found
    try:
        with _locked(folder.with_suffix(".lock")):
            found = _load(folder, key)  # another process may have made it in the meantime
            if found is None:
                _store(folder, key, make)
                found = _load(folder, key)
    except OSError as error:
        logger.warning(
            "pre-processed data cannot be kept in %s (%s) and is made again in every run: set %s to a folder that can "
            "be written, or leave the cache out",
            folder.parent,
            error,
            CACHE_DIR_VARIABLE,
        )
        return arrays_in_memory(make)
    if found is None:
        raise OSError(
            f"{folder} was written but does not read back: the disk may be failing. Set {CACHE_DIR_VARIABLE}."
        )
    return found


def arrays_in_memory(make: Make) -> tuple[Arrays, Notes]:
    """The same arrays and notes without a file."""
    notes: Notes = {}
    chunks = list(make(notes))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}, notes


def _store(folder: Path, key: dict[str, Any], make: Make) -> None:
    """Write an entry. Only the holder of its lock may."""
    if folder.exists():
        logger.warning("the pre-processed data in %s is damaged and is made again", folder)
        shutil.rmtree(folder)
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir()
    try:
        with ExitStack() as stack:
            files: dict[str, _ArrayFile] = {}
            notes: Notes = {}
            for chunk in make(notes):
                for name, array in chunk.items():
                    if name not in files:
                        file = _ArrayFile(unfinished / f"{name}.npy", array.dtype)
                        files[name] = stack.enter_context(closing(file))
                    files[name].append(array)
            meta = {"key": key, "notes": notes, "arrays": {name: file.finish() for name, file in files.items()}}
        (unfinished / META_FILE).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        size = sum(path.stat().st_size for path in unfinished.iterdir())
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    logger.info("pre-processed data takes %.1f MB in %s", size / 1e6, folder)


def _load(folder: Path, key: dict[str, Any]) -> tuple[Arrays, Notes] | None:
    """The arrays, mapped, and the notes of an entry; None when it is not there or not whole."""
    try:
        meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        if meta["key"] != key:
            return None
        arrays = {name: _map(folder / f"{name}.npy", **about) for name, about in meta["arrays"].items()}
        return arrays, meta["notes"]
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None


def _map(path: Path, length: int, dtype: str, checksum: int) -> np.ndarray:
    """A stored array; ValueError when it is not what was written."""
    # Reading the bytes, unlike touching the mapped array, does not add to the memory of the process.
    with path.open("rb") as file:
        found = 0
        while block := file.read(BLOCK):
            found = zlib.crc32(block, found)
    if found != checksum:
        raise ValueError(f"{path} is damaged.")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.shape != (length,) or array.dtype.str != dtype:
        raise ValueError(f"{path} holds {array.shape} of {array.dtype.str}, expected {length} of {dtype}.")
    return array.view(np.ndarray)  # np.memmap spends time on every slice


class _ArrayFile:
    """A .npy file of one dimension that grows."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._dtype, self._length = dtype, 0
        self._file = path.open("w+b")
        self._write_header()

    def append(self, array: np.ndarray) -> None:
        if array.dtype != self._dtype:
            raise TypeError(f"a chunk has {array.dtype}, those before it {self._dtype}")
        self._file.write(array.tobytes())
        self._length += len(array)

    def finish(self) -> dict[str, Any]:
        """Complete the file; what `_map` must know to read it."""
        self._file.seek(0)
        self._write_header()  # numpy leaves room for any length in it
        self._file.seek(0)
        checksum = 0
        while block := self._file.read(BLOCK):
            checksum = zlib.crc32(block, checksum)
        return {"length": self._length, "dtype": self._dtype.str, "checksum": checksum}

    def close(self) -> None:
        self._file.close()

    def _write_header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(self._file, header)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock that a file stands for; a process that dies lets go of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
