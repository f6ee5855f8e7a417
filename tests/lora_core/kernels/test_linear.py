"""Projections against the layers themselves, whose adapters tests/lora_core holds against PEFT."""

import pytest
import torch
from torch import nn

import lora_core
from lora_core.kernels import linear
from lora_core.kernels.linear import Products, frozen_copy, is_plain, project


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (
            nn.Linear(12, width, bias=bias) for width, bias in ((8, True), (8, False), (10, True))
        )

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        return self.query, self.key, self.value


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = Model()
    lora_core.inject_lora(model, r=3, lora_alpha=6, target_modules=["query", "value"], init_lora_weights=False)
    return model


def run(model: nn.Module, outputs, x: torch.Tensor) -> list[torch.Tensor]:
    found = outputs(x)
    weights = [torch.randn(out.shape, generator=torch.Generator().manual_seed(1)) for out in found]
    wanted = [p for p in (x, *model.parameters()) if p.requires_grad]
    total = sum((out * weight).sum() for out, weight in zip(found, weights, strict=True))
    return [*found, *torch.autograd.grad(total, wanted)]


@pytest.mark.parametrize("input_grad", [True, False])
@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("trained", [(), ("query.weight", "query.bias"), ("key.weight", "value.bias")])
def test_equals_the_layers(trained, onednn, input_grad, model, monkeypatch):
    monkeypatch.setattr(linear, "ONEDNN", linear.ONEDNN if onednn else ())
    for name in trained:
        model.get_parameter(name).requires_grad_(True)
    x = torch.randn(7, 12, requires_grad=input_grad)
    expected = run(model, lambda x: [layer(x) for layer in model.layers], x)
    found = run(model, lambda x: project(x, model.layers), x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("onednn", [True, False])
def test_bf16_is_near(onednn, model, monkeypatch):
    monkeypatch.setattr(linear, "ONEDNN", linear.ONEDNN if onednn else ())
    model.requires_grad_(True)
    x = torch.randn(7, 12, requires_grad=True)
    expected = run(model, lambda x: [layer(x) for layer in model.layers], x)
    found = run(model, lambda x: project(x, model.layers, Products(torch.bfloat16)), x)
    assert [t.dtype for t in found] == [torch.bfloat16] * 3 + [torch.float32] * (len(found) - 3)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < 0.01 * b.norm()


def test_layers_of_other_kinds_compute_in_bf16_too():
    layer = nn.Sequential(nn.Linear(12, 8))
    products = []
    layer[0].register_forward_hook(lambda module, inputs, out: products.append(out.dtype))
    (out,) = project(torch.randn(7, 12), (layer,), Products(torch.bfloat16))
    assert products == [out.dtype] == [torch.bfloat16]
    assert project(torch.randn(7, 12), (layer,))[0].dtype == products[1] == torch.float32


def test_dropout_of_each_adapter_is_its_own(model, monkeypatch):
    for layer in (model.query, model.value):
        layer.lora["default"].lora_dropout.p = 0.5
    shapes = []

    def note(x, p):
        shapes.append((*x.shape, p))
        return torch.zeros(x.shape, dtype=torch.uint8), 2.0

    monkeypatch.setattr(linear, "draw_keep", note)
    x = torch.randn(7, 12)
    with lora_core.disable_adapters(model):
        expected = [layer(x) for layer in model.layers]
    torch.testing.assert_close(list(project(x, model.train().layers)), expected)  # everything is dropped
    assert shapes == [(7, 12, 0.5)] * 2
    assert not torch.equal(project(x, model.eval().layers)[0], expected[0])


def test_only_what_is_needed_waits_for_the_backward_pass(model):
    x = torch.randn(7, 12)
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)), lambda nothing: nothing):
        project(x, model.layers)
        trained = sorted(shapes)
        shapes.clear()
        model.requires_grad_(False)
        project(x.requires_grad_(), model.layers)
    weights_and_factors = sorted([(8, 12), (8, 12), (10, 12), (3, 12), (8, 3), (3, 12), (10, 3)])
    assert trained == sorted([*weights_and_factors, (7, 12), (7, 3), (7, 3)])
    assert sorted(shapes) == weights_and_factors


def test_frozen_copies(model):
    key = model.key
    copy = frozen_copy(key, torch.bfloat16)
    assert copy is not None
    assert frozen_copy(key, torch.bfloat16) is copy
    with torch.no_grad():
        key.weight.add_(1)
    assert not torch.equal(frozen_copy(key, torch.bfloat16), copy)
    assert frozen_copy(key, torch.float32) is None
    key.weight.requires_grad_(True)
    assert frozen_copy(key, torch.bfloat16) is None


def test_which_layers_are_plain(model):
    assert all(is_plain(layer) for layer in model.layers)
    assert not is_plain(nn.Linear(2, 2).double())
    assert not is_plain(type("Own", (nn.Linear,), {})(2, 2))
    lora_core.add_adapter(model, "other", target_modules=["query"])
    lora_core.set_adapter(model, ("default", "other"))
    assert [is_plain(layer) for layer in model.layers] == [False, True, True]
    lora_core.set_adapter(model, "other")
    assert is_plain(model.query)
    assert project(torch.randn(2, 12), (model.query,))[0].requires_grad


@pytest.mark.parametrize("thirds", [["q", "v"], ["k"], ["q", "k", "v"]], ids=str)
def test_thirds_of_a_fused_layer_are_plain(thirds):
    torch.manual_seed(0)
    model = nn.ModuleDict({"qkv": nn.Linear(12, 36, bias=False)})
    targets = [f"qkv.{third}" for third in thirds]
    lora_core.inject_lora(model, r=3, lora_alpha=6, target_modules=targets, init_lora_weights=False)
    assert is_plain(model["qkv"])
    x = torch.randn(7, 12, requires_grad=True)
    expected = run(model, lambda x: [model["qkv"](x)], x)
    found = run(model, lambda x: project(x, (model["qkv"],)), x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
