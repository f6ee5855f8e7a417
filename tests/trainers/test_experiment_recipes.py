"""Runs with the recipes of LoRA's literature: what learns at which rate, what is trained beside, how A starts."""

import dataclasses
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file

from trainers.config import RunConfig
from trainers.experiment import run
from trainers.finished import evaluate_run
from trainers.model import build
from trainers.training.optim import build_optimizer

RECIPES = {
    "LoRA+": {"lora_plus_ratio": 8.0, "head_rate_ratio": 0.5},
    "LayerNorm": {"modules_to_save": ("LayerNorm",)},
    "EVA": {"init_lora_weights": "eva", "target_modules": ("all-linear",)},
}


@pytest.fixture
def config(checkpoint, data, tmp_path):
    return RunConfig(
        model=str(checkpoint), data=str(data), output_dir=tmp_path / "run", epochs=2, batch_size=8, r=2,
        learning_rate=1e-2, hidden_dropout=0.0, lora_dropout=0.0, keep_checkpoints=2
    )  # fmt: skip


def adapter(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_each_part_of_an_adapter_learns_at_its_rate(config, tiny):
    config = dataclasses.replace(config, lora_plus_ratio=8.0, head_rate_ratio=0.5, modules_to_save=("LayerNorm",))
    model = build(config, tiny.LABELS)
    optimizer = build_optimizer(model, config)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: rates.pop(id(p)) for name, p in model.named_parameters() if p.requires_grad}
    assert not rates
    expected = {name: 8e-2 if "lora_B" in name else 1e-2 if "lora_A" in name else 5e-3 for name in found}
    assert found == expected
    assert {8e-2, 1e-2, 5e-3} == set(found.values())
    assert any("LayerNorm" in name for name in found)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_learns_is_found_again_and_goes_on_exactly(config, recipe, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="trainers")
    config = dataclasses.replace(config, **RECIPES[recipe])
    done = run(config)
    first, second = (epoch["train_loss"] for epoch in done.epochs)
    assert second < first
    scores = evaluate_run(done.folder, split="test")
    assert scores["f1"] == pytest.approx(done.result["test"]["f1"])
    assert scores["loss"] == pytest.approx(done.result["test"]["loss"], rel=1e-4)
    plain = run(dataclasses.replace(config, kernels="plain", output_dir=tmp_path / "plain"))
    assert [epoch["train_loss"] for epoch in plain.epochs] == pytest.approx([first, second], abs=1e-4)

    steps = sorted((done.folder / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    shutil.copytree(done.folder, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / steps[-1].name)
    lines = (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "again" / "metrics.jsonl").write_text(lines[0] + "\n")
    again = run(dataclasses.replace(config, output_dir=tmp_path / "again", resume="auto"))
    assert len(again.epochs) == 2
    assert all(adapter(again.folder)[name].equal(tensor) for name, tensor in adapter(done.folder).items())


def test_eva_starts_from_the_training_data_and_shares_out_the_ranks(config, caplog):
    caplog.set_level(logging.INFO, logger="trainers")
    started = run(dataclasses.replace(config, **RECIPES["EVA"], epochs=0))
    assert "EVA has set the adapters by 22 training examples" in caplog.text
    tensors = adapter(started.folder)
    ranks = []
    for name, tensor in tensors.items():
        if "lora_A" in name:
            ranks.append(len(tensor))
            torch.testing.assert_close(tensor @ tensor.T, torch.eye(len(tensor)), rtol=0, atol=1e-4)
    layers = sum("lora_A" in name for name in tensors)
    assert sum(ranks) >= 2 * layers
    assert max(ranks) > min(ranks), "the ranks follow the data"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "full", "lora_plus_ratio": 4.0}, "lora_plus_ratio is 4.0 with method full"),
        ({"method": "head", "head_rate_ratio": 4.0}, "head_rate_ratio is 4.0 with method head"),
        ({"lora_plus_ratio": 0.0}, "lora_plus_ratio must be above 0"),
        ({"init_lora_weights": "eva", "parallel": "fsdp"}, "does not go with parallel fsdp"),
    ],
)
def test_what_does_not_go_together_is_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes)
