"""Signals at every kind of moment, to real processes: the run ends with a checkpoint that continues bit for bit."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainers.commands import VERBS
from trainers.config import TrainConfig
from trainers.processes.interrupt import Interrupted
from trainers.training import checkpoint_schedule
from trainers.training.checkpoint_schedule import CheckpointSchedule

HERE = Path(__file__).resolve().parents[1]
TIMES = {"seconds", "epoch_seconds", "tokens_per_second", "peak_memory_bytes", "memory"}
CHOICES = {"output_dir", "resume", "keep_checkpoints", "checkpoint_steps", "checkpoint_minutes"}

pytestmark = pytest.mark.timeout(700)  # the first test waits for all of stopped_runs.py


@pytest.fixture(scope="module")
def root(checkpoint, data, tiny, tmp_path_factory):
    """The folder that stopped_runs.py fills."""
    root = tmp_path_factory.mktemp("stopped")
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    environment |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    stop_torchrun(tiny, checkpoint, data, root / "SIGTERM to torchrun", environment)
    script = [sys.executable, HERE / "stopped_runs.py", checkpoint, data, root]
    done = subprocess.run(script, env=environment, stderr=subprocess.PIPE, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return root


def stop_torchrun(tiny, checkpoint, data, folder, environment):
    """SIGTERM to torchrun, which signals the groups of its two workers, while they train."""
    settings = ["--keep-checkpoints", "2", "--micro-batch-size", "1", "--workers", "2", "--checkpoint-steps", "1"]
    arguments = tiny.arguments(checkpoint, data, folder, *settings)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "trainers"]
    with folder.with_suffix(".log").open("w") as log:
        torchrun = subprocess.Popen([*command, *arguments], env=environment, stdout=log, stderr=log)
        while torchrun.poll() is None and not list(folder.glob("checkpoints/step-*")):
            time.sleep(0.005)
        torchrun.send_signal(signal.SIGTERM)
        assert torchrun.wait(200) == 1, folder.with_suffix(".log").read_text()  # whatever its workers end with


@pytest.fixture(scope="module")
def report(root):
    return json.loads((root / "report.json").read_text())


def varies(line, name):
    """Whether a card's line says what no two runs share: their names and their times."""
    return line.endswith(f" {name}") or "It took" in line


def files_of(folder):
    """The content of a run's files by name, without times and without the settings that may differ."""
    found = {}
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".jsonl") and path.name != "manifest.json":  # whose digests follow the times
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            without = TIMES | (CHOICES if path.name == "config.json" else set())
            found[path.relative_to(folder)] = [
                {key: value for key, value in json.loads(line).items() if key not in without} for line in lines
            ]
        elif path.suffix == ".toml":
            lines = path.read_text().splitlines()
            found[path.relative_to(folder)] = [line for line in lines if line.split(" = ")[0] not in CHOICES]
        elif path.suffix == ".md":  # a card bears the run's name
            lines = path.read_text().splitlines()
            found[path.relative_to(folder)] = [line for line in lines if not varies(line, folder.name)]
        elif path.is_file() and path.name != "manifest.json":
            found[path.relative_to(folder)] = path.read_bytes()
    return found


def steps(folder):
    return {path.name for path in (folder / "checkpoints").iterdir()}


def check(root, report, name, status, left):
    """How the processes ended, what checkpoints they left, and that the resumed run is the uninterrupted one."""
    kind, ended, resumed = report[name]
    log = (root / f"{name}.stopped.0").read_text() + (root / f"{name}.resumed.0").read_text()
    assert ended == [status] * len(ended), log
    assert resumed == [0] * len(resumed), log
    assert "Traceback" not in log
    assert steps(root / f"{name}, as it was left") == left
    ours, straight = files_of(root / name), files_of(root / f"{kind}, straight")
    assert ours.keys() == straight.keys()
    assert [str(path) for path in ours if ours[path] != straight[path]] == []
    return (root / f"{name}.stopped.0").read_text().splitlines()[-1].strip()


def command(line):
    """The words of the command that the last line gives."""
    return shlex.split(line.partition(" To go on: ")[2])


@pytest.mark.fault("SIGTERM in a step", "checkpoint at the step's end, exit 143", "nothing")
def test_sigterm_ends_the_step_and_says_how_to_go_on(root, report, tiny, checkpoint, data):
    name = "SIGTERM in a step"
    line = check(root, report, name, 143, {"step-6", "step-8", "best-1"})
    assert line.startswith(f"stopped by SIGTERM after step 8 (epoch 2), with a checkpoint in {root / name}. To go on: ")
    arguments = tiny.arguments(checkpoint, data, root / name, "--keep-checkpoints", "2", "--resume", "auto")
    assert command(line) == ["python", "-m", "trainers", *arguments]


def test_the_first_step_is_no_exception(root, report):
    check(root, report, "SIGTERM in the first step", 143, {"step-1"})


