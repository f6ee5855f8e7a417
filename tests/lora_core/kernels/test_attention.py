import pytest
import torch

from lora_core.kernels import attention
from lora_core.kernels.attention import attend
from lora_core.models.layers import additive_mask, multi_head_attention


@pytest.mark.parametrize("at_once", [2**21, 2 * 3 * 36, 1])
@pytest.mark.parametrize("asking", [None, 1])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("tokens", [6, 30])  # the weights are kept up to 12
def test_equals_attention_in_fp64(tokens, masked, asking, at_once, monkeypatch):
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", at_once)
    torch.manual_seed(0)
    real = torch.tensor([[tokens], [2], [0]])
    mask = (torch.arange(tokens) < real) if masked else None
    asking = asking or tokens
    inputs = [torch.randn(3, count, 12).bfloat16().requires_grad_() for count in (asking, tokens, tokens)]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    copies = [x.detach().clone() for x in inputs]
    found = attend(*inputs, additive_mask(mask, torch.float32), num_heads=3)
    expected = multi_head_attention(*wide, additive_mask(mask, torch.float64), 3, 0.0)
    weights = torch.randn(3, asking, 12).bfloat16()
    found.backward(weights)
    expected.backward(weights.double())
    assert found.dtype == torch.bfloat16
    for a, b in [(found, expected), *((x.grad, y.grad) for x, y in zip(inputs, wide, strict=True))]:
        assert (a.double() - b).norm() < 0.01 * b.norm()
    assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True))


@pytest.mark.parametrize(("tokens", "kept"), [(12, True), (13, False)])
def test_large_weights_do_not_wait_for_the_backward_pass(tokens, kept):
    query = torch.randn(2, tokens, 12, dtype=torch.bfloat16, requires_grad=True)
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(t.shape), lambda nothing: nothing):
        attend(query, query, query, None, num_heads=3)
    assert ((6, tokens, tokens) in shapes) == kept
