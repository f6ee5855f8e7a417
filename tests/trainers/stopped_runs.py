"""Trains, is asked to stop by signals, and resumes: `python stopped_runs.py CHECKPOINT DATA FOLDER`.

Every process is forked from this one and gets real signals at chosen points; one that hangs ends with a traceback.
FOLDER receives a run folder for each scenario, a copy of it as the signal left it, and report.json with how each
process ended. A folder "SIGTERM to
torchrun" that is there already, of a run of kind "two", is resumed too.
"""

import faulthandler
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import meeting
import tiny
from tqdm import tqdm

from trainers import experiment, loop
from trainers.cli import main
from trainers.data import cache
from trainers.processes import interrupt
from trainers.training import checkpoints
from trainers.training.state import TrainState

EPOCH = 6  # steps
HANGS = 120
"""Seconds after which a process is taken to hang."""

KINDS = {
    "one": (1, []),
    "parts": (1, ["--micro-batch-size", "1", "--adversarial", "awp", "--precision", "fp16"]),
    "two": (2, ["--micro-batch-size", "1", "--workers", "2"]),
    "two, bf16": (2, ["--precision", "bf16", "--method", "full"]),
    "three": (3, []),
}
"""Processes and settings of the uninterrupted runs."""


def send(signum, to=os.kill):
    to(os.getpid() if to is os.kill else os.getpgrp(), signum)


def call_before(owner, name, action):
    """Let ``action`` see the arguments of each call first."""
    original = getattr(owner, name)

    def replacement(*args, **kwargs):
        action(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, replacement)


def at_step(number, action):
    """At the end of this step's work, before its border."""
    call_before(TrainState, "end_step", lambda state, *_: state.step + 1 == number and action())


def in_evaluation(epoch, action):
    """While the validation data is predicted after this epoch."""
    states, calls = [], []
    call_before(TrainState, "end_step", lambda state, *_: states.append(state))

    def look(*_):
        if len(states) == epoch * EPOCH:
            calls.append(1)
            if len(calls) == 1:
                action()

    call_before(loop, "autocast", look)


def while_saving(action):
    call_before(checkpoints, "save_file", lambda tensors, path: "step-4" in str(path) and action())


def twice():
    interrupt.SAME_REQUEST = 0.1
    send(signal.SIGTERM)
    send(signal.SIGTERM)  # the same request over again
    time.sleep(0.2)
    send(signal.SIGTERM)


def in_preparation(folder):
    """While an entry of the cache is half written."""
    os.environ[cache.CACHE_DIR_VARIABLE] = str(folder)
    call_before(cache._ArrayFile, "finish", lambda _: send(signal.SIGTERM))


def ignored_as_under_nohup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    at_step(4, lambda: send(signal.SIGHUP))


def torn_rename(name):
    """SIGKILL in the instant in which a checkpoint is replaced by another of its name."""

    def look(source, target):
        if Path(source).name == name:
            os.rename(source, target)
            send(signal.SIGKILL)

    call_before(os, "replace", look)


TERM, INT, HUP, USR1, KILL = (getattr(signal, f"SIG{name}") for name in ("TERM", "INT", "HUP", "USR1", "KILL"))
SCENARIOS = {
    # name: (kind, more settings, what to prepare in each process)
    "SIGTERM in the first step": ("one", [], [lambda: at_step(1, lambda: send(TERM))]),
    "SIGTERM in a step": ("one", [], [lambda: at_step(8, lambda: send(TERM))]),
    "SIGINT in an epoch's last step": ("one", [], [lambda: at_step(6, lambda: send(INT))]),
    "SIGHUP in evaluation": ("one", [], [lambda: in_evaluation(2, lambda: send(HUP))]),
    "SIGUSR1 while saving": ("one", ["--checkpoint-steps", "4"], [lambda: while_saving(lambda: send(USR1))]),
    "SIGTERM twice": ("one", ["--checkpoint-steps", "2"], [lambda: at_step(9, twice)]),
    "nohup": ("one", [], [ignored_as_under_nohup]),
    "SIGKILL between steps": ("one", ["--checkpoint-steps", "2"], [lambda: at_step(11, lambda: send(KILL))]),
    "SIGKILL in a rename": (
        "one",
        ["--checkpoint-steps", "2", "--keep-checkpoints", "1"],
        [lambda: torn_rename("step-12")],
    ),
    "SIGTERM in an adversarial step in parts": ("parts", [], [lambda: at_step(9, lambda: send(TERM))]),
    "SIGTERM to the groups of both": ("two", [], [lambda: at_step(8, lambda: send(TERM, os.killpg))] * 2),
    "SIGTERM to the second alone": ("two", [], [lambda: None, lambda: at_step(8, lambda: send(TERM))]),
    "SIGINT to the second alone in evaluation": (
        "two, bf16",
        [],
        [lambda: None, lambda: in_evaluation(2, lambda: send(INT))],
    ),
    "SIGTERM to the second alone in the last scoring": (
        "two, bf16",
        [],
        [lambda: None, lambda: call_before(experiment, "predict", lambda *_: send(TERM))],
    ),
    "SIGKILL after checkpoints by the clock": (
        "two, bf16",
        ["--checkpoint-minutes", "1e-6"],
        [lambda: at_step(11, lambda: send(KILL))] * 2,
    ),
    "SIGKILL of three": ("three", ["--checkpoint-steps", "2"], [lambda: at_step(9, lambda: send(KILL))] * 3),
}


