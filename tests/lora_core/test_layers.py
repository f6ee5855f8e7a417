"""What an adapted layer computes: PEFT's layers are the oracle for values and gradients."""

import copy
import warnings

import pytest
import torch
from torch import nn

from lora_core import inject_lora, merge_lora
from lora_core.adapters import hosts

LAYERS = {
    "linear": (lambda: nn.Linear(12, 10), (3, 5, 12)),
    "linear without bias": (lambda: nn.Linear(12, 10, bias=False), (7, 12)),
    "embedding": (lambda: nn.Embedding(20, 8, padding_idx=0), "ids"),
    "conv": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 9, 7)),
    "conv without bias": (lambda: nn.Conv2d(4, 6, (1, 3), bias=False), (2, 4, 5, 5)),
    "patches": (lambda: nn.Conv2d(3, 8, 4, stride=4), (2, 3, 8, 8)),
    "grouped conv": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 6, 6)),
}


def layer_in_model(kind: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    x = torch.randint(0, 20, (3, 5)) if shape == "ids" else torch.randn(shape)
    return nn.ModuleDict({"layer": make()}).eval(), x


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"lora_alpha": 12},
        {"use_rslora": True, "lora_alpha": 3},
        {"use_dora": True, "lora_alpha": 8},
        {"lora_bias": True, "init_lora_weights": True, "lora_alpha": 8},
    ],
)
def test_outputs_and_gradients_equal_those_of_peft(kind, fields, peft_model, randomise):
    base, x = layer_in_model(kind)
    fields = {"r": 4, "lora_alpha": 4, "target_modules": ["layer"], **fields}
    if (kind == "grouped conv" and fields.get("use_dora")) or (kind == "embedding" and fields.get("lora_bias")):
        with pytest.raises(ValueError, match="not defined"):
            inject_lora(base, **fields)
        return
    ours = inject_lora(copy.deepcopy(base), **fields)
    theirs = peft_model(base, **fields)
    for model in (ours, theirs):
        randomise(model)
    # The two order their parameters' names differently, so the numbers are copied over.
    mine = dict(ours.layer.lora["default"].named_parameters())
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            local = name.removeprefix("base_model.model.layer.").replace(".default", "")
            target = mine[local.removesuffix(".weight") if "magnitude" in local else local]
            target.data.copy_(parameter.view(target.shape))  # a convolution's magnitude is (1, out, 1, 1) in PEFT
    out, wanted = ours.layer(x), theirs.base_model.model.layer(x)
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(out, nn.Module.__call__(layer_in_model(kind)[0].layer, x), atol=1e-3)
    weights = torch.randn(out.shape)
    (out * weights).sum().backward()
    (wanted * weights).sum().backward()
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            local = name.removeprefix("base_model.model.layer.").replace(".default", "")
            gradient = mine[local.removesuffix(".weight") if "magnitude" in local else local].grad
            torch.testing.assert_close(gradient, parameter.grad.view(gradient.shape), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "embedding", "conv"])
def test_dora_norms_equal_those_of_the_whole_matrix(kind, randomise):
    """Complaint 11: the norm comes from the factors; W + BA is never built in forward."""
    model, x = layer_in_model(kind)
    inject_lora(model, r=4, lora_alpha=6, target_modules=["layer"], use_dora=True)
    randomise(model)
    merged = merge_lora(copy.deepcopy(model)).layer.weight
    matrix = merged.T if kind == "embedding" else merged.flatten(1)
    torch.testing.assert_close(matrix.norm(dim=1), model.layer.lora["default"].lora_magnitude_vector.data)

    shapes = []

    class Shapes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                shapes.append(tuple(func(*args, **(kwargs or {})).shape))
            return func(*args, **(kwargs or {}))

    with Shapes():
        model.layer(x)
    assert tuple(matrix.shape) not in shapes
    assert tuple(matrix.T.shape) not in shapes


def test_dora_norm_is_exact_enough_under_autocast():
    """A norm in bfloat16 would be off by 1e-3; the magnitudes are fp32."""
    model, x = layer_in_model("linear")
    inject_lora(model, r=4, target_modules=["layer"], use_dora=True, init_lora_weights=False)
    exact = model.layer.lora["default"].magnitude_scale(model.layer.weight)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model.layer.lora["default"].magnitude_scale(model.layer.weight), exact)
        assert model.layer(x).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["linear", "embedding", "conv"])
@pytest.mark.parametrize("use_dora", [False, True])
def test_the_output_keeps_the_base_layers_dtype(dtype, kind, use_dora, randomise):
    """Properties 21 and 22: adapters are fp32 on a half base."""
    model, x = layer_in_model(kind)
    model.to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    inject_lora(model, r=4, target_modules=["layer"], use_dora=use_dora)
    adapter = torch.float64 if dtype == torch.float64 else torch.float32
    assert {p.dtype for p in model.layer.lora.parameters()} == {adapter}
    randomise(model)
    out = model.layer(x)
    assert out.dtype == dtype
    out.float().sum().backward()
    assert all(p.grad is not None for p in model.layer.lora.parameters())


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_dropout_is_on_the_adapters_path_alone(kind, randomise):
    """E[dropout(x)] = x, and the frozen path sees every element."""
    model, x = layer_in_model(kind)
    plain = model.layer(x).detach()
    inject_lora(model, r=4, target_modules=["layer"], lora_dropout=0.25)
    model.train()
    torch.testing.assert_close(model.layer(x), plain)  # B is zero: nothing of the frozen path is dropped
    randomise(model)
    model.eval()
    wanted = model.layer(x)
    torch.testing.assert_close(model.layer(x), wanted)
    model.train()
    torch.manual_seed(0)
    draws = torch.stack([model.layer(x) for _ in range(500)])
    assert draws.std(0).mean() > 0.01
    error = (draws.mean(0) - wanted).abs()
    assert (error < 7 * draws.std(0) / 500**0.5 + 1e-4).all()


@pytest.mark.parametrize("merged", [False, True])
def test_exports_with_the_same_numbers(merged, make, run, randomise):
    """Complaint 15: what is exported is checked by its numbers."""
    model = randomise(inject_lora(make("ours")))
    wanted = run(model).detach()
    ids = torch.randint(2, 60, (4, 9), generator=torch.Generator().manual_seed(1))
    if merged:
        merge_lora(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own deprecations
        exported = torch.export.export(model, (ids,)).module()
    mask = torch.ones_like(ids)
    full = model(input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(exported(ids), full, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(wanted, torch.zeros_like(wanted))


def test_a_host_is_still_the_layer_it_adapts():
    """Hooks, references and the names of the layer's parameters survive injection and ejection."""
    from lora_core import eject_lora

    model, x = layer_in_model("linear")
    layer, weight, calls = model.layer, model.layer.weight, []
    layer.register_forward_hook(lambda *_: calls.append(1))
    inject_lora(model, target_modules=["layer"])
    assert model.layer is layer
    assert isinstance(layer, nn.Linear)
    assert layer.weight is weight
    assert [path for path, _ in hosts(model)] == ["layer"]
    layer(x)
    eject_lora(model)
    assert type(model.layer) is nn.Linear
    assert model.layer is layer
    assert layer.weight is weight
    assert vars(layer).keys() == vars(nn.Linear(12, 10)).keys()
    layer(x)
    assert calls == [1, 1]


def test_a_layer_with_a_forward_of_its_own_is_not_adapted():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(ValueError, match="adapt"):
        inject_lora(nn.ModuleDict({"layer": Scaled(4, 4)}), target_modules=["layer"])
