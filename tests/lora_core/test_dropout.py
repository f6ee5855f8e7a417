"""Dropout against its definition: rate, scaling, independence, gradient."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lora_core.dropout import Dropout, drop, dropout_add, keep_mask

SHAPE = (1000, 500)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.37, 0.5, 0.9])
def test_rate_and_scaling(p):
    torch.manual_seed(0)
    keep, scale = keep_mask(SHAPE, p)
    assert keep.dtype == torch.uint8
    assert set(keep.unique().tolist()) == {0, 1}
    deviation = math.sqrt(p * (1 - p) / keep.numel())
    assert abs(1 - keep.float().mean().item() - p) < 4 * deviation
    assert scale == pytest.approx(1 / (1 - p), rel=2**-15 / (1 - p))


def test_elements_are_independent():
    """Of each other, at any distance, within a draw of eight bytes too, and from call to call."""
    torch.manual_seed(0)
    keep = torch.stack([keep_mask(SHAPE, 0.3)[0].flatten().float() for _ in range(2)]) - 0.7
    first, second = keep / keep.std()
    count = len(first)
    for distance in (1, 2, 3, 4, 8, 500):
        assert abs(float(first[:-distance] @ first[distance:])) / count < 4 / math.sqrt(count), distance
    assert abs(float(first @ second)) / count < 4 / math.sqrt(count)
    rows, columns = first.view(SHAPE).mean(1), first.view(SHAPE).mean(0)
    assert rows.std().item() == pytest.approx(1 / math.sqrt(SHAPE[1]), rel=0.1)
    assert columns.std().item() == pytest.approx(1 / math.sqrt(SHAPE[0]), rel=0.15)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7)])
def test_any_shape(shape):
    keep, _ = keep_mask(shape, 0.5)
    assert keep.shape == shape


def test_torchs_seed_decides():
    torch.manual_seed(3)
    first, other = keep_mask((50, 50), 0.5)[0], keep_mask((50, 50), 0.5)[0]
    torch.manual_seed(3)
    assert torch.equal(keep_mask((50, 50), 0.5)[0], first)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("in_place", [False, True])
def test_drop(dtype, in_place):
    x = torch.tensor([[1.5, -2.5, -0.0], [math.inf, math.nan, 7]], dtype=dtype).T  # not contiguous
    keep = torch.tensor([[1, 0, 1], [0, 0, 1]], dtype=torch.uint8).T
    before = x.clone()
    found = drop(x, keep, in_place=in_place)
    assert found.tolist() == [[1.5, 0], [0, 0], [0, 7]]
    assert found.dtype == dtype
    torch.testing.assert_close(x, found if in_place else before, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_module(dtype):
    x = torch.randn(300, 40, dtype=dtype, requires_grad=True)
    dropout = Dropout(0.25)
    torch.manual_seed(1)
    out = dropout(x)
    torch.manual_seed(1)
    keep, scale = keep_mask(x.shape, 0.25)
    torch.testing.assert_close(out, torch.where(keep.bool(), x * scale, 0))
    out.backward(torch.ones_like(out))
    torch.testing.assert_close(x.grad, keep.to(dtype) * scale)
    assert out.dtype == x.grad.dtype == dtype
    assert dropout.eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert not Dropout(1.0)(x).any()
    assert not Dropout(1 - 2**-20)(x).isnan().any()


def test_what_waits_for_the_backward_pass_is_one_byte_an_element():
    kept = []
    x = torch.randn(30, 40, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes), lambda nothing: nothing):
        Dropout(0.5)(x)
        dropout_add(x, x, nn.Dropout(0.5))
    assert kept == [x.numel()] * 2


@pytest.mark.parametrize("narrow", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [nn.Dropout(0.4), nn.Dropout(0.4).eval(), nn.Dropout(0.0), nn.Dropout(1.0)])
def test_dropout_add(dropout, narrow):
    x = torch.randn(20, 6).to(narrow).requires_grad_()
    residual = torch.randn(20, 6, requires_grad=True)
    torch.manual_seed(2)
    out = dropout_add(x, residual, dropout)
    torch.manual_seed(2)
    factors = torch.ones(20, 6)
    if dropout.training and dropout.p == 1.0:
        factors = F.dropout(factors, 1.0)
    elif dropout.training and dropout.p:
        keep, scale = keep_mask(x.shape, dropout.p)
        factors = keep * scale
    torch.testing.assert_close(out, x * factors + residual)
    assert out.dtype == torch.float32
    out.backward(weights := torch.randn(20, 6))
    torch.testing.assert_close(x.grad, (weights * factors).to(narrow))
    torch.testing.assert_close(residual.grad, weights)
