import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainers.cli import main
from trainers.config import RunConfig, TrainConfig
from trainers.experiment import run
from trainers.loop import fit
from trainers.monitor.monitor import Monitor
from trainers.processes.distributed import World
from trainers.run_folder import RunFolder, read_run
from trainers.tasks.token import TokenClassification
from trainers.training.averaging import WeightAverage
from trainers.training.state import TrainState

ROOT = Path(__file__).resolve().parents[3]


def rows_of(out):
    """The cells of the table of evaluations in what a run has printed, the header first."""
    return [line.split() for line in out.splitlines() if re.match(r" *(epoch +step|\d+/\d+) ", line)]


def test_a_run_off_a_terminal_prints_plan_rows_and_end_without_control_characters(tiny, checkpoint, data, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "trainers", *tiny.arguments(checkpoint, data, folder, "--metric", "f1")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for stream in (done.stdout, done.stderr):
        assert not re.search(r"[^\n\x20-\U0010ffff]", stream)
    finished = read_run(folder)
    header, *rows = rows_of(done.stdout)
    assert header[:4] == ["epoch", "step", "train", "valid"]
    best = 0.0
    for row, event in zip(rows, finished.epochs, strict=True):
        scores = event["validation"]
        assert row[:3] == [f"{event['epoch']}/3", str(event["step"]), f"{event['train_loss']:.4f}"]
        shown = [f"{100 * scores[name]:.2f}" for name in ("f1", "precision", "recall")]
        assert row[3:7] == [f"{scores['loss']:.4f}", *shown]
        assert (row[-1] == "*") == (scores["f1"] > best or event["epoch"] == 1)
        best = max(best, scores["f1"])
    plan = " ".join(done.stdout.split())
    assert "21 train, 9 validation, 9 test sentences" in plan
    assert f"{finished.result['total']:,} parameters, {finished.result['trainable']:,} of them trained" in plan
    assert f"{rows[-1][1]} steps in 3 epochs; 4 sentences a step" in plan
    for name, scores in finished.result["test"]["types"].items():
        assert re.search(rf"^{name} .* {100 * scores['f1']:.2f} +{scores['support']}$", done.stdout, re.MULTILINE)
    assert f"lora-core report {folder}" in done.stdout
    assert done.stdout.splitlines()[-1] == finished.summary
    assert max(map(len, done.stdout[: done.stdout.index("Written into")].splitlines())) <= 100
    assert "a new head for 5 labels" not in done.stderr  # the checkpoint has one
    assert "epoch 1/3:" not in done.stderr


@pytest.mark.fault("the reader of a run's output is gone (| head)", "trains to its end, saying nothing", "none")
def test_a_reader_that_leaves_ends_no_run(tiny, checkpoint, data, tmp_path):
    command = [sys.executable, "-m", "trainers", *tiny.arguments(checkpoint, data, tmp_path / "run", "--epochs", "1")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline().startswith(b"data ")
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(200) == 128 + signal.SIGPIPE, error
    assert b"Traceback" not in error
    assert RunFolder(tmp_path / "run").is_finished()


def test_quiet_leaves_the_summary(tiny, checkpoint, data, tmp_path, capsys):
    main(tiny.arguments(checkpoint, data, tmp_path / "run", "--epochs", "1", "--quiet"))
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [read_run(tmp_path / "run").summary]
    assert captured.err == ""


def test_a_new_head_is_information_when_it_is_trained(tiny, checkpoint, data, tmp_path, caplog):
    caplog.set_level("INFO")
    settings = {"model": str(checkpoint), "data": str(data), "fresh_head": True, "epochs": 0}
    run(RunConfig(**settings, output_dir=tmp_path / "trained"))
    assert [(each.levelname, each.message) for each in caplog.records if "head" in each.message] == [
        ("INFO", "a new head for 5 labels starts untrained")
    ]
    caplog.clear()
    run(RunConfig(**settings, output_dir=tmp_path / "as-it-starts", train_head=False))
    assert [each.levelname for each in caplog.records if "drawn at random" in each.message] == ["WARNING"]


def test_a_run_that_goes_on_says_where(tiny, checkpoint, data, tmp_path, capsys):
    arguments = tiny.arguments(checkpoint, data, tmp_path / "run", "--keep-checkpoints", "3")
    main(arguments)
    steps = [event["step"] for event in read_run(tmp_path / "run").epochs]
    capsys.readouterr()
    (tmp_path / "run" / "metrics.jsonl").write_text("")  # as if it had been killed on the way
    main([*arguments, "--resume", str(tmp_path / "run" / "checkpoints" / f"step-{steps[0]}")])
    out = capsys.readouterr().out
    assert f"Going on from step {steps[0]} of {steps[-1]}, in epoch 2.\n" in out
    assert [row[0] for row in rows_of(out)[1:]] == ["2/3", "3/3"]


def test_other_ranks_show_nothing(tiny, capsys):
    world = World(rank=1, size=2, device=torch.device("cpu"))
    monitor = Monitor(TrainConfig(), world)
    monitor.begin(started(tiny), FakePlan(tiny.windows(8)), tiny.windows(4))
    with monitor.epoch(2):
        monitor.step()
    monitor.evaluated({"epoch": 1, "step": 2, "validation": {"f1": 0.5}}, best=True)
    assert capsys.readouterr() == ("", "")


def test_a_step_costs_no_reading_and_no_text_until_the_clock_says_so(tiny, alone, monkeypatch):
    monitor, state = Monitor(TrainConfig(epochs=1), alone), started(tiny)
    monitor.begin(state, FakePlan(tiny.windows(8)), tiny.windows(4))
    now, read = [0.0], []
    monitor._forecast._clock, monitor._refreshed = lambda: now[0], 0.0
    with monitor.epoch(1000):
        monkeypatch.setattr(state, "read_loss", lambda: read.append(now[0]) or 0.0)
        for _ in range(500):
            state.end_step(labels=4, tokens=40)
            now[0] += 0.01
            monitor.step()
    assert len(read) in (4, 5)  # once a second


def forty_steps(monitor, state, after=lambda: None):
    """Half a second each, by a clock of their own."""
    now = [0.0]
    monitor._forecast._clock, monitor._refreshed = lambda: now[0], 0.0
    with monitor.epoch(1000):
        for _ in range(40):
            state.end_step(labels=4, tokens=40)
            now[0] += 0.5
            state.epoch_seconds = now[0]
            monitor.step()
            after()


def test_the_time_left_and_the_memory_are_told_once_after_the_first_steps(tiny, alone, capsys):
    monitor, state = Monitor(TrainConfig(epochs=1), alone), started(tiny)
    monitor.begin(state, FakePlan(tiny.windows(2000)), tiny.windows(4))
    seen = []
    forty_steps(monitor, state, lambda: state.step != 6 or seen.append(capsys.readouterr().out))
    assert seen == [""]  # too little to tell by
    told = capsys.readouterr().out
    left = int(tiny.windows(2000).lengths.sum() / 40 * 0.5 / 60)
    assert re.fullmatch(
        rf"About ({left - 1}|{left}) min \d\d s left, until (\S+ )?\d\d:\d\d; memory \d\.\d\d GB so far\.\n\n", told
    )


class FakePlan:
    """A plan of steps of which there is only the data."""

    total_steps = 2
    epochs = 1

    def __init__(self, data):
        self.data = data


def started(tiny):
    model = tiny.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return TrainState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), scheduler, WeightAverage(model, 0))


