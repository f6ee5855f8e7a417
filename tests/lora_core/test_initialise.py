"""How adapters start, with PEFT as oracle, and what becomes of PiSSA and OLoRA on disk."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import lora_core
from lora_core import LoRAConfig, disable_adapters, eject_lora, inject_lora, load_adapter, merge_lora, save_adapter
from lora_core.adapters import hosts
from lora_core.initialise import initialise
from lora_core.updates import LinearUpdate

STARTED = ["pissa", "pissa_niter_16", "olora"]
QV = ["query", "value"]


def adapter(weight: torch.Tensor, r: int, **fields) -> LinearUpdate:
    config = LoRAConfig(r=r, **fields)
    rows, columns = weight.shape
    made = LinearUpdate(
        columns,
        rows,
        r=r,
        scaling=config.scaling_of("x"),
        lora_dropout=0.0,
        use_dora=False,
        lora_bias=False,
        dtype=torch.float32,
    )
    torch.manual_seed(0)
    initialise(made, weight, config)
    return made


def test_gaussian_and_kaiming_spread():
    """Properties 2 and 3."""
    gaussian, kaiming = adapter(torch.zeros(50, 4000), 8), adapter(torch.zeros(50, 4000), 8, init_lora_weights=True)
    assert gaussian.lora_A.weight.std().item() == pytest.approx(1 / 8, rel=0.02)
    bound = 1 / 4000**0.5
    assert kaiming.lora_A.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert kaiming.lora_A.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not gaussian.lora_B.weight.any()
    assert not kaiming.lora_B.weight.any()


def test_orthogonal_is_peft_s_distribution_and_changes_nothing():
    made = adapter(torch.zeros(30, 40), 6, init_lora_weights="orthogonal")
    a, b = made.lora_A.weight, made.lora_B.weight
    assert a.norm() > 0.5
    assert b.norm() > 0.5
    assert (b @ a).abs().max() < 1e-6
    assert a.std().item() == pytest.approx(0.1 * 0.5**0.5, rel=0.3)


@pytest.mark.parametrize("embedding", [True, False])
def test_random_start_changes_the_model(embedding, make, run):
    """Property 4."""
    base = run(make("ours"))
    targets = ["word_embeddings"] if embedding else QV
    model = inject_lora(make("ours"), r=4, target_modules=targets, init_lora_weights=False)
    assert not torch.allclose(run(model), base)


@pytest.mark.parametrize("start", STARTED)
@pytest.mark.parametrize("fields", [{}, {"use_rslora": True, "lora_alpha": 3}, {"use_dora": True}])
def test_started_model_equals_base(start, fields, make, run):
    """Property 6, at 1e-6."""
    base = run(make("ours"))
    model = inject_lora(make("ours"), r=4, init_lora_weights=start, **fields)
    torch.testing.assert_close(run(model), base, atol=1e-6, rtol=1e-5)
    assert any(host.lora["default"].lora_B.weight.any() for _, host in hosts(model))


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("alpha", [4, 6])
def test_start_has_peft_s_factors(start, alpha, make, peft_model):
    theirs = peft_model(make("bert"), r=4, lora_alpha=alpha, target_modules=QV, init_lora_weights=start)
    model = inject_lora(make("bert"), r=4, lora_alpha=alpha, target_modules=QV, init_lora_weights=start)
    for path, host in hosts(model):
        layer = theirs.base_model.model.get_submodule(path)
        own = host.lora["default"]
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        torch.testing.assert_close(own.lora_B.weight @ own.lora_A.weight, b @ a, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(own.lora_A.weight.abs(), a.abs(), atol=1e-4, rtol=1e-3)  # up to a vector's sign


def test_randomised_pissa_nears_the_exact_one():
    torch.manual_seed(0)
    weight = torch.randn(40, 4) @ torch.randn(4, 60) + 0.1 * torch.randn(40, 60)
    u, s, vh = torch.linalg.svd(weight)
    best = u[:, :4] * s[:4] @ vh[:4]
    for start in ("pissa", "pissa_niter_16"):
        made = adapter(weight, 4, init_lora_weights=start)
        torch.testing.assert_close(made.lora_B.weight @ made.lora_A.weight, best, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("start", STARTED)
def test_base_is_untouched(start, make, run, train):
    """Complaint 14: disabled, ejected and unmerged are the true base, bit for bit."""
    base = make("ours")
    weights = {name: p.clone() for name, p in base.named_parameters()}
    expected = run(base)
    model = inject_lora(base, r=4, init_lora_weights=start)
    train(model, run, learning_rate=0.05)
    with disable_adapters(model):
        assert torch.equal(run(model), expected)
    adapted = run(model)
    merge_lora(model)
    torch.testing.assert_close(run(model), adapted, atol=1e-5, rtol=1e-4)
    lora_core.unmerge_lora(model)
    assert torch.equal(run(model), adapted)
    eject_lora(model)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_start_counts_once_and_is_no_parameter(make):
    plain, started = (inject_lora(make("ours"), r=4, init_lora_weights=s) for s in ("gaussian", "pissa"))
    assert lora_core.parameter_counts(plain) == lora_core.parameter_counts(started)


@pytest.mark.parametrize("start", STARTED)
@pytest.mark.parametrize(
    "fields",
    [
        {"r": 4, "lora_alpha": 6},
        {"r": 4, "lora_alpha": 6, "use_rslora": True},
        {"r": 4, "lora_alpha": 6, "rank_pattern": {"layer.0.attention.self.query": 2}, "alpha_pattern": {"value": 5}},
        {
            "r": 4,
            "use_rslora": True,
            "rank_pattern": {"value": 3},
            "alpha_pattern": {"layer.1.attention.self.value": 7},
        },
        {"r": 4, "use_dora": True},
    ],
)
def test_saved_as_a_plain_adapter_of_the_untouched_base(start, fields, make, run, train, peft_load, tmp_path):
    """Property 46, the head kept; PEFT reads the same file."""
    model = inject_lora(
        make("bert"), target_modules=QV, modules_to_save=["classifier"], init_lora_weights=start, **fields
    )
    train(model, run, learning_rate=0.05)
    trained = run(model)
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True
    assert config["r"] == 8
    assert "base_model.model.classifier.weight" in load_file(tmp_path / "adapter_model.safetensors")
    torch.testing.assert_close(run(load_adapter(make("bert"), tmp_path)), trained, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(run(peft_load(make("bert"), tmp_path)), trained, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_reads_peft_s_unconverted_file(start, make, run, peft_model, train, tmp_path):
    """PEFT's file belongs to a base without the start, which is taken away here in the same way."""
    theirs = peft_model(make("bert"), r=4, lora_alpha=6, target_modules=QV, init_lora_weights=start)
    train(theirs, run, learning_rate=0.05)
    theirs.save_pretrained(tmp_path)
    model = load_adapter(make("bert"), tmp_path)
    torch.testing.assert_close(run(model), run(theirs), atol=1e-5, rtol=1e-4)
    save_adapter(model, tmp_path / "plain")
    torch.testing.assert_close(run(load_adapter(make("bert"), tmp_path / "plain")), run(theirs), atol=1e-5, rtol=1e-4)


