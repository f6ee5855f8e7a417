"""The oracle of resuming is the run that was never interrupted: every bit must be the same."""

import dataclasses
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_core.files import sha256_of_file
from trainers.cli import main
from trainers.config import TrainConfig
from trainers.finished import FinishedRun
from trainers.loop import fit
from trainers.tasks.token import TokenClassification
from trainers.training import checkpoints
from trainers.training.averaging import WeightAverage
from trainers.training.checkpoints import (
    damage,
    load_checkpoint,
    newest_checkpoint,
    restore_best,
    save_best,
    save_checkpoint,
    unusable,
)
from trainers.training.optim import build_optimizer, build_scheduler
from trainers.training.precision import grad_scaler
from trainers.training.state import TrainState

HERE = Path(__file__).resolve().parents[1]
# Where killed_runs.py kills, and the epochs that are then left to train.
RUNS = {
    "lora, begin": [1, 2, 3],
    "lora, epoch 1": [1, 2, 3],
    "lora, epoch 2": [2, 3],
    "lora, log of epoch 2": [2, 3],
    "lora, best of epoch 2": [2, 3],
    "lora, before step 12": [2, 3],
    "lora, files of step 12": [2, 3],
    "lora, between the files of step 12": [2, 3],
    "lora, manifest of step 12": [2, 3],
    "lora, name of step 12": [2, 3],
    "lora, after step 12": [3],
    "lora, after step 18": [],
    "lora, removal of step 6": [],
    "lora, half of step 6 removed": [],
    "lora, after the last step": [],
    "lora, after the model was saved": [],
    "lora, log of the result": [],
    "full, epoch 2": [2, 3],
    "full, files of step 12": [2, 3],
}
TIMES = {"seconds", "epoch_seconds", "tokens_per_second", "peak_memory_bytes", "memory"}


@pytest.fixture(scope="session")
def killed(checkpoint, data, tmp_path_factory):
    """The folder that killed_runs.py fills."""
    root = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    environment |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    script = [sys.executable, HERE / "killed_runs.py", checkpoint, data, root]
    subprocess.run(script, env=environment, check=True, timeout=300)
    return root


def without_times(path):
    """The JSON objects of a file, without figures that no two runs share."""
    texts = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    ignored = TIMES | ({"output_dir", "resume"} if path.name == "config.json" else set())
    return [{key: value for key, value in json.loads(text).items() if key not in ignored} for text in texts]


def files(folder):
    # But for the lock's file, which a killed run leaves and the next takes away.
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"}


def varies(line, name):
    """Whether a card's line says what no two runs share: their names and their times."""
    return line.endswith(f" {name}") or "It took" in line


def assert_same_run(one, other):
    names = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert names == {path.relative_to(other) for path in other.rglob("*") if path.is_file()}
    assert {"tensors.safetensors", "metrics.jsonl", "config.json"} < {path.name for path in names}
    for path in names:
        if path.suffix in (".safetensors", ".npz"):
            assert (one / path).read_bytes() == (other / path).read_bytes(), path
        elif path.suffix == ".toml":
            assert (one / path).read_text() == (other / path).read_text(), path
        elif path.suffix == ".md":  # a card bears the run's name
            ours, theirs = (
                [line for line in (root / path).read_text().splitlines() if not varies(line, root.name)]
                for root in (one, other)
            )
            assert ours == theirs, path
        elif path.name != "manifest.json":  # the checksum of state.json, which holds times
            assert without_times(one / path) == without_times(other / path), path


@pytest.mark.fault(
    "kill -9 at each named point of an epoch, a save and a removal",
    "--resume auto ends bit for bit as without it",
    "what came after the last checkpoint",
)
@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_ends_as_if_it_had_not_been(killed, name):
    report = json.loads((killed / "report.json").read_text())
    assert report.keys() == {*RUNS, "interrupted", "unscored"}
    log = (killed / f"{name}.resumed").read_text()
    assert report[name] == [-9, 0], log
    assert sorted(set(map(int, re.findall(r"^ +(\d)/3 ", log, re.MULTILINE)))) == RUNS[name]
    method = name.split(",")[0]
    assert_same_run(killed / name, killed / f"{method}, straight")


