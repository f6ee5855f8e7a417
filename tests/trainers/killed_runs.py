"""Trains, is killed, and resumes: `python killed_runs.py CHECKPOINT DATA FOLDER`.

Every run is a process of its own, forked from this one, that SIGKILL ends at a chosen point. FOLDER receives a run
folder per point, and report.json with how each process ended.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import tiny
from tqdm import tqdm

from trainers import experiment
from trainers.cli import main
from trainers.data.tokens.windows import TokenWindows
from trainers.run_folder import MetricsLog
from trainers.training import checkpoints as resume

STEPS = 6  # of an epoch


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_around(owner, name, chosen, *, before=True):
    """Replace a function so that the process dies at the first call whose arguments are ``chosen``."""
    original = getattr(owner, name)

    def replacement(*args, **kwargs):
        if before and chosen(*args, **kwargs):
            die()
        result = original(*args, **kwargs)
        if not before and chosen(*args, **kwargs):
            die()
        return result

    setattr(owner, name, replacement)


def in_batch(number):
    """In the training batch of that number; each epoch also collates one batch of validation data."""
    calls = []

    def chosen(*_):
        calls.append(1)
        return len(calls) == number + (number - 1) // STEPS

    kill_around(TokenWindows, "collate", chosen)


def around_rename(name, *, before):
    kill_around(os, "replace", lambda source, target: Path(target).name == name, before=before)


def while_writing_tensors(name):
    def torn(tensors, path):
        original(tensors, path)
        if Path(path).parent.name.startswith(f".{name}."):
            os.truncate(path, Path(path).stat().st_size // 2)
            die()

    original, resume.save_file = resume.save_file, torn


def before_writing(file, name):
    def chosen(path, *_, **__):
        return path.name == file and path.parent.name.startswith(f".{name}.")

    kill_around(Path, "write_text", chosen)


def while_removing(name):
    def torn(path, **kwargs):
        if Path(path).name.startswith(f".{name}."):
            next(Path(path).iterdir()).unlink()
            die()
        original(path, **kwargs)

    original, shutil.rmtree = shutil.rmtree, torn


def while_logging(event, epoch=None):
    def torn(self, name, **values):
        if name == event and values.get("epoch") == epoch:
            with self._path.open("a") as file:
                file.write(json.dumps({"event": name, **values})[:-20])
            die()
        original(self, name, **values)

    original, MetricsLog.write = MetricsLog.write, torn


POINTS = {
    "begin": lambda: around_rename("config.json", before=True),
    "epoch 1": lambda: in_batch(3),
    "epoch 2": lambda: in_batch(STEPS + 4),
    "log of epoch 2": lambda: while_logging("epoch", 2),
    "best of epoch 2": lambda: around_rename("best-2", before=False),
    "before step 12": lambda: kill_around(resume, "_write", lambda _, name, *rest: name == "step-12"),
    "files of step 12": lambda: while_writing_tensors("step-12"),
    "between the files of step 12": lambda: before_writing("state.json", "step-12"),
    "manifest of step 12": lambda: before_writing("manifest.json", "step-12"),
    "name of step 12": lambda: around_rename("step-12", before=True),
    "after step 12": lambda: around_rename("step-12", before=False),
    "after step 18": lambda: around_rename("step-18", before=False),
    "removal of step 6": lambda: kill_around(shutil, "rmtree", lambda path, **_: ".step-6." in str(path)),
    "half of step 6 removed": lambda: while_removing("step-6"),
    "after the last step": lambda: kill_around(experiment, "save_model", lambda *_: True),
    "after the model was saved": lambda: kill_around(experiment, "save_model", lambda *_: True, before=False),
    "log of the result": lambda: while_logging("result"),
}
FULL_POINTS = ("epoch 2", "files of step 12")


def process(log_file, arguments, prepare=lambda: None):
    """Run the command line in a process of its own; its exit status, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        log = os.open(log_file, os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        status = 1
        try:
            prepare()
            main(arguments)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_all(checkpoint, data, root):
    report = {}
    for method, points in {"lora": POINTS, "full": FULL_POINTS}.items():
        settings = ("--method", method, "--keep-checkpoints", "2")
        # The uninterrupted run is in this process, which so has imported all that the others need.
        main(tiny.arguments(checkpoint, data, root / f"{method}, straight", *settings))
        for point in points:
            folder = root / f"{method}, {point}"
            arguments = tiny.arguments(checkpoint, data, folder, *settings)
            report[folder.name] = [
                process(folder.with_suffix(".killed"), arguments, POINTS[point]),
                process(folder.with_suffix(".resumed"), [*arguments, "--resume", "auto"]),
            ]
    folder = root / "interrupted"
    arguments = tiny.arguments(checkpoint, data, folder, "--keep-checkpoints", "2")
    report[folder.name] = [process(folder.with_suffix(".killed"), arguments, lambda: in_batch(2 * STEPS + 3))]
    folder = root / "unscored"
    arguments = tiny.arguments(checkpoint, data, folder)
    report[folder.name] = [process(folder.with_suffix(".killed"), arguments, POINTS["after the model was saved"])]
    (root / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    tqdm.monitor_interval = 0  # no thread of tqdm's in a process that forks
    run_all(*map(Path, sys.argv[1:]))
