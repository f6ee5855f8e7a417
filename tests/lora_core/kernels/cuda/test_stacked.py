"""Stacks of linear layers against the layers themselves, with the products of rank r in torch and in Triton."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import lora_core
from lora_core.kernels.cuda import products
from lora_core.kernels.cuda.products import Mask
from lora_core.kernels.cuda.stacked import by_triton, products_for, project_stack, trouble_with
from lora_core.kernels.linear import FROZEN_COPY, frozen_copy, groups, stack_of

try:
    from lora_core.kernels.cuda import triton_kernels
except ImportError:
    triton_kernels = None

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(
    triton_kernels is None or (DEVICE == "cuda" and torch.cuda.get_device_capability() < (8, 0)),
    reason="no Triton, or none for this GPU",
)
each_module = pytest.mark.parametrize("name", ["torch", pytest.param("triton", marks=needs_triton)])
pytestmark = pytest.mark.cuda


def module(name):
    return products if name == "torch" else triton_kernels


class Model(nn.Module):
    def __init__(self, bias=(True, False, True), widths=(20, 20, 20)):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(36, w, bias=b) for w, b in zip(widths, bias, strict=True))

    @property
    def layers(self):
        return [self.query, self.key, self.value]


@pytest.fixture
def make():
    def make(targets=("query", "value"), lora_dropout=0.0, **options):
        torch.manual_seed(0)
        model = Model(**options)
        if targets:
            lora_core.inject_lora(model, r=5, lora_alpha=10, target_modules=[*targets], lora_dropout=lora_dropout,
                                  init_lora_weights=False)  # fmt: skip
        return model.to(DEVICE).train()

    return make


def run(model, outputs, x):
    """Outputs, and gradients of the input and of what is trained, for a loss in which every element matters."""
    found = outputs(x)
    weights = [torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE) for out in found]
    wanted = [p for p in (x, *model.parameters()) if p.requires_grad]
    total = sum((out * weight).sum() for out, weight in zip(found, weights, strict=True))
    return [*found, *torch.autograd.grad(total, wanted)]


def stacked(model, x, dtype, module):
    """Outputs in the order of ``model.layers``."""
    found = {}
    for group in groups(model.layers, dtype):
        found |= zip(group, project_stack(x, stack_of(group, dtype), dtype, module), strict=True)
    return [found[layer] for layer in model.layers]


@pytest.fixture
def x():
    return torch.randn(19, 36, generator=torch.Generator().manual_seed(2)).to(DEVICE).requires_grad_()


@each_module
@pytest.mark.parametrize("input_grad", [True, False])
@pytest.mark.parametrize("trained", [(), ("query.weight", "query.bias"), ("key.weight", "value.bias")])
@pytest.mark.parametrize("targets", [("query", "value"), ("key",), ()])
def test_equals_the_layers(targets, trained, input_grad, name, make, x, monkeypatch):
    """In fp32, as one group."""
    monkeypatch.setattr("lora_core.kernels.linear.HALF", (torch.float32,))
    model = make(targets).requires_grad_(bool(targets) or not trained)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for path, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in path or path in trained)
    x.requires_grad_(input_grad)
    if not any(t.requires_grad for t in (x, *model.parameters())):
        pytest.skip("nothing is trained")
    assert len(groups(model.layers, torch.float32)) == 1
    expected = run(model, lambda x: [layer(x) for layer in model.layers], x)
    found = run(model, lambda x: stacked(model, x, torch.float32, module(name)), x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


@each_module
def test_adapters_that_differ_are_computed_alone(name, make, x, monkeypatch):
    monkeypatch.setattr("lora_core.kernels.linear.HALF", (torch.float32,))
    model = make(widths=(20, 20, 24))
    assert [len(group) for group in groups(model.layers, torch.float32)] == [1, 1, 1]
    expected = run(model, lambda x: [layer(x) for layer in model.layers], x)
    found = run(model, lambda x: stacked(model, x, torch.float32, module(name)), x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


@each_module
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_near(dtype, name, make, x):
    if name == "triton" and dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("Triton's interpreter multiplies the bits of bf16 as integers")
    model = make(bias=(True, True, True))
    model.query.bias.requires_grad_(True)
    expected = run(model, lambda x: [layer(x) for layer in model.layers], x)
    found = run(model, lambda x: stacked(model, x, dtype, module(name)), x)
    assert [t.dtype for t in found] == [dtype] * 3 + [torch.float32] * (len(found) - 3)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < 0.01 * b.norm()


@each_module
def test_dropout_is_the_same_in_the_backward_pass(name, make, x, monkeypatch):
    """The layers themselves, with the mask that the stack draws, have the same outputs and gradients."""
    monkeypatch.setattr("lora_core.kernels.linear.HALF", (torch.float32,))
    model, drawn = make(lora_dropout=0.4), []
    new_mask = module(name).new_mask
    monkeypatch.setattr(module(name), "new_mask", lambda *args: drawn.append(new_mask(*args)) or drawn[-1])
    found = run(model, lambda x: stacked(model, x, torch.float32, module(name)), x)
    (mask,) = drawn
    keep = mask.state
    if name == "triton":
        assert keep.numel() == 1
        ones = torch.zeros(len(x), 2 * 36, device=DEVICE)
        s, factors = torch.ones(len(x), 2, device=DEVICE), torch.ones(2, 1, 36, device=DEVICE)
        triton_kernels.up_(ones, s, factors, Mask(keep, 0.4), apart=True)
        keep = ones.unflatten(1, (2, 36)).transpose(0, 1)
    assert 0.4 < keep.float().mean() < 0.8
    for layer, kept in zip((model.query, model.value), keep, strict=True):
        update = layer.lora["default"]
        update.lora_dropout.p = 0.0
        update.register_forward_pre_hook(lambda _, args, kept=kept: (args[0] * kept / 0.6, *args[1:]))
    expected = run(model, lambda x: [layer(x) for layer in model.layers], x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=5e-5)


@each_module
def test_every_step_drops_others(name, make, x):
    model = make(lora_dropout=0.5)
    torch.manual_seed(4)
    one, other = (stacked(model, x, torch.float16, module(name)) for _ in range(2))
    torch.manual_seed(4)
    again = stacked(model, x, torch.float16, module(name))
    assert torch.equal(one[0], again[0])
    assert not torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])  # the key has no adapter
    assert torch.equal(stacked(model.eval(), x, torch.float16, module(name))[0],
                       stacked(model, x, torch.float16, module(name))[0])  # fmt: skip


def test_frozen_weights_are_copied_once_and_one_below_the_other(make):
    model = make()
    layers = groups(model.layers, torch.float16)[0]
    assert layers == [model.query, model.value, model.key]
    copy = stack_of(layers, torch.float16).copy
    assert copy.dtype == torch.float16
    assert torch.equal(copy, torch.cat([layer.weight for layer in layers]).half())
    assert stack_of(layers, torch.float16).copy is copy
    assert [FROZEN_COPY in vars(layer) for layer in layers] == [True, False, False]
    with torch.no_grad():
        model.key.weight.add_(1)
    changed = stack_of(layers, torch.float16).copy
    assert torch.equal(changed[40:], model.key.weight.half())
    assert frozen_copy(model.query, torch.float16).shape == (20, 36)
    model.value.weight.requires_grad_(True)
    assert stack_of(layers, torch.float16).copy is None


def test_only_what_is_needed_waits_for_the_backward_pass(make, x):
    model, kept = make(lora_dropout=0.1), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        stacked(model, x, torch.float16, products)
    shapes = sorted(tuple(t.shape) for t in kept)
    assert shapes == sorted([(19, 36), (60, 36), (2, 5, 36), (2, 5, 20), (19, 10), (2, 19, 36)])
    assert {t.dtype for t in kept if t.shape in ((19, 36), (60, 36), (19, 10))} == {torch.float16}
    kept.clear()
    model.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        stacked(model, x, torch.float16, products)
    assert (19, 36) not in [tuple(t.shape) for t in kept]


FREE = {
    *("t", "view", "_unsafe_view", "unflatten", "transpose", "permute", "unsqueeze", "expand", "alias", "detach"),
    *("split", "split_with_sizes", "slice", "select", "unbind", "as_strided", "empty", "new_empty"),
}
"""Operators that make views or empty tensors."""


class Kernels(TorchDispatchMode):
    """Counts what a GPU would be asked to compute."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ not in FREE
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(DEVICE == "cuda", reason="counts on the CPU what a GPU would be asked")
def test_kernels_that_a_step_launches(make, x, monkeypatch):
    """Query, key and value, all with adapters and dropout: the figures that stacked.py's head gives."""
    model = make(("query", "key", "value"), lora_dropout=0.1, bias=(True, True, True))

    class Launches:
        """Triton's kernels, of which each is one launch; `reduce` adds up what it has summed in parts with another."""

        count = 0
        new_mask = staticmethod(lambda x, p, adapters: Mask(torch.randint(9, (1,)), p))

        def down(self, x, factors, mask=None, **_):
            self.count += 1
            return x.new_empty(len(x), len(factors) * factors.shape[1])

        def up_(self, *_, **__):
            self.count += 1

        def reduce(self, s, x, shape, *_, **__):
            self.count += 2
            return torch.empty(shape)

    def count(outputs):
        for parameter in (x, *model.parameters()):
            parameter.grad = None
        with Kernels() as kernels:
            found = outputs()
            torch.autograd.backward(found, [torch.ones_like(out) for out in found])
        return kernels.count - 3  # the ones

    stack_of(groups(model.layers, torch.float16)[0], torch.float16)  # copies the weights
    launches = Launches()
    ours = count(lambda: stacked(model, x, torch.float16, launches)) + launches.count
    # The dropout of a GPU is one kernel, and one in the backward pass.
    monkeypatch.setattr("lora_core.dropout.Dropout.forward", lambda self, x: torch.native_dropout(x, self.p, True)[0])
    with torch.autocast(DEVICE, torch.float16):
        theirs = count(lambda: [layer(x) for layer in model.layers])
    assert (ours, theirs) == (24, 70)


