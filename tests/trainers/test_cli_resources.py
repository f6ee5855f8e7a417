"""Too little disk or memory ends a command with one line and an exit status of its own."""

import os
import resource
import subprocess
import sys

import pytest
import torch

from trainers.cli import ALL_VERBS, main
from trainers.processes.failure import DISK_FULL, OUT_OF_MEMORY
from trainers.run_folder import RunFolder
from trainers.tasks.token import TokenClassification
from trainers.training import checkpoints
from trainers.training.checkpoints import damage

LIMIT = 20_000
"""Bytes of a file; a checkpoint of the tiny model has more."""


@pytest.mark.fault("a full disk when a checkpoint is written", "a line: bytes and path; exit status 4", "the epoch")
def test_a_checkpoint_without_room(tiny, checkpoint, data, tmp_path):
    """The limit of a file's size is real, in a process of its own: Linux refuses to write more."""
    run = tmp_path / "run"
    arguments = tiny.arguments(checkpoint, data, run, "--method", "full")
    done = subprocess.run(
        [sys.executable, "-m", "trainers", *arguments],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT)),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == DISK_FULL, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    place = RunFolder(run).checkpoints / "best-1"
    assert line.startswith(f"error: {place} could not be written: file too large; ")
    assert " bytes are needed, a file may not be larger here (ulimit -f). " in line
    assert "Raise that limit (ulimit -f unlimited) and go on with --resume" in line
    assert "Traceback" not in done.stderr
    assert list(run.rglob(".*")) == []
    main([*arguments, "--resume", "auto"])  # with room
    assert RunFolder(run).is_finished()


@pytest.mark.fault("a full disk at a later checkpoint", "the earlier one is whole, no litter", "since the earlier one")
def test_the_checkpoint_before_is_intact(tiny, checkpoint, data, tmp_path):
    run = tmp_path / "run"
    main(tiny.arguments(checkpoint, data, run, "--method", "full", "--epochs", "1"))
    kept = RunFolder(run).checkpoints
    (first,) = kept.glob("step-*")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        with pytest.raises(OSError, match="file too large; 120,000 bytes are needed"):
            checkpoints._write(RunFolder(run), "step-99", {"x": torch.ones(30_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert damage(first) is None
    assert not [path for path in kept.iterdir() if path.name.startswith(".") or path.name == "step-99"]


@pytest.mark.fault("memory that does not suffice for a pass", "a line: what to change; exit status 3", "the epoch")
def test_training_without_memory(tiny, checkpoint, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(TokenClassification, "training_loss_sum", lambda *_: bytearray(1 << 50))
    with pytest.raises(SystemExit) as status:
        main(tiny.arguments(checkpoint, data, tmp_path / "run", "--micro-batch-tokens", "64"))
    assert status.value.code == OUT_OF_MEMORY
    error = capsys.readouterr().err
    assert "error: Out of memory on cpu: more was needed, " in error
    assert "Add --micro-batch-tokens 32, half" in error


def test_other_verbs_without_memory(capsys, monkeypatch):
    """torch's own error, of a verb that does not cut its work into passes."""
    monkeypatch.setitem(ALL_VERBS, "compare", lambda: torch.empty(1 << 50))
    with pytest.raises(SystemExit) as status:
        main(["compare"])
    assert status.value.code == OUT_OF_MEMORY
    assert "error: out of memory: " in capsys.readouterr().err
