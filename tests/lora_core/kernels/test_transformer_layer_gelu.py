import pytest
import torch
from torch import nn

from lora_core.kernels.transformer_layer import activate


@pytest.mark.parametrize("sole_reader", [True, False])
@pytest.mark.parametrize("activation", [nn.GELU(), nn.GELU("tanh"), nn.ReLU(), nn.SiLU()])
def test_equals_the_module(activation, sole_reader):
    x = torch.linspace(-5, 5, 99, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    weights = torch.randn(99)
    activate(activation, x, sole_reader=sole_reader).backward(weights.clone())
    activation(twin).backward(weights)
    torch.testing.assert_close(x.grad, twin.grad)


def test_a_gradient_with_other_readers_stays():
    x, weights = torch.randn(9, requires_grad=True), torch.randn(9)
    kept = weights.clone()
    activate(nn.GELU(), x, sole_reader=False).backward(weights)
    assert torch.equal(weights, kept)