@pytest.mark.parametrize(
    ("device", "capability", "rocm", "expected"),
    [
        ("cuda", (7, 0), False, False),  # V100
        ("cuda", (7, 5), False, False),  # T4
        ("cuda", (8, 0), False, True),  # A100
        ("cuda", (8, 9), False, True),  # 4090
        ("cuda", (9, 0), False, True),  # H100
        ("cuda", (9, 0), True, False),
        ("cpu", (0, 0), False, False),
        ("meta", (0, 0), False, False),
    ],
)
def test_which_devices_triton_is_for(device, capability, rocm, expected):
    assert by_triton(device, capability, rocm) is expected


@needs_triton
def test_the_kernels_are_tried_before_they_are_used():
    assert trouble_with(triton_kernels, torch.device(DEVICE)) is None


def test_kernels_that_fail_or_are_wrong_are_not_used(monkeypatch, caplog):
    """They are looked for on a device of which we say that it is for them."""
    broken = {name: getattr(products, name) for name in ("new_mask", "down", "up_", "reduce")}
    for name, replacement, said in (
        ("down", lambda *_, **__: 1 / 0, "they fail: ZeroDivisionError"),
        ("reduce", lambda s, x, shape: torch.zeros(shape), "they compute something else"),
    ):
        kernels = SimpleNamespace(**{**broken, name: replacement})
        monkeypatch.setitem(sys.modules, "lora_core.kernels.cuda.triton_kernels", kernels)
        monkeypatch.setattr("lora_core.kernels.cuda.triton_kernels", kernels, raising=False)
        monkeypatch.setattr("lora_core.kernels.cuda.stacked.by_triton", lambda *_: True)
        products_for.cache_clear()
        state = torch.random.get_rng_state()
        assert products_for(torch.device("cpu")) is products
        assert torch.equal(state, torch.random.get_rng_state())
        assert said in caplog.records[-1].message
    products_for.cache_clear()


def test_the_products_of_a_device():
    assert products_for(torch.device("meta")) is products
    assert products_for(torch.device("cpu")) is products


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_the_products_of_this_gpu():
    newer = torch.cuda.get_device_capability() >= (8, 0)
    assert products_for(torch.device("cuda")) is (triton_kernels if newer else products)
