import pytest
import torch

from lora_core.kernels import attention
from lora_core.kernels.attention import attend
from lora_core.kernels.native.build import ops
from lora_core.kernels.packing import Layout
from lora_core.models.layers import additive_mask, multi_head_attention

NATIVE = [None, *([] if ops() is None else [ops()])]


@pytest.mark.parametrize("native", NATIVE, ids=lambda native: "native" if native else "torch")
@pytest.mark.parametrize("at_once", [2**21, 2 * 3 * 36, 1])
@pytest.mark.parametrize(("masked", "asking"), [(True, None), (False, None), (False, 1)])
@pytest.mark.parametrize("tokens", [6, 30])  # the weights are kept up to 12
def test_equals_attention_in_fp64(tokens, masked, asking, at_once, native, monkeypatch):
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", at_once)
    torch.manual_seed(0)
    real = torch.tensor([[tokens], [2], [0]])
    mask = (torch.arange(tokens) < real) if masked else None
    asking = asking or tokens
    layout = Layout.of(torch.empty(3, tokens, 12), additive_mask(mask, torch.float32))
    wide = [torch.randn(3, count, 12).bfloat16().double() for count in (asking, tokens, tokens)]
    inputs = [(layout.pack(x) if masked else x.flatten(0, 1)).bfloat16().requires_grad_() for x in wide]
    wide = [x.requires_grad_() for x in wide]
    copies = [x.detach().clone() for x in inputs]
    found = attend(*inputs, layout, 3, native)
    expected = multi_head_attention(*wide, additive_mask(mask, torch.float64), 3, 0.0)
    assert found.shape == inputs[0].shape
    assert found.dtype == torch.bfloat16
    expected = layout.pack(expected) if masked else expected.flatten(0, 1)  # zeros behind the real rows
    weights = torch.randn_like(found)
    if masked:
        weights[tokens + 2 :] = 0
    found.backward(weights)
    expected.backward(weights.double())
    pairs = [(found, expected), *((x.grad, layout.pack(y.grad) if masked else y.grad.flatten(0, 1))
                                  for x, y in zip(inputs, wide, strict=True))]  # fmt: skip
    for a, b in pairs:
        assert (a.double() - b).norm() < 0.01 * b.norm()
    assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True))


@pytest.mark.parametrize(("tokens", "kept"), [(12, True), (13, False)])
def test_large_weights_do_not_wait_for_the_backward_pass(tokens, kept):
    layout = Layout.of(torch.empty(2, tokens, 12), None)
    query = torch.randn(2 * tokens, 12, dtype=torch.bfloat16, requires_grad=True)
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(t.shape), lambda nothing: nothing):
        attend(query, query, query, layout, num_heads=3)
    assert ((6, tokens, tokens) in shapes) == kept
