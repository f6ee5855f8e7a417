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


def mid_epoch(act):
    """Act before the second batch of the second epoch, where the batches are made: here or in a loader's process."""
    collate, calls = TokenWindows.collate, []

    def replacement(self, indices, epoch=None):
        calls.append(epoch)
        if calls.count(1) == 2 and epoch == 1:
            act()
        return collate(self, indices, epoch)

    TokenWindows.collate = replacement


def fail(error):
    raise error


def full_disk(tensors, path):
    raise OSError(28, "No space left on device", str(path))


FAULTS = {
    "none": lambda: None,
    "ValueError": lambda: mid_epoch(lambda: fail(ValueError("row 3 of news.csv has no label"))),
    "OSError": lambda: mid_epoch(lambda: fail(OSError(5, "Input/output error", "/data/news.csv"))),
    "KeyError": lambda: mid_epoch(lambda: fail(KeyError("surprise"))),
    "kill": lambda: mid_epoch(lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "stop": lambda: mid_epoch(lambda: os.kill(os.getpid(), signal.SIGSTOP)),
    "sleep": lambda: mid_epoch(lambda: time.sleep(600)),
    "pause": lambda: mid_epoch(lambda: (NOTES.joinpath("paused").touch(), time.sleep(600))),
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
