"""One of the processes of a run, of which one meets a fault: `torchrun faulty_rank.py FAULT RANK ARGUMENTS`.

ARGUMENTS are those of the command line; RANK is the process that meets the fault, in its first start. NOTES, in the
environment, is a folder where every process writes its number (rank-RANK) and its standard error (error-RANK).
"""

import os
import signal
import sys
import time
from pathlib import Path

from trainers.cli import main
from trainers.data.tokens.windows import TokenWindows
from trainers.training import checkpoints


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


def pause():
    Path(os.environ["NOTES"], "paused").touch()
    time.sleep(600)


def full_disk(tensors, path):
    raise OSError(28, "No space left on device", str(path))


FAULTS = {
    "none": lambda: None,
    "ValueError": lambda: mid_epoch(lambda: fail(ValueError("row 3 of news.csv has no label"))),
    "OSError": lambda: mid_epoch(lambda: fail(OSError(5, "Input/output error", "news.csv"))),
    "KeyError": lambda: mid_epoch(lambda: fail(KeyError("surprise"))),
    "kill": lambda: mid_epoch(lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "stop": lambda: mid_epoch(lambda: os.kill(os.getpid(), signal.SIGSTOP)),
    "pause": lambda: mid_epoch(pause),
    "full disk": lambda: setattr(checkpoints, "save_file", full_disk),
}


def run(fault, faulty, arguments):
    """What the process does; ``faulty`` are the ranks that meet the fault."""
    rank = int(os.environ["RANK"])
    started = Path(os.environ["NOTES"], f"rank-{rank}")
    again = started.exists()
    with started.open("a") as file:
        file.write(f"{os.getpid()}\n")
    os.dup2(os.open(started.with_name(f"error-{rank}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    if rank in faulty and not again:
        FAULTS[fault]()
    main(arguments)


if __name__ == "__main__":
    run(sys.argv[1], [int(sys.argv[2])], sys.argv[3:])
