"""A run that is ended early keeps its best weights; a run's own file of settings repeats it."""

import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from trainers import pipeline
from trainers.cli import main
from trainers.finished import evaluate_run
from trainers.run_folder import RunFolder, read_run
from trainers.training.optim import take_step

ROOT = Path(__file__).resolve().parents[2]
TIMES = {"seconds", "epoch_seconds", "tokens_per_second", "peak_memory_bytes", "memory"}


def events(folder):
    lines = RunFolder(folder).metrics.read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


def begin(tiny, checkpoint, data, folder, epochs, *more):
    """A run in a process of its own, stopped by SIGTERM after so many epochs and some steps more."""
    arguments = tiny.arguments(checkpoint, data, folder, "--epochs", "10000", *more)
    process = subprocess.Popen([sys.executable, "-m", "trainers", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    log = RunFolder(folder).metrics
    until = time.monotonic() + 60
    while not (log.is_file() and len(log.read_text().splitlines()) >= epochs):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(200) == 128 + signal.SIGTERM


@pytest.mark.fault("a run is stopped by SIGTERM and ended with finish", "its best weights, scored", "later steps")
def test_finish_keeps_the_best_weights_of_a_run_that_was_stopped(tiny, checkpoint, data, tmp_path, capsys, caplog):
    folder = tmp_path / "run"
    begin(tiny, checkpoint, data, folder, 3, "--metric", "f1")
    before = [event for event in events(folder) if event["event"] == "epoch"]
    main(["finish", str(folder)])
    assert f"all figures in {folder / 'metrics.jsonl'}" in capsys.readouterr().out
    *epochs, result = events(folder)
    assert epochs == before[: len(epochs)]
    scores = [epoch["validation"]["f1"] for epoch in epochs]
    better = [(epoch["validation"]["f1"], -epoch["validation"]["loss"]) for epoch in epochs]
    assert result["best_epoch"] == better.index(max(better)) + 1
    assert result["ended_early"] is True
    assert result["epochs"] == len(epochs)
    kept = load_file(folder / "checkpoints" / f"best-{result['best_epoch']}" / "tensors.safetensors")
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert sorted(map(np.sum, kept.values())) == sorted(map(np.sum, adapter.values()))
    assert result["validation"]["f1"] == max(scores)
    assert evaluate_run(folder, split="test")["f1"] == result["test"]["f1"]
    assert pipeline(model=folder)("the gene binds il2") is not None
    main(["train", "--config", str(folder / "run.toml"), "--output-dir", str(folder), "--resume", "auto"])
    assert any("is finished; nothing is left to do" in message for message in caplog.messages)

    (folder / "adapter" / "adapter_model.safetensors").unlink()  # written again, and not trained further
    main(["train", "--config", str(folder / "run.toml"), "--output-dir", str(folder), "--resume", "auto"])
    assert events(folder) == [*epochs, result]
    again = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert all(np.array_equal(again[name], adapter[name]) for name in adapter)


def test_finish_before_the_first_epoch_takes_the_last_checkpoint(tiny, checkpoint, data, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "run"
    step = []

    def stop(*arguments):
        step.append(arguments)
        if len(step) == 4:
            raise KeyboardInterrupt
        return take_step(*arguments)

    monkeypatch.setattr("trainers.loop.take_step", stop)
    with pytest.raises(KeyboardInterrupt):
        main(tiny.arguments(checkpoint, data, folder, "--checkpoint-steps", "1"))
    caplog.set_level(logging.INFO, "trainers")
    main(["finish", str(folder)])
    assert any("ended in epoch 1 of 3, with the weights of step 3" in message for message in caplog.messages)
    result = read_run(folder).result
    assert (result["best_epoch"], result["epochs"], result["ended_early"]) == (0, 0, True)
    kept = load_file(folder / "checkpoints" / "step-3" / "tensors.safetensors")
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    trained = {name: tensor for name, tensor in kept.items() if name.startswith("model.")}
    assert sorted(map(np.sum, trained.values())) == sorted(map(np.sum, adapter.values()))


def test_finish_says_what_it_needs(tiny, checkpoint, data, tmp_path, finished, capsys, caplog):
    with pytest.raises(SystemExit) as exit_:
        main(["finish", str(tmp_path)])
    assert exit_.value.code == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    begun = RunFolder(tmp_path / "begun")
    begun.write_settings(RunFolder(finished["lora"]).read_settings())
    begun.metrics.touch()
    with pytest.raises(SystemExit):
        main(["finish", str(begun.path)])
    assert "has written no checkpoint" in capsys.readouterr().err
    main(["finish", str(finished["lora"])])
    assert any("is finished; nothing is left to do" in message for message in caplog.messages)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_is_repeated_bit_for_bit_from_its_own_file_of_settings(finished, tmp_path, method):
    first, second = finished[method], tmp_path / "second"
    main(["train", "--config", str(first / "run.toml"), "--output-dir", str(second)])
    assert (second / "run.toml").read_text() == (first / "run.toml").read_text()
    assert events(second) == events(first)
    weights = [path.name for path in RunFolder(first).weights(method).glob("*.safetensors")]
    assert weights
    for name in weights:
        same = RunFolder(second).weights(method) / name
        assert same.read_bytes() == (RunFolder(first).weights(method) / name).read_bytes()
    for split in ("validation", "test"):
        ours, theirs = (np.load(RunFolder(folder).predictions(split)) for folder in (first, second))
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    settings = [{**RunFolder(folder).read_settings(), "output_dir": ""} for folder in (first, second)]
    assert settings[0] == settings[1]


def test_files_of_checkpoints_and_models_have_the_permissions_of_the_umask(tiny, checkpoint, data, tmp_path):
    command = [sys.executable, "-m", "trainers", *tiny.arguments(checkpoint, data, tmp_path / "run", "--epochs", "1")]
    subprocess.run(command, cwd=ROOT, check=True, umask=0o027, capture_output=True)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {"tensors.safetensors", "adapter_model.safetensors"} <= modes.keys()
    assert {name for name, mode in modes.items() if mode != 0o640} <= {"run.lock"}
