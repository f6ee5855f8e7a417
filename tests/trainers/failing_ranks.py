"""Runs of two processes that end by a fault of one: `python failing_ranks.py CHECKPOINT DATA FOLDER`.

The processes are forked from this one, which has imported all that they need. FOLDER receives for each case a folder
of notes (faulty_rank.py) and a run folder, and report.json with exit statuses and seconds, by case and rank.
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import faulty_rank
import meeting
import tiny
from tqdm import tqdm

WAVES = (
    {
        "ValueError of rank 1": ("ValueError", [1]),
        "OSError of rank 1": ("OSError", [1]),
        "OSError of rank 0": ("OSError", [0]),
    },
    {
        "KeyError of rank 1": ("KeyError", [1]),
        "ValueError of both": ("ValueError", [0, 1]),
        "full disk": ("full disk", [0]),
    },
    {
        "rank 1 is killed": ("kill", [1]),
        "rank 0 is killed": ("kill", [0]),
    },
    {
        "rank 1 stands still": ("pause", [1]),
        "rank 0 stands still": ("pause", [0]),
        "rank 1 is stopped": ("stop", [1]),
    },
)
"""The fault, and who meets it, by case. The cases of a wave run at once, for most of their time is waiting."""
TIMEOUT = 5


def fork(rank, place, fault, faulty, arguments, notes):
    """Start a process of a run; its number."""
    pid = os.fork()
    if pid:
        return pid
    os.environ |= {**place, "RANK": str(rank), "NOTES": str(notes)}
    status = 3
    try:
        faulty_rank.run(fault, faulty, arguments)
        status = 0
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def start(case, fault, faulty, checkpoint, data, root):
    """Start the two processes of a case; their numbers, in the order of ranks."""
    notes = root / case
    notes.mkdir()
    place = meeting.place(2)
    timeout = ["--timeout", str(TIMEOUT)] if fault in ("pause", "stop") else []
    arguments = tiny.arguments(checkpoint, data, root / f"{case}, run", *timeout)
    return [fork(rank, place, fault, faulty, arguments, notes) for rank in range(2)]


def run(wave, checkpoint, data, root):
    """Exit status (or minus the signal) and seconds of the processes of each case."""
    began, ends = time.monotonic(), {}
    pids = {case: start(case, *fault, checkpoint, data, root) for case, fault in wave.items()}
    while len(ends) < 2 * len(wave):
        pid, status = os.waitpid(-1, 0)
        ends[pid] = os.waitstatus_to_exitcode(status), time.monotonic() - began
        for case, (fault, _) in wave.items():
            if fault == "stop" and pid == pids[case][0]:  # nothing but this ends the other
                os.kill(pids[case][1], signal.SIGKILL)
    return {case: [ends[pid] for pid in started] for case, started in pids.items()}


if __name__ == "__main__":
    tqdm.monitor_interval = 0  # no thread of tqdm's in a process that forks
    checkpoint, data, root = map(Path, sys.argv[1:])
    faulty_rank.main(tiny.arguments(checkpoint, data, root / "alone"))  # imports, and prepared data
    report = {}
    for wave in WAVES:
        report |= run(wave, checkpoint, data, root)
    (root / "report.json").write_text(json.dumps(report))
