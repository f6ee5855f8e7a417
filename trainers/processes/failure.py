"""A failure of one process of several, in words that all of them can end with. It needs no torch."""

import json
import os
import time
import traceback
from dataclasses import asdict, dataclass

from lora_core.files import DiskFullError

USER_ERRORS = (ValueError, OSError, FloatingPointError, ModuleNotFoundError, MemoryError)
"""Errors whose message says what to do; any other shows where it came from."""
USER_ERROR, OUT_OF_MEMORY, DISK_FULL = 2, 3, 4
"""Exit statuses."""


def exit_status(error: BaseException) -> int:
    """The exit status of a command that an error ends: 1 for one that nobody expected."""
    if isinstance(error, DiskFullError):
        return DISK_FULL
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    return USER_ERROR if isinstance(error, USER_ERRORS) else 1


def is_main() -> bool:
    """Whether this is the only process, or torchrun's first: the one that talks to the user."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Failure:
    """Why a run with several processes ended."""

    rank: int
    """The process that failed."""
    by: int
    """The process that says so: another one where the failed one cannot."""
    message: str
    """What an error said, or what is known of a process that says nothing."""
    cause: str = ""
    """Type and place of the error: "ValueError at reader.py:31". Empty where there was none."""
    detail: str = ""
    """Its traceback, where the message may not be enough."""
    status: int = 1
    """The exit status of every process."""
    common: bool = False
    """Whether all processes met it: then it is no matter of one rank."""

    @classmethod
    def of(cls, error: Exception, rank: int) -> "Failure":
        """The failure that an error on this process is."""
        frames = traceback.extract_tb(error.__traceback__)
        place = f" at {os.path.relpath(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
        expected = isinstance(error, USER_ERRORS)
        detail = "" if expected else "".join(traceback.format_exception(error))
        return cls(rank, rank, str(error), f"{type(error).__name__}{place}", detail, exit_status(error))

    @classmethod
    def from_json(cls, text: str) -> "Failure":
        """What `to_json` wrote."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """As one line, for the other processes."""
        return json.dumps(asdict(self))

    @property
    def line(self) -> str:
        """What the user is told: of an error that all processes met, what a single one would tell."""
        if not self.cause or (self.common and not self.detail):
            return self.message
        return f"{self.cause}: {self.message}" if self.common else f"rank {self.rank}: {self.cause}: {self.message}"

    def write_for_torchrun(self) -> None:
        """Write the file that torchrun's summary reads, in the form of torch.distributed.elastic's `record`."""
        path = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if path:
            extra = {"py_callstack": self.line, "timestamp": str(int(time.time()))}
            with open(path, "w", encoding="utf-8") as file:
                json.dump({"message": {"message": self.line, "extraInfo": extra}}, file)