def test_the_straight_run_has_dropout_and_learns(killed):
    """Without this the comparisons would prove little."""
    epochs = without_times(killed / "lora, straight" / "metrics.jsonl")[:-1]
    assert [event["epoch"] for event in epochs] == [1, 2, 3]
    assert epochs[0]["validation"]["loss"] > epochs[1]["validation"]["loss"]
    config = json.loads((killed / "lora, straight" / "config.json").read_text())
    assert config["lora_dropout"] == config["hidden_dropout"] == config["attention_dropout"] == 0.1


@pytest.mark.fault("kill -9 between the weights and the result", "is not finished; --resume auto scores it", "none")
def test_a_run_that_was_killed_between_weights_and_result(killed):
    """What it ends as is told by "after the model was saved"."""
    assert json.loads((killed / "report.json").read_text())["unscored"] == [-9]
    weights = killed / "unscored" / "adapter" / "adapter_model.safetensors"
    assert weights.read_bytes() == (killed / "lora, straight" / "adapter" / weights.name).read_bytes()
    with pytest.raises(ValueError, match=r"has not finished: its last finished epoch is 3, .*with --resume auto"):
        FinishedRun.open(killed / "unscored")


# Damaged checkpoints


@pytest.fixture
def interrupted(killed, tiny, checkpoint, data, tmp_path):
    """A copy of a run killed in its last epoch, and the function that resumes it."""
    folder = shutil.copytree(killed / "interrupted", tmp_path / "run")
    arguments = tiny.arguments(checkpoint, data, folder, "--keep-checkpoints", "2")
    return folder, lambda resume="auto": main([*arguments, "--resume", str(resume)])


