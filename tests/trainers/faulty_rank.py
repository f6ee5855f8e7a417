"""One of the processes of a run, of which one meets a fault: `torchrun faulty_rank.py FAULT RANK ARGUMENTS`.

ARGUMENTS are those of the command line; RANK is the process that meets the fault, in its first start. NOTES, in the
environment, is a folder where every process writes its number (rank-RANK) and its own standard error (error-RANK).
"""

import os
import signal
import sys
import time
from pathlib import Path

from trainers.cli import main
from trainers.data.tokens.windows import TokenWindows
from trainers.training import checkpoints

RANK, NOTES = int(os.environ["RANK"]), Path(os.environ["NOTES"])


def at_batch(number, act):
    """Act before this process's training batch of that number; evaluation counts none."""
    collate, calls = TokenWindows.collate, []

    def replacement(self, indices, epoch=None):
        calls.append(epoch is not None)
        if sum(calls) == number:
            act()
        return collate(self, indices, epoch)

    TokenWindows.collate = replacement


def fail(error):
    raise error


def full_disk(tensors, path):
    raise OSError(28, "No space left on device", str(path))


FAULTS = {
    "none": lambda: None,
    "ValueError": lambda: at_batch(8, lambda: fail(ValueError("row 3 of news.csv has no label"))),
    "OSError": lambda: at_batch(8, lambda: fail(OSError(5, "Input/output error", "/data/news.csv"))),
    "KeyError": lambda: at_batch(8, lambda: fail(KeyError("surprise"))),
    "kill": lambda: at_batch(8, lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "stop": lambda: at_batch(8, lambda: os.kill(os.getpid(), signal.SIGSTOP)),
    "sleep": lambda: at_batch(8, lambda: time.sleep(600)),
    "pause": lambda: at_batch(8, lambda: (NOTES.joinpath("paused").touch(), time.sleep(600))),
    "full disk": lambda: setattr(checkpoints, "save_file", full_disk),
}


if __name__ == "__main__":
    fault, rank, *arguments = sys.argv[1:]
    started = NOTES / f"rank-{RANK}"
    again = started.exists()
    with started.open("a") as file:
        file.write(f"{os.getpid()}\n")
    os.dup2(os.open(NOTES / f"error-{RANK}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    if int(rank) == RANK and not again:
        FAULTS[fault]()
    main(arguments)
