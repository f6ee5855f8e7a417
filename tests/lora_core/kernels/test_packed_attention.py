"""Attention of packed tokens against plain attention of padded ones, forward and gradients, by both routes.

No CPU has the kernel of variable lengths, so a stand-in with its arguments computes what it says by brute force; that
torch's own function takes the same call is shown on the meta device, where it computes shapes.
"""

import inspect
import math

import pytest
import torch

from lora_core.kernels import packed_attention, transformer_layer
from lora_core.kernels.linear import Products
from lora_core.kernels.packed_attention import VARLEN_ARGUMENTS, attend_packed, route, varlen_attention
from lora_core.kernels.packing import ROWS, Layout
from lora_core.models.host import keep_on_host
from lora_core.models.layers import additive_mask, multi_head_attention

HEADS, HIDDEN = 3, 24
HAS_VARLEN = varlen_attention() is not None
V100, TURING, A100, RTX_4090, H100 = (7, 0), (7, 5), (8, 0), (8, 9), (9, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("has_varlen", [True, False])
@pytest.mark.parametrize("capability", [None, V100, TURING, A100, RTX_4090, H100])
def test_the_route(capability, has_varlen, dropout, dtype):
    new, half = capability in (A100, RTX_4090, H100), dtype != torch.float32
    expected = "varlen" if new and half and has_varlen and not dropout else "padded"
    assert route(capability, dtype, 64, dropout, has_varlen=has_varlen) == expected


@pytest.mark.parametrize("size", [8, 32, 256, 12, 264])
def test_heads_that_the_kernel_takes(size):
    expected = "padded" if size in (12, 264) else "varlen"
    assert route(A100, torch.float16, size, 0.0, has_varlen=True) == expected


def brute_force(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None):
    """What torch's function says of itself: (rows, heads, D) each; sequences between the cumulative positions."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q == cu_seq_q.diff().max()
    assert max_k == cu_seq_k.diff().max()
    assert (cu_seq_q[0], cu_seq_q[-1]) == (0, len(query))
    assert (cu_seq_k[0], cu_seq_k[-1]) == (0, len(key))
    out = []
    for number in range(len(cu_seq_q) - 1):
        asked = query[cu_seq_q[number] : cu_seq_q[number + 1]]
        told = slice(int(cu_seq_k[number]), int(cu_seq_k[number + 1]))
        scores = torch.einsum("qnd,knd->nqk", asked, key[told]) * (scale or 1 / math.sqrt(query.shape[-1]))
        out.append(torch.einsum("nqk,knd->qnd", scores.softmax(-1), value[told]))
    return torch.cat(out)


@pytest.fixture
def by(request, monkeypatch):
    """A route that a CPU can take."""
    monkeypatch.setattr(packed_attention, "varlen_attention", lambda: brute_force)
    return request.param


BATCHES = {
    "padded at the end": torch.arange(11) < torch.tensor([[11], [2], [7]]),
    "padded anywhere": torch.tensor([[0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1]]) == 1,
    "no padding": torch.ones(3, 10, dtype=torch.bool),
    "one token": torch.tensor([[True, False, False]]),
    "a sentence of padding alone": torch.arange(9) < torch.tensor([[4], [0], [9]]),
    "rows without an empty one": torch.arange(20) < torch.tensor([[20], [12]]),
    "lengths in eights": torch.arange(16) < torch.tensor([[16], [9]]),
}


@pytest.mark.parametrize("by", ["varlen", "padded"], indirect=True)
@pytest.mark.parametrize("real", BATCHES.values(), ids=BATCHES.keys())
def test_equals_plain_attention(real, by):
    torch.manual_seed(0)
    padded = [torch.randn(*real.shape, HIDDEN, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    mask = additive_mask(real, torch.float64)
    layout = Layout.of(padded[0], mask)
    expected = multi_head_attention(*padded, mask, HEADS, 0.0)[real]
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, padded, weights)

    found = attend_packed(*(layout.pack(x) for x in padded), layout, HEADS, by=by)
    assert len(found) == (real.numel() if real.all() else -(-int(real.sum()) // ROWS) * ROWS)
    assert found.isfinite().all()
    got = torch.autograd.grad(found[: len(expected)], padded, weights)
    torch.testing.assert_close(found[: len(expected)], expected)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one[real], other[real])


@pytest.mark.parametrize("by", ["varlen", "padded"], indirect=True)
def test_the_first_tokens_alone_may_ask(by):
    torch.manual_seed(0)
    query, key, value = (torch.randn(4, tokens, HIDDEN, requires_grad=True) for tokens in (2, 9, 9))
    layout = Layout.of(key, None)
    expected = multi_head_attention(query, key, value, None, HEADS, 0.0)
    found = attend_packed(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), layout, HEADS, by=by)
    torch.testing.assert_close(found.view_as(expected), expected)
    weights = torch.randn_like(expected)
    got, wanted = (torch.autograd.grad(x, (query, key, value), weights.view_as(x)) for x in (found, expected))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_padded_lengths_are_multiples_of_eight(monkeypatch):
    seen = []

    def attention(query, key, value, mask, num_heads, dropout_p):
        seen.extend([query.shape[1], key.shape[1], value.shape[1], mask.shape[-1], mask.dtype])
        return multi_head_attention(query, key, value, mask, num_heads, dropout_p)

    monkeypatch.setattr(packed_attention, "multi_head_attention", attention)
    real = BATCHES["padded at the end"]
    hidden = torch.randn(*real.shape, HIDDEN)
    layout = Layout.of(hidden, additive_mask(real, torch.float32))
    packed = layout.pack(hidden).half()
    attend_packed(packed, packed, packed, layout, HEADS)
    assert seen == [16, 16, 16, 16, torch.float16]


def test_dropout_of_attention_weights():
    real = BATCHES["padded at the end"]
    hidden = torch.randn(*real.shape, HIDDEN)
    layout = Layout.of(hidden, additive_mask(real, torch.float32))
    packed, value = layout.pack(hidden), torch.ones(ROWS, HIDDEN)
    dropped = attend_packed(packed, packed, value, layout, HEADS, dropout_p=0.5)[: real.sum()]
    assert dropped.unique().numel() > 2
    assert dropped.mean().item() == pytest.approx(1, abs=0.2)
    torch.testing.assert_close(attend_packed(packed, packed, value, layout, HEADS)[: real.sum()], value[: real.sum()])


@pytest.mark.skipif(not HAS_VARLEN, reason="torch has no attention of variable lengths before 2.10")
def test_torchs_own_function_takes_the_call():
    found = varlen_attention()
    assert found is not None
    theirs, ours = inspect.signature(found).parameters, inspect.signature(brute_force).parameters
    assert tuple(theirs)[:7] == tuple(ours)[:7] == VARLEN_ARGUMENTS
    assert all(parameter.default is not inspect.Parameter.empty for parameter in list(theirs.values())[7:])
    assert theirs["scale"].default is None
    real = BATCHES["padded at the end"]
    mask = additive_mask(keep_on_host(real.to("meta"), real), torch.float32)
    layout = Layout.of(torch.empty(*real.shape, HIDDEN, device="meta"), mask)  # nothing is asked of the device
    assert layout.index is not None
    assert layout.index.device.type == "meta"
    packed = [torch.empty(ROWS, HIDDEN, dtype=torch.float16, device="meta", requires_grad=True) for _ in range(3)]
    out = attend_packed(*packed, layout, HEADS, by="varlen")
    assert (out.shape, out.dtype) == ((ROWS, HIDDEN), torch.float16)
    out.sum().backward()
    assert all(x.grad is not None and x.grad.shape == x.shape for x in packed)
    assert layout.boundaries[0].shape == (3 + 2,)


def test_a_function_that_is_called_in_another_way_is_left_alone(monkeypatch):
    class Other:
        @staticmethod
        def varlen_attn(query, key, value, lengths):
            raise AssertionError

    varlen_attention.cache_clear()
    monkeypatch.setattr(packed_attention.importlib, "import_module", lambda name: Other)
    try:
        assert varlen_attention() is None
    finally:
        varlen_attention.cache_clear()


@pytest.mark.parametrize("masked", [True, False])
def test_a_layer_on_a_device_attends_in_packed_rows(make, masked, monkeypatch):
    """The layer itself hands its packed rows on, and asks the device for nothing."""
    seen = []

    def attention(query, key, value, layout, num_heads, dropout_p):
        seen.append((query.shape, num_heads, dropout_p))
        return attend_packed(query, key, value, layout, num_heads, dropout_p)

    monkeypatch.setattr(transformer_layer, "attend_packed", attention)
    monkeypatch.setattr(transformer_layer, "project", lambda x, layers, products: tuple(layer(x) for layer in layers))
    real = BATCHES["padded at the end"]
    layer = make("bert", attention_probs_dropout_prob=0.25).train().get_submodule("bert.encoder.layer.0").to("meta")
    hidden = torch.empty(*real.shape, HIDDEN, device="meta")
    mask = additive_mask(keep_on_host(real.to("meta"), real), torch.float32) if masked else None
    layout = Layout.of(hidden, mask)
    packed = layout.pack(hidden)
    out = transformer_layer.attention(layer.parts(), packed, packed, layout, Products(), (), None)
    rows = ROWS if masked else real.numel()
    assert seen == [((rows, HIDDEN), HEADS, 0.25)]
    assert out.shape == (rows, HIDDEN)
