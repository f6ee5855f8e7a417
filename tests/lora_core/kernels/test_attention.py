import pytest
import torch

from lora_core.kernels import attention
from lora_core.kernels.attention import attend, attend_short, is_short
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


@pytest.mark.skipif(ops() is None, reason="no C++ kernels here: no compiler, or LORA_CORE_NATIVE=0")
@pytest.mark.parametrize(("masked", "asking"), [(True, None), (False, None), (False, 1)])
def test_short_sentences_are_attended_to_as_any(masked, asking):
    torch.manual_seed(0)
    holes = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 0]]).bool()
    mask = additive_mask(holes if masked else None, torch.float32)
    layout = Layout.of(torch.empty(4, 6, 12), mask)
    padded = [torch.randn(4, count, 12) for count in (asking or 6, 6, 6)]
    inputs = [(layout.pack(x) if masked else x.flatten(0, 1)).requires_grad_() for x in padded]
    copies = [x.detach().clone().requires_grad_() for x in inputs]
    found = attend_short(*inputs, layout, 3, ops())
    wide = [layout.pad(x) for x in copies]
    expected = multi_head_attention(*wide, mask, 3, 0.0)
    expected = layout.pack(expected) if masked else expected.flatten(0, 1)
    real = int(holes.sum()) if masked else len(found)
    torch.testing.assert_close(found[:real], expected[:real])
    assert found.isfinite().all()
    found[:real].square().sum().backward()
    expected[:real].square().sum().backward()
    for one, other in zip(inputs, copies, strict=True):
        torch.testing.assert_close(one.grad[:real], other.grad[:real], atol=1e-5, rtol=1e-5)


def test_which_sentences_are_short():
    def short(tokens, size, dtype):
        return is_short(torch.empty(tokens, 2 * size, dtype=dtype), Layout.of(torch.empty(1, tokens, 1), None), 2)

    assert [short(t, 64, torch.float32) for t in (1, 192, 193)] == [True, True, False]
    assert [short(20, size, torch.bfloat16) for size in (32, 33)] == [True, False]
