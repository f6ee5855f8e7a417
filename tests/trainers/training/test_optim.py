import math

import pytest
import torch
from torch import nn

from trainers.config import TrainConfig
from trainers.training.optim import build_optimizer, build_scheduler


def rates(schedule, warmup, total):
    """The learning rate of every step, and the one after the last."""
    config = TrainConfig(schedule=schedule, warmup=warmup, learning_rate=2.0)
    optimizer = build_optimizer(nn.Linear(2, 2), config)
    scheduler = build_scheduler(optimizer, config, total)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        assert {group["lr"] for group in optimizer.param_groups} == {found[-1]}
        optimizer.step()
        scheduler.step()
    return [*found, optimizer.param_groups[0]["lr"]]


@pytest.mark.parametrize(("warmup", "warmup_steps"), [(0.0, 0), (0.1, 2), (0.5, 10)])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules_equal_their_closed_forms(schedule, warmup, warmup_steps):
    found = rates(schedule, warmup, 20)
    decay = {
        "linear": lambda done: 1 - done,
        "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
        "constant": lambda done: 1.0,
    }[schedule]
    expected = [
        2.0 * (step / warmup_steps if step < warmup_steps else decay((step - warmup_steps) / (20 - warmup_steps)))
        for step in range(21)
    ]
    assert found == pytest.approx(expected, abs=1e-12)


def test_a_single_step_with_warmup():
    assert rates("linear", 0.9, 1)[0] == 0.0
    assert rates("linear", 0.0, 1) == [2.0, 0.0]


def test_only_trainable_matrices_are_decayed():
    model = nn.ModuleDict(
        {"embedding": nn.Embedding(5, 4), "linear": nn.Linear(4, 3), "norm": nn.LayerNorm(3), "frozen": nn.Linear(2, 2)}
    )
    model["frozen"].requires_grad_(False)
    optimizer = build_optimizer(model, TrainConfig(weight_decay=0.3, learning_rate=0.1))
    assert isinstance(optimizer, torch.optim.AdamW)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    expected = {name: 0.3 if name in ("embedding.weight", "linear.weight") else 0.0
                for name, parameter in model.named_parameters() if parameter.requires_grad}  # fmt: skip
    assert {name: decay.pop(id(p)) for name, p in model.named_parameters() if id(p) in decay} == expected
    assert not decay

    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name] * (1 - 0.1 * expected.get(name, 0.0)))


def test_vectors_alone():
    optimizer = build_optimizer(nn.LayerNorm(3), TrainConfig())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0]


def test_nothing_to_train():
    with pytest.raises(ValueError, match=r"no trainable parameter.*Inject LoRA"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), TrainConfig())