def sign(step, _=None, **others):
    """Give a checkpoint the manifest of the files that it has now, and of others."""
    digests = {name: sha256_of_file(step / name) for name in ("tensors.safetensors", "state.json")}
    (step / "manifest.json").write_text(json.dumps(digests | others))


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def linked(path):
    path.symlink_to(path.rename(path.with_suffix(".elsewhere")))


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "truncated": lambda step: os.truncate(step / "tensors.safetensors", 1000),
    "bit of a tensor": lambda step: flip_bit(step / "tensors.safetensors"),
    "bit of the state": lambda step: flip_bit(step / "state.json"),
    "no tensors": lambda step: (step / "tensors.safetensors").unlink(),
    "no manifest": lambda step: (step / "manifest.json").unlink(),
    "torn manifest": lambda step: os.truncate(step / "manifest.json", 30),
    "another manifest": lambda step: (step / "manifest.json").write_text("[1]"),
    "empty manifest": lambda step: (step / "manifest.json").write_text("{}"),
    "binary manifest": lambda step: (step / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    "empty folder": lambda step: [path.unlink() for path in step.iterdir()],
    "nested manifest": lambda step: (step / "manifest.json").write_text("[" * 100_000),
    "endless manifest": lambda step: os.truncate(step / "manifest.json", 1 << 40),
    "a third name": lambda step: sign(step, **{"../../config.json": "0"}),
    "a link": lambda step: linked(step / "tensors.safetensors"),
    "pipe as manifest": lambda step: pipe(step / "manifest.json"),
    "pipe as state": lambda step: pipe(step / "state.json"),
    "pipe as tensors": lambda step: pipe(step / "tensors.safetensors"),
    "signed nested state": lambda step: sign(step, (step / "state.json").write_text("[" * 100_000)),
    "signed list as state": lambda step: sign(step, (step / "state.json").write_text("[]")),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_found(interrupted, kind):
    folder, _ = interrupted
    step = folder / "checkpoints" / "step-12"
    assert unusable(step) is None
    DAMAGES[kind](step)
    assert unusable(step)
    assert bool(damage(step)) is not kind.startswith("signed")
    with pytest.raises(SystemExit) as exit_:
        interrupted[1](step)
    assert exit_.value.code == 2


@pytest.mark.fault(
    "the newest checkpoint is cut short, altered or has no manifest",
    "skipped with file and reason, kept, bit for bit",
    "one checkpoint",
)
@pytest.mark.parametrize("kind", ["truncated", "bit of a tensor", "no manifest"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(interrupted, killed, caplog, kind):
    folder, resume = interrupted
    DAMAGES[kind](folder / "checkpoints" / "step-12")
    with caplog.at_level(logging.WARNING, "trainers"):
        assert newest_checkpoint(folder) == folder / "checkpoints" / "step-6"
        (said,) = caplog.messages
        assert said.startswith(f"{folder / 'checkpoints' / 'step-12'} is skipped: ")
        assert ("manifest.json is missing" if kind == "no manifest" else "tensors.safetensors is not as it was") in said
        damaged = {path.name: path.read_bytes() for path in (folder / "checkpoints" / "step-12").iterdir()}
        resume()
    aside = folder / "checkpoints" / "set-aside"
    assert {path.name: path.read_bytes() for path in (aside / "step-12").iterdir()} == damaged
    shutil.rmtree(aside)
    assert_same_run(folder, killed / "lora, straight")


@pytest.mark.fault("every checkpoint is damaged", "--resume auto refuses, with the reason of each", "none")
def test_without_an_undamaged_checkpoint_the_run_is_refused_until_the_user_says_so(interrupted, killed, capsys, tiny):
    folder, resume = interrupted
    flip_bit(folder / "checkpoints" / "step-6" / "tensors.safetensors")
    (folder / "checkpoints" / "step-12" / "state.json").unlink()
    before = files(folder)
    with pytest.raises(SystemExit) as exit_:
        resume()
    assert exit_.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "step-12 is skipped: it is incomplete: state.json is missing" in error
    assert "step-6 is skipped: tensors.safetensors is not as it was written" in error
    assert "begin anew with --overwrite" in error
    assert files(folder) == before
    settings = json.loads((folder / "config.json").read_text())
    main([*tiny.arguments(settings["model"], settings["data"], folder, "--keep-checkpoints", "2"), "--overwrite"])
    straight = shutil.copytree(killed / "lora, straight", folder.parent / "straight")
    for run in (folder, straight):  # the only setting that differs
        text = (run / "config.json").read_text()
        (run / "config.json").write_text(text.replace('"overwrite": true', '"overwrite": false'))
    assert_same_run(folder, straight)


def test_a_named_checkpoint_that_is_damaged_or_missing(interrupted, capsys):
    folder, resume = interrupted
    before = (folder / "metrics.jsonl").read_bytes()
    flip_bit(folder / "checkpoints" / "step-12" / "tensors.safetensors")
    for step, problem in (("step-12", "tensors.safetensors is not as it was written"), ("step-7", "incomplete")):
        with pytest.raises(SystemExit) as exit_:
            resume(folder / "checkpoints" / step)
        assert exit_.value.code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {folder / 'checkpoints' / step} cannot be resumed from: ")
        assert problem in error
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_going_back_to_a_named_checkpoint(interrupted, killed):
    folder, resume = interrupted
    root = folder / "checkpoints"
    before = files(root)
    resume(root / "step-6")
    later = {path.relative_to(root / "set-aside"): content for path, content in files(root / "set-aside").items()}
    assert later == {
        path.relative_to(root): content for path, content in before.items() if path.parts[-2] in ("step-12", "best-2")
    }
    shutil.rmtree(root / "set-aside")
    assert_same_run(folder, killed / "lora, straight")


def test_other_things_in_the_folder_are_left_alone(interrupted, killed):
    folder, resume = interrupted
    root = folder / "checkpoints"
    for name in ("step-99", "best-99", "notes.txt"):
        (root / name).write_text("a file")
    for name in ("step-", "step-abc", "step-12.old", "my-step-50", "best-of-all"):
        (root / name).mkdir()
        (root / name / "file").touch()
    added = [
        path
        for path in root.rglob("*")
        if path.is_file() and path.parent.name not in ("step-6", "step-12", "best-1", "best-2")
    ]
    assert newest_checkpoint(folder) == root / "step-12"
    resume()
    for path in added:
        path.unlink()
    assert len(added) == 8
    assert_same_run(folder, killed / "lora, straight")


def test_no_checkpoint_yet(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    assert newest_checkpoint(tmp_path) is None


# The state by itself

CONFIG = TrainConfig(epochs=2, batch_size=16, learning_rate=0.01, metric="loss", seed=3, warmup=0.1)


@pytest.fixture
def state(tiny):
    model = tiny.build()
    optimizer = build_optimizer(model, CONFIG)
    scheduler = build_scheduler(optimizer, CONFIG, 10)
    return TrainState(model, optimizer, grad_scaler("fp32", torch.device("cpu")), scheduler, WeightAverage(model, 0))


def names(folder):
    return {path.name for path in (folder / "checkpoints").iterdir()}


def test_retention_keeps_the_newest_and_the_best_weights_they_refer_to(state, tmp_path, alone):
    kept = []
    for epoch, best in ((1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4)):
        state.step, state.epoch = 10 * epoch, epoch
        if best == epoch:
            state.best_epoch = best
            save_best(state, tmp_path, alone)
        save_checkpoint(state, tmp_path, 2, alone)
        kept.append(names(tmp_path))
    assert kept == [
        {"step-10", "best-1"},
        {"step-10", "step-20", "best-1", "best-2"},
        {"step-20", "step-30", "best-2"},
        {"step-30", "step-40", "best-2", "best-4"},
        {"step-40", "step-50", "best-4"},
        {"step-50", "step-60", "best-4"},
    ]


def test_other_masks_of_dropout_than_the_run_began_with_are_said(state, tmp_path, alone, monkeypatch, caplog):
    monkeypatch.setattr(checkpoints, "dropout_drawn_by", lambda model: "C++")
    save_checkpoint(state, tmp_path, 1, alone)
    load_checkpoint(state, newest_checkpoint(tmp_path), alone)
    assert not caplog.records
    monkeypatch.setattr(checkpoints, "dropout_drawn_by", lambda model: "torch")
    load_checkpoint(state, newest_checkpoint(tmp_path), alone)
    (record,) = caplog.records
    assert "other masks of dropout than torch draws" in record.getMessage()


def test_later_checkpoints_do_not_push_out_the_new_one(state, tmp_path, alone):
    """After a damaged newest checkpoint the run goes on from an earlier step, and must be able to resume there."""
    for step in (30, 20):
        state.step = step
        save_checkpoint(state, tmp_path, 1, alone)
    assert names(tmp_path) == {"step-20", "set-aside"}
    assert [path.name for path in (tmp_path / "checkpoints" / "set-aside").iterdir()] == ["step-30"]
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-20"


def test_the_same_step_may_be_written_again(state, tmp_path, alone):
    save_checkpoint(state, tmp_path, 1, alone)
    flip_bit(tmp_path / "checkpoints" / "step-0" / "tensors.safetensors")
    (tmp_path / "checkpoints" / f".step-0.{socket.gethostname()}-999999999-1").mkdir()
    save_checkpoint(state, tmp_path, 1, alone)
    assert damage(tmp_path / "checkpoints" / "step-0") is None
    assert names(tmp_path) == {"step-0"}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux' list of mapped files")
def test_a_resumed_run_does_not_hold_on_to_its_checkpoint(state, tmp_path, alone):
    """The disk would not get its room back when the file is removed."""
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    save_checkpoint(state, tmp_path, 1, alone)
    moments = {name: tensor.clone() for name, tensor in state.tensors().items()}
    state.optimizer.state.clear()
    load_checkpoint(state, newest_checkpoint(tmp_path), alone)
    torch.testing.assert_close(state.tensors(), moments, rtol=0, atol=0)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_damaged_best_is_an_error(state, tmp_path, alone):
    save_best(state, tmp_path, alone)
    restore_best(state, tmp_path, alone)
    flip_bit(tmp_path / "checkpoints" / "best-0" / "tensors.safetensors")
    with pytest.raises(ValueError, match=r"best-0 cannot be read: tensors\.safetensors is not as it was written"):
        restore_best(state, tmp_path, alone)


def test_best_holds_what_training_changes_only(tiny, state, tmp_path, alone):
    state.model = tiny.build(lora=True)
    save_best(state, tmp_path, alone)
    stored = load_file(tmp_path / "checkpoints" / "best-0" / "tensors.safetensors")
    assert stored.keys() == {name for name, parameter in state.model.named_parameters() if parameter.requires_grad}


def test_a_checkpoint_of_other_parameters(tiny, state, tmp_path, alone):
    save_checkpoint(state, tmp_path, 1, alone)
    before = tiny.weights(state.model)
    state.model.classifier.weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"other trained parameters than this run: \['classifier\.weight'\] differ"):
        load_checkpoint(state, tmp_path / "checkpoints" / "step-0", alone)
    state.model.classifier = torch.nn.Linear(16, 3)
    with pytest.raises(ValueError, match=r"\['classifier\.bias', 'classifier\.weight'\] differ"):
        load_checkpoint(state, tmp_path / "checkpoints" / "step-0", alone)
    assert all(
        value.equal(before[name]) for name, value in tiny.weights(state.model).items() if "classifier" not in name
    )


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(
    ("precision", "kernels"),
    [("fp32", "fused"), ("fp32", "plain"), ("bf16", "fused"), ("bf16", "plain"), ("fp16", "plain")],
)
def test_every_precision_resumes_exactly(tiny, alone, tmp_path, precision, kernels, lora):
    """With fp16 the loss scale is part of the state; here the first step overflows and halves it."""
    config = dataclasses.replace(CONFIG, precision=precision, kernels=kernels, keep_checkpoints=2)
    train, validation = tiny.windows(40), tiny.windows(9, seed=1)
    model, other = tiny.build(0.2, lora=lora), tiny.build(0.2, lora=lora)
    for parameter in other.parameters():
        if parameter.requires_grad:
            torch.nn.init.ones_(parameter)

    class Task(TokenClassification):
        def loss_sum(self, logits, labels):
            overflows = precision == "fp16" and not spoilt and logits.requires_grad
            spoilt.append(1)
            return super().loss_sum(logits, labels) * (float("inf") if overflows else 1.0)

    spoilt = []
    straight = fit(model, Task(tiny.LABELS), train, validation, config, alone, tmp_path / "straight")
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    torch.rand(7)
    state = fit(
        other, Task(tiny.LABELS), train, validation, config, alone, tmp_path / "resumed",
        resume_from=tmp_path / "straight" / "checkpoints" / "step-3",
    )  # fmt: skip
    last = Path("checkpoints") / "step-6"
    for name in ("tensors.safetensors", "state.json"):
        one, other = tmp_path / "straight" / last / name, tmp_path / "resumed" / last / name
        if name == "state.json":
            assert without_times(one) == without_times(other)
        else:
            assert one.read_bytes() == other.read_bytes()
    assert state.scaler.get_scale() == straight.scaler.get_scale() == (2.0**15 if precision == "fp16" else 1.0)
    assert without_times(tmp_path / "straight" / "metrics.jsonl") == without_times(
        tmp_path / "resumed" / "metrics.jsonl"
    )
