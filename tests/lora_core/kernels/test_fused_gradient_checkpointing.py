"""Layers that are computed again in the backward pass give the same gradients and keep less, plain and fused."""

import copy

import pytest
import torch
from torch import nn

import lora_core
from lora_core.kernels.fused import fuse
from lora_core.models.layers import LayerStack

EVERY_FAMILY = {
    **{name: (name, {}) for name in ("bert", "roberta", "distilbert", "deberta-v2", "modernbert", "vit")},
    "albert": ("bert", {"model_type": "albert", "embedding_size": 8, "num_hidden_groups": 1, "inner_group_num": 1}),
    "mpnet": ("bert", {"model_type": "mpnet"}),
    "electra": ("bert", {"model_type": "electra", "embedding_size": 8}),
    "dinov2": ("vit", {"model_type": "dinov2", "mlp_ratio": 2}),
}
"""A tiny model of tests/lora_core/kernels/conftest.py, and in what the family differs from it."""


@pytest.fixture
def checkpointed():
    """A copy of a model whose stacks of layers keep nothing but the layers' inputs."""

    def make(model: nn.Module) -> nn.Module:
        model = copy.deepcopy(model)
        for module in model.modules():
            if isinstance(module, LayerStack):
                module.gradient_checkpointing = True
        return model

    return make


def kept(model: nn.Module, batch: dict) -> int:
    """Bytes that wait for the backward pass, parameters and their copies not counted, each storage once."""
    storages = {}
    own = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(**batch)
    assert output.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_gradients_are_the_same(family, lora, fused, make, inputs, gradients, checkpointed):
    like, fields = EVERY_FAMILY[family]
    model = make(like, **fields).train()
    if lora:
        lora_core.inject_lora(model, r=4, lora_dropout=0.3, target_modules="all-linear", init_lora_weights=False)
    if fused:
        fuse(model)
    batch = inputs(like)
    torch.manual_seed(1)
    expected = gradients(model, batch)
    torch.manual_seed(1)
    found = gradients(checkpointed(model), batch)
    assert torch.equal(found[0], expected[0])
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert torch.equal(found[1][name], gradient), name


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_a_layer_keeps_its_input_alone(fused, make, inputs, checkpointed):
    batch = inputs("bert", (20,) * 8)
    few, many = (make("bert", num_hidden_layers=layers).train() for layers in (2, 6))
    if fused:
        few, many = fuse(few), fuse(many)
    hidden = 8 * 20 * 24 * 4
    for_each_layer = (kept(many, batch) - kept(few, batch)) / 4
    less = (kept(checkpointed(many), batch) - kept(checkpointed(few), batch)) / 4
    assert less == pytest.approx(hidden, rel=0.05)
    assert for_each_layer > 5 * less


def test_nothing_is_computed_twice_where_no_gradient_is_wanted(make, inputs, checkpointed, monkeypatch):
    model = checkpointed(make("bert"))

    def refuse(*_, **__):
        raise AssertionError("checkpoint was called")

    monkeypatch.setattr("lora_core.models.layers.checkpoint", refuse)
    with torch.no_grad():
        model(**inputs("bert"))
    with pytest.raises(AssertionError, match="checkpoint"):
        model.train()(**inputs("bert"))