def test_the_time_before_the_interruption_counts(root, report):
    name = "SIGTERM in a step"
    state = json.loads((root / f"{name}, as it was left" / "checkpoints" / "step-8" / "state.json").read_text())
    assert state["batch"] == 2
    assert state["epoch_seconds"] > 0

    def epochs(folder):
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    ours, straight = epochs(root / name), epochs(root / "one, straight")
    assert ours[1]["seconds"] > state["epoch_seconds"]
    assert ours[-1]["seconds"] == pytest.approx(sum(event["seconds"] for event in ours[:-1]))
    for one, other in zip(ours, straight, strict=True):  # the tokens of the whole epoch over its whole time
        tokens = one["seconds"] * one["tokens_per_second"]
        assert tokens == pytest.approx(other["seconds"] * other["tokens_per_second"])


@pytest.mark.fault("Ctrl-C in an epoch's last step", "checkpoint before evaluation, exit 130", "nothing")
def test_an_epoch_that_is_trained_and_not_evaluated_resumes(root, report):
    line = check(root, report, "SIGINT in an epoch's last step", 130, {"step-6"})
    assert "stopped by SIGINT after step 6 (epoch 1)" in line


@pytest.mark.fault("SIGHUP while evaluating", "checkpoint before evaluation, exit 129", "that evaluation")
def test_sighup_in_evaluation(root, report):
    line = check(root, report, "SIGHUP in evaluation", 129, {"step-6", "step-12", "best-1"})
    assert "stopped by SIGHUP after step 12 (epoch 2)" in line


@pytest.mark.fault("SIGUSR1 while a checkpoint is written", "it is finished, one more step, exit 138", "nothing")
def test_a_signal_while_saving_leaves_the_checkpoint_whole(root, report):
    check(root, report, "SIGUSR1 while saving", 138, {"step-4", "step-5"})


@pytest.mark.fault("a second SIGTERM", "one line, exit 143 at once", "since the last checkpoint")
def test_a_second_signal_ends_at_once_and_a_repeated_one_does_not(root, report):
    line = check(root, report, "SIGTERM twice", 143, {"step-6", "step-8", "best-1"})
    assert line == "SIGTERM again: ended at once."


@pytest.mark.fault("SIGHUP under nohup", "the run goes on", "nothing")
def test_what_is_ignored_stays_ignored(root, report):
    check(root, report, "nohup", 0, steps(root / "one, straight"))


@pytest.mark.fault("kill -9 with --checkpoint-steps", "resumes bit for bit", "less than so many steps")
def test_checkpoints_by_steps_bound_what_is_lost(root, report):
    check(root, report, "SIGKILL between steps", -9, {"step-8", "step-10", "best-1"})


@pytest.mark.fault("kill -9 while a checkpoint is replaced", "resumes from the one before", "one interval")
def test_the_newest_checkpoint_is_never_the_only_one_while_it_is_replaced(root, report):
    name = "SIGKILL in a rename"
    left = steps(root / f"{name}, as it was left")
    assert {entry for entry in left if not entry.startswith(".")} == {"step-10", "best-1", "best-2"} & left
    check(root, report, name, -9, left)


@pytest.mark.fault("SIGTERM in an awp step, fp16, in parts", "checkpoint at the step's end, exit 143", "nothing")
def test_scaler_adversary_and_parts_resume(root, report):
    check(root, report, "SIGTERM in an adversarial step in parts", 143, {"step-6", "step-9", "best-1"})


@pytest.mark.fault("SIGTERM to all ranks and their loaders", "all stop at one step, exit 143", "nothing")
def test_all_ranks_and_their_workers_are_signalled(root, report):
    name = "SIGTERM to the groups of both"
    line = check(root, report, name, 143, {"step-6", "step-9", "best-1"})  # they learn of it a step later
    assert command(line)[:6] == ["torchrun", "--nproc-per-node", "2", "-m", "trainers", "train"]
    assert (root / f"{name}.stopped.1").read_text() == ""


@pytest.mark.fault("SIGTERM to one rank of two", "all stop at one step, exit 143", "nothing")
def test_one_rank_is_signalled(root, report):
    line = check(root, report, "SIGTERM to the second alone", 143, {"step-6", "step-9", "best-1"})
    assert "stopped by SIGTERM after step 9" in line


@pytest.mark.fault("Ctrl-C of one rank while evaluating", "all stop before evaluation, exit 130", "that evaluation")
def test_one_rank_is_signalled_in_evaluation(root, report):
    check(root, report, "SIGINT to the second alone in evaluation", 130, {"step-6", "step-12", "best-1"})


@pytest.mark.fault("SIGTERM to one rank in the last scoring", "all stop, exit 143", "that scoring")
def test_one_rank_is_signalled_when_all_is_trained(root, report):
    name = "SIGTERM to the second alone in the last scoring"
    line = check(root, report, name, 143, steps(root / "two, bf16, straight"))
    assert line.startswith("stopped by SIGTERM in evaluation. To go on: torchrun ")