def at_file(name):
    """SIGINT at the first opening of a file of that name."""
    opened = []

    def look(event, arguments):
        if event == "open" and str(arguments[0]).endswith(name) and not opened:
            opened.append(1)
            send(signal.SIGINT)

    sys.addaudithook(look)


def verbs(run, checkpoint, data, root):
    """Arguments of every verb but train, and a file that it opens when it is well under way."""
    written = root / "written"
    settings = f"[settings]\nmodel = '{checkpoint}'\ndata = '{data}'\n"
    (root / "study.toml").write_text(f"{settings}[recipes.lora]\nepochs = 500\n")
    (root / "tune.toml").write_text(f"{settings}epochs = 500\n[ranges.r]\nvalues = [1, 2]\n")
    (root / "texts.txt").write_text("the gene binds il2\n" * 3)
    return {
        "evaluate": ([str(run)], "config.json"),
        "study": ([str(root / "study.toml"), "--output-dir", str(root / "study")], "seed-42.log"),
        "tune": ([str(root / "tune.toml"), "--output-dir", str(root / "tune")], "metrics.jsonl"),
        "compare": ([str(run), str(run), "--output-dir", str(written)], "metrics.jsonl"),
        "report": ([str(run)], "test.npz"),
        "finish": ([str(run)], "config.json"),
        "vote": ([str(run), str(run), "--output-dir", str(written)], "config.json"),
        "analysis": ([str(run), "--output-dir", str(written)], "config.json"),
        "check-data": ([str(data), "--output-dir", str(written)], "valid.json"),
        "predict": (
            [str(run), str(root / "texts.txt"), "--output", str(root / "written" / "found.jsonl")],
            "texts.txt",
        ),
        "export": ([str(run)], "tokenizer.json"),
        "convert": ([str(checkpoint), "--output-dir", str(written / "model")], "config.json"),
        "info": ([str(run)], "config.json"),
        "push": ([str(run), "user/name", "--dry-run"], "config.json"),
        "merge": ([str(run), "--output-dir", str(written / "merged")], "config.json"),
        "bench": ([str(run), "--output-dir", str(written)], "work.pickle"),
    }


def process(log_file, arguments, prepare, rank, place):
    """Begin the command line in a process of its own, the leader of a group."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        if place:
            os.environ |= {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        log = os.open(f"{log_file}.{rank}", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        faulthandler.dump_traceback_later(HANGS, exit=True)
        status = 1
        try:
            prepare()
            main(arguments)
            status = 0
        except SystemExit as exit_:
            status = exit_.code
        finally:
            os._exit(status)
    return pid


def together(log_file, arguments, processes, prepare=(lambda: None,) * 3):
    """Run the command line in so many processes; the exit status of each, or minus the signal that ended it."""
    place = meeting.place(processes) if processes > 1 else {}
    ids = [process(log_file, arguments, prepare[rank], rank, place) for rank in range(processes)]
    ended = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ids]
    for log in log_file.parent.glob(f"{log_file.name}.*"):
        if "Timeout (0:" in log.read_text():
            raise TimeoutError(f"{log.name} ended after {HANGS} s:\n{log.read_text()}")
    return ended


def run_all(checkpoint, data, root):
    report = {}
    common = ("--keep-checkpoints", "2")
    # This process has then imported all that the others need.
    main(tiny.arguments(checkpoint, data, root / "imports", "--epochs", "1"))
    for kind, (processes, settings) in KINDS.items():
        folder = root / f"{kind}, straight"
        arguments = tiny.arguments(checkpoint, data, folder, *common, *settings)
        assert together(folder.with_suffix(".log"), arguments, processes) == [0] * processes, kind
    for name, (kind, more, prepare) in SCENARIOS.items():
        processes, settings = KINDS[kind]
        folder = root / name
        arguments = tiny.arguments(checkpoint, data, folder, *common, *settings, *more)
        ended = together(root / f"{name}.stopped", arguments, processes, prepare)
        shutil.copytree(folder, root / f"{name}, as it was left")
        again = tiny.arguments(checkpoint, data, folder, *common, *settings)  # without its checkpoints by steps
        report[name] = [kind, ended, together(root / f"{name}.resumed", [*again, "--resume", "auto"], processes)]
    folder = root / "SIGTERM to torchrun"
    if folder.is_dir():
        shutil.copytree(folder, root / f"{folder.name}, as it was left")
        again = tiny.arguments(checkpoint, data, folder, *common, *KINDS["two"][1])
        report[folder.name] = ["two", [], together(root / f"{folder.name}.resumed", [*again, "--resume", "auto"], 2)]
    for verb, (arguments, name) in verbs(root / "imports", checkpoint, data, root).items():
        report[verb] = together(root / f"{verb}.stopped", [verb, *arguments], 1, [lambda name=name: at_file(name)])
    folder = root / "preparation"
    arguments = tiny.arguments(checkpoint, data, folder / "run")
    report[folder.name] = together(
        root / "preparation.stopped", arguments, 1, [lambda: in_preparation(folder / "cache")]
    )
    (root / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    tqdm.monitor_interval = 0  # no thread of tqdm's in a process that forks
    run_all(*map(Path, sys.argv[1:]))
