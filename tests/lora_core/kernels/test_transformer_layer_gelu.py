import pytest
import torch
from torch import nn

from lora_core.kernels.transformer_layer import activate
from lora_core.models.layers import GatedActivation


@pytest.mark.parametrize("sole_reader", [True, False])
@pytest.mark.parametrize("activation", [nn.GELU(), nn.GELU("tanh"), nn.ReLU(), nn.SiLU()])
def test_equals_the_module(activation, sole_reader):
    x = torch.linspace(-5, 5, 99, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    weights = torch.randn(99)
    activate(activation, x, sole_reader=sole_reader).backward(weights.clone())
    activation(twin).backward(weights)
    torch.testing.assert_close(x.grad, twin.grad)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_a_gate_equals_the_module_and_keeps_its_input_alone(approximate):
    gated = GatedActivation(nn.GELU(approximate), 0.0)
    x, weights = torch.randn(7, 12, requires_grad=True), torch.randn(7, 6)
    twin = x.detach().clone().requires_grad_()
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        found = activate(gated, x, sole_reader=True)
    assert [tensor.data_ptr() for tensor in kept] == [x.data_ptr()]
    expected = gated(twin)
    torch.testing.assert_close(found, expected)
    found.backward(weights.clone())
    expected.backward(weights)
    torch.testing.assert_close(x.grad, twin.grad)


def test_a_gradient_with_other_readers_stays():
    x, weights = torch.randn(9, requires_grad=True), torch.randn(9)
    kept = weights.clone()
    activate(nn.GELU(), x, sole_reader=False).backward(weights)
    assert torch.equal(weights, kept)
