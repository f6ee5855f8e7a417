"""EVA: directions of the inputs' variance, with PEFT's incremental SVD and numpy's covariance as oracles."""

import logging
from collections import OrderedDict

import pytest
import torch
from torch import nn

import lora_core
from lora_core import initialise_eva, inject_lora, load_adapter, save_adapter
from lora_core.adapters import hosts

TARGETS = ["query", "value", "intermediate.dense"]


def batches(count: int = 3) -> list[dict]:
    generator = torch.Generator().manual_seed(3)
    found = []
    for _ in range(count):
        mask = torch.ones(8, 10, dtype=torch.long)
        mask[0, 5:] = 0
        found.append({"input_ids": torch.randint(2, 60, (8, 10), generator=generator), "attention_mask": mask})
    return found


def injected(make, **fields):
    return inject_lora(make("bert"), r=4, target_modules=TARGETS, init_lora_weights="eva", **fields)


def test_directions_are_those_of_the_covariance(make):
    model, data = injected(make), batches()
    seen = []
    layer = model.bert.encoder.layer[1].intermediate.dense
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for batch in data:
        model(**batch)
    handle.remove()
    x = torch.cat([s[b["attention_mask"].bool()] for s, b in zip(seen, data, strict=True)]).detach()
    initialise_eva(model, data, rho=1)
    vh = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:4]
    a = layer.lora["default"].lora_A.weight
    torch.testing.assert_close((a @ vh.T).abs(), torch.eye(4), atol=1e-3, rtol=0)
    assert not layer.lora["default"].lora_B.weight.any()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_peft_finds_the_same_directions_and_ranks(make, peft_model):
    import peft
    from peft import EvaConfig, initialize_lora_eva_weights

    data = batches(1)
    theirs = peft_model(
        make("bert"), r=4, lora_alpha=4, target_modules=TARGETS, init_lora_weights="eva", eva_config=EvaConfig(rho=2.0)
    )
    initialize_lora_eva_weights(theirs, data, show_progress_bar=False)
    model = initialise_eva(injected(make), data)
    own = {path: host.lora["default"].lora_A.weight for path, host in hosts(model)}
    layers = {name: m for name, m in theirs.base_model.model.named_modules() if isinstance(m, peft.tuners.lora.Linear)}
    assert {path: len(a) for path, a in own.items()} == {p: m.r["default"] for p, m in layers.items()}
    for path, a in own.items():
        assert layers[path].scaling["default"] == pytest.approx(model.get_submodule(path).lora["default"].scaling)
        overlap = (a @ layers[path].lora_A["default"].weight.T).abs().diagonal()
        torch.testing.assert_close(overlap, torch.ones(len(a)), atol=2e-2, rtol=0)


def test_ranks_keep_their_sum_and_the_model_its_outputs(make, run, train, tmp_path):
    model, base = injected(make, rank_pattern={"query": 2}), run(make("bert"))
    before = sum(host.lora["default"].r for _, host in hosts(model))
    initialise_eva(model, batches())
    assert sum(host.lora["default"].r for _, host in hosts(model)) == before
    assert len({host.lora["default"].r for _, host in hosts(model)}) > 1
    assert torch.equal(run(model), base)
    train(model, run)
    save_adapter(model, tmp_path)
    torch.testing.assert_close(run(load_adapter(make("bert"), tmp_path)), run(model))


def test_layers_without_a_share_lose_their_adapter(make, run, tmp_path):
    model = inject_lora(make("bert"), r=1, target_modules="all-linear", init_lora_weights="eva")
    count = len(list(hosts(model)))
    initialise_eva(model, batches(), rho=8)
    left = [path for path, _ in hosts(model)]
    assert 0 < len(left) < count
    assert model.lora_state.adapters["default"].targets == tuple(left)
    save_adapter(model, tmp_path)
    assert [path for path, _ in hosts(load_adapter(make("bert"), tmp_path))] == left


def test_errors_leave_the_model_alone(make, run, train, state, same, caplog):
    with caplog.at_level(logging.WARNING, "lora_core"):
        model = injected(make)
    assert "initialise_eva" in caplog.text
    before = state(model)
    with pytest.raises(ValueError, match="EVA saw no input"):
        initialise_eva(model, [])
    assert same(before, state(model))
    train(model, run)
    with pytest.raises(ValueError, match="not fresh"):
        initialise_eva(model, batches())
    with pytest.raises(ValueError, match="rho must be at least 1"):
        initialise_eva(injected(make), batches(), rho=0.5)
    conv = inject_lora(make("conv"), target_modules=["first"])
    with pytest.raises(ValueError, match="no linear layer"):
        initialise_eva(conv, batches())
    assert lora_core.parameter_counts(conv)[0] > 0


def test_inputs_that_do_not_vary_are_refused():
    fields = {"r": 2, "target_modules": ["query"], "init_lora_weights": "eva"}
    model = inject_lora(nn.Sequential(OrderedDict(query=nn.Linear(6, 4))), **fields)
    row = torch.randn(6, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="one input vector again and again"):
        initialise_eva(model, [row.expand(50, 6)] * 20)
    initialise_eva(model, [row * torch.tensor([[1.0], [1.01]])])
    assert model.query.lora["default"].lora_A.weight.isfinite().all()