@pytest.mark.fault("kill -9 of all with --checkpoint-minutes", "resumes bit for bit", "less than so many minutes")
def test_the_ranks_agree_on_checkpoints_by_the_clock(root, report):
    name = "SIGKILL after checkpoints by the clock"
    left = steps(root / f"{name}, as it was left")
    assert any(int(entry.removeprefix("step-")) in (8, 9, 10) for entry in left if entry.startswith("step-"))
    check(root, report, name, -9, left)


def test_gradients_of_three_ranks_are_summed_in_the_same_order_after_a_resume(root, report):
    """Of two numbers the sum is the same in either order: two ranks would not show it."""
    check(root, report, "SIGKILL of three", -9, {"step-6", "step-8", "best-1"})


@pytest.mark.fault("SIGTERM to torchrun", "checkpoint at a step's end; torchrun exits with 1", "nothing")
def test_torchrun_passes_a_signal_on(root, report):
    name = "SIGTERM to torchrun"
    kind, _, resumed = report[name]
    log = (root / f"{name}.log").read_text()
    assert resumed == [0, 0]
    (line,) = [line.strip() for line in log.splitlines() if "stopped by SIGTERM" in line]
    assert command(line)[:6] == ["torchrun", "--nproc-per-node", "2", "-m", "trainers", "train"]
    assert "DataLoader worker" not in log
    reached = int(line.partition("after step ")[2].split()[0])
    assert f"step-{reached}" in steps(root / f"{name}, as it was left")
    assert files_of(root / name) == files_of(root / f"{kind}, straight")


@pytest.mark.fault("SIGTERM while data is prepared", "one line, exit 143, no half-written file", "the preparation")
def test_preparation_ends_at_once_and_leaves_nothing(root, report):
    assert report["preparation"] == [143]
    log = (root / "preparation.stopped.0").read_text().splitlines()
    assert log[-1].startswith("stopped by SIGTERM. To go on: ")
    assert not any("Traceback" in line for line in log)
    assert {path.suffix for path in (root / "preparation").rglob("*") if path.is_file()} == {".lock"}


@pytest.mark.fault("Ctrl-C in any other verb", "one line, exit 130, no half-written file", "the command")
def test_ctrl_c_in_every_verb_is_one_line(root, report):
    for verb in VERBS.keys() - {
        "train",
        "serve",
        "completion",
    }:  # a service answers first what it took: service/test_server.py
        log = (root / f"{verb}.stopped.0").read_text()
        assert report[verb] == [130], log
        assert log.splitlines()[-1].strip() == "stopped by SIGINT."
        assert "Traceback" not in log
    written = root / "written"
    assert not written.exists() or list(written.iterdir()) == []


# The schedule by itself


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"checkpoint_minutes": 0.0}, []),
        ({"checkpoint_minutes": 0.0, "checkpoint_steps": 3}, [3, 6]),
        ({"checkpoint_minutes": 2.5}, [3, 6]),  # each step takes a minute
        ({"checkpoint_minutes": 2.5, "checkpoint_steps": 4}, [3, 4, 7, 8]),
    ],
)
def test_when_checkpoints_are_due(alone, tmp_path, monkeypatch, settings, expected):
    """And that the one before stays when the newest is to be replaced after the evaluation."""
    saved, now = [], [0.0]
    monkeypatch.setattr(checkpoint_schedule.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(
        checkpoint_schedule, "save_checkpoint", lambda state, folder, keep, world: saved.append((state.step, keep))
    )
    state = SimpleNamespace(step=0, batch=0, epoch=0, start_clock=lambda: None)
    plan = SimpleNamespace(batches=lambda epoch: [None] * 8)
    schedule = CheckpointSchedule(state, plan, TrainConfig(**settings), tmp_path, alone)
    for _ in range(8):
        now[0] += 60
        state.step += 1
        state.batch += 1
        schedule.after_step()
    assert saved == [(step, 2 if step == 8 else 1) for step in expected]
    state.epoch, state.batch = 1, 0
    schedule.after_epoch()
    assert saved[-1] == (8, 1)


def test_a_signal_is_answered_with_the_flag_to_go_on(alone, tmp_path, monkeypatch):
    """What an experiment's own script shows; `train` gives the whole command instead, a notebook the keyword."""
    monkeypatch.setattr(checkpoint_schedule.interrupt, "requested", lambda: signal.SIGTERM)
    monkeypatch.setattr(checkpoint_schedule, "save_checkpoint", lambda *_: None)
    state = SimpleNamespace(step=3, batch=3, epoch=0, start_clock=lambda: None)
    plan = SimpleNamespace(batches=lambda epoch: [None] * 8)
    with pytest.raises(Interrupted) as raised:
        CheckpointSchedule(state, plan, TrainConfig(), tmp_path, alone).after_step()
    assert str(raised.value) == (
        f"stopped by SIGTERM after step 3 (epoch 1), with a checkpoint in {tmp_path}. "
        "To go on: the same with --resume auto, without --overwrite."
    )
