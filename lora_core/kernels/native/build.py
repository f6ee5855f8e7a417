"""Builds and loads the operators of the .cpp files beside it: `ops()`.

torch's own loader of extensions compiles them, in a folder that one process has for itself; the finished library is
then moved to its place in one step. So a library is whole or not there, processes that start together wait for the
one that builds, and one that was killed while building leaves nothing that others wait for.

The library is for one kind of CPU: its name holds a hash of the sources, the CPU's abilities, torch's version and the
compiler's options, so a home folder that several machines share keeps one for each kind.
"""

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger("lora_core")

SWITCH = "LORA_CORE_NATIVE"
"""Environment variable; 0 leaves the operators alone, as if there were no compiler."""
SOURCES = Path(__file__).parent
COMPILE = ["-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-DNDEBUG"]
"""OpenMP's code without its library: at::parallel_for then runs on the threads of the library that torch brought."""
WAIT_SECONDS = 180.0
"""How long a process waits for another that builds."""

_lock = threading.Lock()
_found: list[Any] = []


def ops() -> Any:
    """The operators, ``torch.ops.lora_core_native``, built if need be; None where they cannot be had.

    Why not is logged, once in a process.
    """
    if not _found:
        with _lock:
            if not _found:
                _found.append(_load())
    return _found[0]


def _load() -> Any:
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the loader's, and setuptools', are not about anything of the user's
            torch.ops.load_library(_library())
    except Exception as error:  # whatever a compiler, a loader or a file system may bring
        logger.warning(
            "The C++ kernels cannot be used (%s), so training takes torch's own operators, which are slower. "
            "%s=0 leaves them out without this message.",
            " ".join(str(error).split())[:300] or type(error).__name__,
            SWITCH,
        )
        return None
    return torch.ops.lora_core_native


def _library() -> Path:
    """The built library."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise OSError(f"they are for Linux on x86_64, not {sys.platform} on {platform.machine()}")
    if torch.get_num_threads() > 1 and "OpenMP" not in torch.__config__.parallel_info():
        raise OSError("this torch has threads other than OpenMP's")
    name = f"lora_core_native_{_fingerprint()}"
    folder = _cache()
    library = folder / f"{name}.so"
    if library.is_file():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / f"{name}.lock"):
        if not library.is_file():
            _build(name, folder / f"{name}.build", library)
    return library


def _cache() -> Path:
    """The folder that torch's loader keeps its extensions in."""
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch_extensions"


def _fingerprint() -> str:
    """A hash of all that the library depends on."""
    found = hashlib.sha256()
    for path in sorted(SOURCES.glob("*.h")) + sorted(SOURCES.glob("*.cpp")):
        found.update(path.read_bytes())
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "model"))]
    found.update("\n".join([*sorted(set(cpu)), torch.__version__, *COMPILE, os.environ.get("CXX", "")]).encode())
    return found.hexdigest()[:16]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process is inside while this one is; the lock ends with the process, however that ends."""
    with path.open("w") as file:
        until = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError(f"another process has been building them for {WAIT_SECONDS:.0f} s") from None
                time.sleep(0.1)
        yield


def _build(name: str, folder: Path, library: Path) -> None:
    """Compile the library in a folder of this process's own, and put it in its place."""
    from torch.utils import cpp_extension  # brings setuptools along, which few need

    shutil.rmtree(folder, ignore_errors=True)  # one that was interrupted
    folder.mkdir()
    try:
        logger.info("Building the C++ kernels for this CPU, once; they are kept in %s.", library.parent)
        cpp_extension.load(
            name,
            [str(path) for path in sorted(SOURCES.glob("*.cpp"))],
            extra_cflags=COMPILE,
            build_directory=str(folder),
            is_python_module=False,
        )
        (folder / f"{name}.so").replace(library)
    except Exception as error:
        raise OSError(_reason(error)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _reason(error: Exception) -> str:
    """What to say of a build that failed: the compiler's first complaint, if it had one."""
    text = str(error)
    complaint = next((line for line in text.splitlines() if "error:" in line or "not found" in line), text)
    return f"building them failed: {complaint or type(error).__name__}"
