"""Two processes must compute what one process computes, with nothing said between them that is not needed."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainers.loop import evaluate, fit
from trainers.processes.distributed import World, distributed
from trainers.tasks.token import TokenClassification

HERE = Path(__file__).resolve().parents[1]
RUNS = ("full", "lora", "full, micro-batches", "lora, micro-batches", "lora, gradient checkpointing")


@pytest.fixture(scope="module")
def two(meeting, tmp_path_factory):
    """The folder that two processes running two_processes.py fill."""
    root = tmp_path_factory.mktemp("two")
    meeting.run_ranks(HERE / "two_processes.py", root)
    return root


@pytest.fixture(scope="module")
def reports(two):
    return [json.loads((two / f"report-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def worker(tiny):
    """two_processes.py as a module, for its data and settings."""
    sys.path.insert(0, str(HERE))
    try:
        import two_processes
    finally:
        sys.path.remove(str(HERE))
    return two_processes


def test_the_processes_know_who_they_are(reports):
    assert [report["world"] for report in reports] == [[0, 2, "cpu"], [1, 2, "cpu"]]
    assert [report["main"] for report in reports] == [True, False]
    assert [report["nested"] for report in reports] == [[0, 2], [1, 2]]
    assert [report["closed"] for report in reports] == [True, True]


def test_the_processes_hear_each_other(reports):
    for report in reports:
        assert report["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert report["from main"] == 100
        assert report["after nested"] == [0, 1]
        assert report["errors of main"] == [
            ["ValueError", "only the main process looked"],
            ["OSError", "[Errno 28] No space left on device: 'run'"],
            ["ValueError", "one and two"],
        ]


def test_only_trainable_gradients_are_exchanged(reports):
    for report in reports:
        elements = report["elements"]
        assert elements["exchanged"] == elements["trainable"] < elements["all"]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_equal_one(two, worker, alone, tmp_path, name):
    """Twenty steps over the same global batches; the last batch has fewer windows than there are places."""
    assert len(worker.TRAIN) % worker.CONFIG.batch_size == 1
    model = worker.train(name, alone, tmp_path)
    expected = worker.trained_tensors(model)
    first, second = (load_file(two / f"{name}, {rank}.safetensors") for rank in range(2))
    assert expected.keys() == first.keys()
    fresh = dict(worker.tiny.build(lora=name.startswith("lora")).named_parameters())
    assert max((fresh[key] - first[key]).abs().max().item() for key in expected) > 1e-3
    for key, value in expected.items():
        assert first[key].equal(second[key]), key
        torch.testing.assert_close(first[key], value.detach(), rtol=0, atol=1e-5)
    ours, theirs = (json.loads((folder / "metrics.jsonl").read_text()) for folder in (tmp_path, two / name))
    assert theirs["train_loss"] == pytest.approx(ours["train_loss"], abs=1e-5)
    assert theirs["validation"]["loss"] == pytest.approx(ours["validation"]["loss"], abs=1e-5)
    assert theirs["seconds"] * theirs["tokens_per_second"] == pytest.approx(ours["seconds"] * ours["tokens_per_second"])


def test_every_window_is_evaluated_by_one_process(two, reports, worker):
    shares = [report["evaluated"] for report in reports]
    assert sorted(shares[0] + shares[1]) == list(range(len(worker.TRAIN)))
    assert all(shares)


def test_scores_equal_those_of_one_process_on_both(two, reports, worker, alone):
    model = worker.tiny.build()
    model.load_state_dict(load_file(two / "full, 0.safetensors"), strict=True)
    expected = evaluate(model, TokenClassification(worker.tiny.LABELS), worker.TRAIN, worker.CONFIG, alone)
    assert reports[0]["scores"] == reports[1]["scores"]
    assert reports[0]["scores"].pop("loss") == pytest.approx(expected.pop("loss"), abs=1e-5)
    reports[1]["scores"].pop("loss")
    assert reports[0]["scores"] == expected


def test_resumed_processes_continue_bit_for_bit(two, reports):
    assert [report["resumed"] for report in reports] == [True, True]
    one, other = (two / name / "checkpoints" / "step-40" / "tensors.safetensors" for name in ("straight", "resumed"))
    assert one.read_bytes() == other.read_bytes()
    tensors = load_file(one)
    assert not tensors["random.torch.0"].equal(tensors["random.torch.1"])


def test_one_process_may_take_over_from_two(two, worker, alone, tmp_path, caplog):
    config = worker.TrainConfig(**{**vars(worker.CONFIG), "epochs": 2})
    model = worker.tiny.build(dropout=0.2, lora=True)
    checkpoint = two / "straight" / "checkpoints" / "step-20"
    (tmp_path / "metrics.jsonl").write_bytes((two / "straight" / "metrics.jsonl").read_bytes())
    task = TokenClassification(worker.tiny.LABELS)
    state = fit(model, task, worker.TRAIN, worker.VALIDATION, config, alone, tmp_path, resume_from=checkpoint)
    assert "begun by 2 processes and is resumed by 1" in caplog.text
    assert (state.step, state.epoch) == (40, 2)


def test_a_single_process_needs_no_others(alone):
    model = torch.nn.Linear(2, 2)
    assert alone.wrap(model) is model
    assert alone.gather("x") == ["x"]
    assert alone.from_main(lambda: 5) == 5
    assert alone.barrier() is None
    assert alone.is_main
    assert not World(1, 2, alone.device).is_main


def test_without_torchrun_there_is_one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with distributed() as world:
        assert (world.rank, world.size) == (0, 1)
        assert not torch.distributed.is_initialized()
