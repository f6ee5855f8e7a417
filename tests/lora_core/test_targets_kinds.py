"""Which layers have a host: transformers' Conv1D, subclasses, layers with a computation of their own."""

import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from torch.nn.utils import parametrizations
from transformers.pytorch_utils import Conv1D

from lora_core import eject_lora, inject_lora, load_adapter, merge_lora, save_adapter, unmerge_lora
from lora_core.adapters import hosts


class Renamed(nn.Linear):
    """A subclass that computes the same."""

    def extra(self) -> int:
        return 1


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def model_of(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), layer, nn.Linear(8, 6))


def conv1d() -> nn.Module:
    torch.manual_seed(0)
    model = model_of(Conv1D(8, 6))
    nn.init.normal_(model[1].bias)
    return model.eval()


X = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "fields", [{}, {"use_dora": True}, {"use_rslora": True}, {"lora_bias": True}, {"init_lora_weights": "pissa"}]
)
def test_conv1d_equals_peft(fields, randomise, peft_load, tmp_path):
    base = conv1d()
    weight = base[1].weight.clone()
    model = inject_lora(base, r=4, lora_alpha=6, target_modules=["1"], modules_to_save=(), **fields)
    torch.testing.assert_close(model(X), conv1d()(X))
    randomise(model)
    expected = model(X)
    save_adapter(model, tmp_path)
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        theirs = peft_load(conv1d(), tmp_path)
    torch.testing.assert_close(theirs(X), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(load_adapter(conv1d(), tmp_path)(X), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(merge_lora(model)(X), expected, atol=1e-5, rtol=1e-4)
    unmerge_lora(model)
    assert torch.equal(model[1].weight, weight)
    assert type(eject_lora(model)[1]) is Conv1D


def test_conv1d_gradients_equal_peft(randomise, peft_model):
    model = randomise(inject_lora(conv1d(), r=4, target_modules=["1"], modules_to_save=(), use_dora=True))
    theirs = randomise(
        peft_model(conv1d(), r=4, lora_alpha=4, target_modules=["1"], use_dora=True, fan_in_fan_out=True)
    )
    for m in (model, theirs):
        m(X).square().sum().backward()
    grads = [
        {n.replace(".default", ""): p.grad for n, p in m.named_parameters() if p.grad is not None}
        for m in (model, theirs)
    ]
    assert sorted(g.shape for g in grads[0].values()) == sorted(g.shape for g in grads[1].values())
    for ours, other in zip(*[sorted(g.values(), key=lambda t: t.shape) for g in grads], strict=True):
        torch.testing.assert_close(ours, other, atol=1e-4, rtol=1e-4)


def test_all_linear_takes_conv1d():
    assert [path for path, _ in hosts(inject_lora(conv1d(), target_modules="all-linear", modules_to_save=()))] == [
        "0",
        "1",
        "2",
    ]


def test_a_subclass_that_computes_the_same_is_adapted():
    model = inject_lora(model_of(Renamed(6, 8)), target_modules=["1"])
    assert [path for path, _ in hosts(model)] == ["1"]
    assert type(eject_lora(model)[1]) is Renamed


def wrapped() -> nn.Module:
    layer = nn.Linear(6, 8)
    layer.forward = lambda x: 3 * nn.Linear.forward(layer, x)  # as accelerate's hooks do
    return layer


def old_weight_norm() -> nn.Module:
    """Its weight is no parameter, but computed before each forward, as that of pruned layers is."""
    with pytest.warns(FutureWarning):
        return torch.nn.utils.weight_norm(nn.Linear(6, 8))


@pytest.mark.parametrize(
    "make_layer",
    [
        lambda: Scaled(6, 8),
        wrapped,
        lambda: parametrizations.weight_norm(nn.Linear(6, 8)),
        old_weight_norm,
        lambda: torch.nn.utils.spectral_norm(nn.Linear(6, 8)),
        lambda: torch.nn.utils.prune.random_unstructured(nn.Linear(6, 8), "weight", 0.5),
    ],
)
@pytest.mark.parametrize("targets", [["1"], "all-linear", ["0", "1"], "1"])
def test_a_computation_of_its_own_is_refused(make_layer, targets, state, same):
    model = model_of(make_layer())
    before = state(model)
    with pytest.raises(ValueError, match=r"1 is a .* with a computation of its own.*exclude_modules"):
        inject_lora(model, target_modules=targets)
    assert same(before, state(model))
    if targets == "all-linear":
        assert len(list(hosts(inject_lora(model, target_modules=targets, exclude_modules=r"1(\..*)?")))) == 2