def test_the_loop_alone_shows_rows_too(tiny, alone, tmp_path, capsys):
    config = TrainConfig(epochs=2, batch_size=4)
    fit(tiny.build(), TokenClassification(tiny.LABELS), tiny.windows(8), tiny.windows(4), config, alone, tmp_path)
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row[2] for row in rows_of(capsys.readouterr().out)[1:]] == [f"{one['train_loss']:.4f}" for one in logged]


@pytest.mark.parametrize("kind", ["words", "texts", "pictures", "untrained"])
def test_a_dry_run_shows_plan_and_examples_and_writes_nothing(
    kind, tiny, checkpoint, data, finished_text, finished_image, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("LORA_CACHE_DIR", str(tmp_path / "cache"))
    text_data, image_data = str(finished_text.parent), str(finished_image.parent / "data")
    image_model = str(finished_image.parent / "model")
    (given, *flags), expected = {
        "words": ([str(data), "--model", str(checkpoint)],
                  ["[CLS]", "windows of 24, ", "B-protein", "of the training ones have entities"]),
        "texts": ([text_data, "--model", str(checkpoint), "--task", "text-classification", "--fresh-head",
                   "--max-length", "12", "--long-text", "windows"],
                  ["label: DNA", "windows of ", "protein (50.0%)", "24 train"]),
        "pictures": ([image_data, "--model", image_model, "--task", "image-classification", "--fresh-head"],
                     ["8 x 8 pixels, 3 channels, from ", "(black and white are -1.00 and 1.00)", "label: bright"]),
        "untrained": ([str(data), "--model", "lstm", "--method", "full"], ["(LSTM)", "sentence 1: "]),
    }[kind]  # fmt: skip
    before = set(tmp_path.rglob("*"))
    main(["train", "--data", given, *flags, "--output-dir", str(tmp_path / "run"), "--dry-run"])
    out = capsys.readouterr().out
    for words in expected:
        assert words in " ".join(out.split()), words
    assert set(tmp_path.rglob("*")) == before
    examples = out[out.index("\n\n") : out.rindex("\n\n")]
    assert max(map(len, examples.splitlines())) <= 100
    with pytest.raises(ValueError, match="dry_run shows the plan"):
        run(RunConfig(data=given, output_dir=tmp_path / "run", dry_run=True))


@pytest.mark.parametrize(
    ("threads", "others", "workers", "told"),
    [(2, 1.2, 0, True), (2, 0.3, 0, False), (1, 1.9, 0, False), (2, 1.2, 3, False)],
)
def test_threads_without_cores_are_told_of(tiny, alone, capsys, monkeypatch, threads, others, workers, told):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monitor, state = Monitor(TrainConfig(epochs=1, workers=workers), alone), started(tiny)
    monitor.begin(state, FakePlan(tiny.windows(2000)), tiny.windows(4))
    monkeypatch.setattr(monitor._others, "cores", lambda: others)
    forty_steps(monitor, state)
    line = f"Other processes keep {others} of the 2 cores busy, and threads wait for the slowest:\n"
    assert capsys.readouterr().out.count(line) == told
