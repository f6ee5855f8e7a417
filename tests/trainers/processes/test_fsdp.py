"""Two processes that share out every parameter must compute what two do that each have the whole model."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainers.cli import main
from trainers.config import TrainConfig
from trainers.processes.fsdp import can_shard, copy_tensors, is_sharded, part_like, put_away, shard, whole
from trainers.training.state import trained_tensors

HERE = Path(__file__).resolve().parents[1]
METHODS = ("lora", "full")

CPU = torch.device("cpu")
needs_newer_torch = pytest.mark.skipif(not can_shard(CPU), reason="this torch shares out models on GPUs only")


@pytest.fixture(scope="module")
def two(meeting, tmp_path_factory):
    """The folder that two processes running fsdp_ranks.py fill."""
    root = tmp_path_factory.mktemp("two")
    meeting.run_ranks(HERE / "fsdp_ranks.py", root)
    return root


@pytest.fixture(scope="module")
def reports(two):
    return [json.loads((two / f"report-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def worker(tiny):
    """fsdp_ranks.py as a module, for its data and settings."""
    sys.path.insert(0, str(HERE))
    try:
        import fsdp_ranks
    finally:
        sys.path.remove(str(HERE))
    return fsdp_ranks


def last_epoch(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


@needs_newer_torch
@pytest.mark.parametrize("method", METHODS)
def test_weights_and_losses_are_those_of_ddp(two, reports, worker, method):
    ddp, fsdp, other = (load_file(two / f"{method}, {name}.safetensors") for name in ("ddp, 0", "fsdp, 0", "fsdp, 1"))
    fresh = dict(worker.tiny.build(lora=method == "lora").named_parameters())
    assert max((fresh[key] - ddp[key]).abs().max().item() for key in ddp) > 1e-3
    assert ddp.keys() == fsdp.keys()
    for key, value in ddp.items():
        torch.testing.assert_close(fsdp[key], value, rtol=0, atol=1e-5)
        assert fsdp[key].equal(other[key])
    one, two_ = (last_epoch(two / f"{method}, {parallel}") for parallel in ("ddp", "fsdp"))
    assert two_["train_loss"] == pytest.approx(one["train_loss"], abs=1e-5)
    assert two_["validation"]["loss"] == pytest.approx(one["validation"]["loss"], abs=1e-5)
    for report in reports:
        assert report[f"{method}, fsdp"]["scores"]["loss"] == pytest.approx(two_["validation"]["loss"], abs=1e-6)


@needs_newer_torch
def test_each_process_holds_its_part_only(reports):
    for method in METHODS:
        assert [report[f"{method}, ddp"]["sharded"] for report in reports] == [False, False]
        assert [report[f"{method}, fsdp"]["sharded"] for report in reports] == [True, True]
        assert sum(report[f"{method}, fsdp"]["share"] for report in reports) == pytest.approx(1)
        assert all(0.4 < report[f"{method}, fsdp"]["share"] < 0.6 for report in reports)


@needs_newer_torch
@pytest.mark.parametrize("method", METHODS)
def test_checkpoints_are_those_of_ddp(two, method):
    for name in ("step-12", "best-2"):
        ddp, fsdp = (
            load_file(two / f"{method}, {parallel}" / "checkpoints" / name / "tensors.safetensors")
            for parallel in ("ddp", "fsdp")
        )
        assert {key: (value.shape, value.dtype) for key, value in ddp.items()} == {
            key: (value.shape, value.dtype) for key, value in fsdp.items()
        }
        for key, value in ddp.items():
            if not key.startswith("random."):
                torch.testing.assert_close(fsdp[key], value, rtol=0, atol=1e-5)


@needs_newer_torch
def test_resumed_processes_continue_bit_for_bit(two):
    one, other = (two / name / "checkpoints" / "step-12" / "tensors.safetensors" for name in ("straight", "again"))
    assert one.read_bytes() == other.read_bytes()


@needs_newer_torch
def test_a_run_may_change_from_ddp_to_fsdp(two):
    weights = [
        load_file(two / name / "checkpoints" / "step-12" / "tensors.safetensors") for name in ("lora, ddp", "from ddp")
    ]
    for key in weights[0]:
        if not key.startswith("random."):
            torch.testing.assert_close(weights[1][key], weights[0][key], rtol=0, atol=1e-5)


@needs_newer_torch
def test_one_process_may_take_over(two, worker, alone, tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_bytes((two / "lora, fsdp" / "metrics.jsonl").read_bytes())
    checkpoint = two / "lora, fsdp" / "checkpoints" / "step-6"
    model = worker.train(tmp_path, alone, lora=True, resume_from=checkpoint, parallel="ddp")
    assert "begun by 2 processes and is resumed by 1" in caplog.text
    expected = load_file(two / "lora, ddp, 0.safetensors")
    for key, value in trained_tensors(model).items():
        torch.testing.assert_close(value.detach(), expected[key], rtol=0, atol=1e-5)


@needs_newer_torch
def test_a_whole_run_is_saved_scored_and_exported_as_any_other(meeting, tiny, checkpoint, data, tmp_path, capsys):
    folder = tmp_path / "run"
    settings = ("--method", "lora", "--parallel", "fsdp", "--epochs", "1")
    meeting.run_ranks("-m", "trainers", *tiny.arguments(checkpoint, data, folder, *settings))
    result = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert result["processes"] == 2
    main(["evaluate", str(folder)])
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(result["test"]["loss"], abs=1e-5)
    main(["export", str(folder)])
    assert (folder / "model.onnx").is_file()


@pytest.mark.parametrize("other", [{"precision": "fp16"}, {"adversarial": "awp"}, {"adversarial": "fgm"}])
def test_what_it_does_not_go_with_is_refused(other):
    with pytest.raises(ValueError, match=r"parallel fsdp does not go with precision .* adversarial .*parallel ddp"):
        TrainConfig(parallel="fsdp", **other)


def test_a_torch_that_cannot_do_it_on_the_cpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cpu, "current_stream", object)
    with pytest.raises(ValueError, match=r"fsdp on the CPU needs a newer torch than .* or use --parallel ddp"):
        shard(torch.nn.Linear(2, 2), CPU, 2)


def test_tensors_that_are_whole_are_left_alone():
    model = torch.nn.Linear(2, 3)
    tensors = dict(model.named_parameters())
    assert not is_sharded(model)
    assert all(value is tensors[name] for name, value in whole(tensors).items())
    assert part_like(tensors["weight"], tensors["bias"]) is tensors["weight"]
    copy_tensors({name: torch.ones_like(value) for name, value in tensors.items()}, tensors)
    assert model.weight.eq(1).all()
    put_away(model)