def test_unconverted_random_start_is_said(make, peft_model, tmp_path, caplog):
    peft_model(make("bert"), target_modules=QV, r=4, init_lora_weights="pissa_niter_2").save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "lora_core"):
        load_adapter(make("bert"), tmp_path)
    assert "pissa_niter" in caplog.text


def test_starts_that_changed_another_base_are_refused(make, peft_model, tmp_path):
    peft_model(make("bert"), target_modules=QV, r=4).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "init_lora_weights": "corda"}))
    with pytest.raises(ValueError, match=r"corda.*changed the base"):
        load_adapter(make("bert"), tmp_path)


def test_dropout_spares_the_start(make):
    """Only what is trained sees dropout: W x + scaling (B A dropout(x) - B0 A0 x), as in PEFT on its residual base."""
    model = inject_lora(make("ours"), r=4, init_lora_weights="pissa", lora_dropout=0.5).train()
    host = next(host for _, host in hosts(model))
    own, x = host.lora["default"], torch.randn(3, 32)
    torch.manual_seed(1)
    out = host(x)
    torch.manual_seed(1)
    dropped = own.lora_dropout(x)
    assert not torch.equal(dropped, x)
    start = own.lora_B.weight @ own.lora_A.weight
    torch.testing.assert_close(out, nn.functional.linear(x, host.weight, host.bias) + (dropped - x) @ start.T)


@pytest.mark.parametrize("start", [*STARTED, "orthogonal", "eva"])
def test_undefined_for_the_layer_is_refused(start, make, state, same):
    for kind, target in (("conv", "first"), ("ours", "word_embeddings")):
        model = make(kind)
        before = state(model)
        with pytest.raises(ValueError, match=rf"{target}: init_lora_weights='{start}' is not defined"):
            inject_lora(model, r=2, target_modules=[target], init_lora_weights=start)
        assert same(before, state(model))


def test_rank_beyond_the_weight_is_refused(make):
    with pytest.raises(ValueError, match=r"rank 33 is more than a weight of \(32, 32\)"):
        inject_lora(make("ours"), r=33, init_lora_weights="pissa")


def test_half_precision_base(make):
    model = inject_lora(make("ours").to(torch.bfloat16), r=4, init_lora_weights="pissa")
    host = next(host for _, host in hosts(model))
    x = torch.randn(3, 32, dtype=torch.bfloat16)
    assert host.lora["default"].start_A.dtype is torch.float32
    assert torch.equal(host(x), nn.functional.linear(x, host.weight, host.bias))  # the start cancels before rounding
