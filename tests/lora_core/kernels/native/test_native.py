"""The C++ operators against what they are documented to compute, written in torch."""

import pytest
import torch

from lora_core.kernels.native.build import ops

native = ops()
pytestmark = pytest.mark.skipif(native is None, reason="no C++ kernels here: no compiler, or LORA_CORE_NATIVE=0")

SIZES = [(1, 384), (7, 33), (32, 100), (3, 1), (0, 5), (640, 768)]
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@both_dtypes
@pytest.mark.parametrize("size", SIZES)
def test_quantize_rows(size, dtype):
    torch.manual_seed(0)
    x = (torch.randn(size) * torch.logspace(-20, 20, size[0])[:, None]).to(dtype)
    q, scale = native.quantize_rows(x)
    wide = x.double()
    torch.testing.assert_close(scale.double(), wide.abs().amax(1) / 127, rtol=1e-6, atol=0)
    steps = wide / (wide.abs().amax(1, keepdim=True) / 127)
    assert q.dtype == torch.uint8
    assert not ((q.double() - 128 - steps).abs() > 0.5 + 1e-5).any()
    assert q.min() >= 1 if q.numel() else True


def test_rows_that_have_no_scale():
    x = torch.randn(6, 40)
    x[1] = 0
    x[2, 3], x[3, 39], x[4, 0] = torch.nan, torch.inf, -torch.inf
    x[5] *= 1e-38
    q, scale = native.quantize_rows(x)
    assert scale.isnan().tolist() == [False, False, True, True, True, False]
    assert (q[1] == 128).all()
    assert scale[1] == 0
    y = native.rescale_rows_(q.float() - 128, scale, None)
    assert y.isnan().all(1).tolist() == [False, False, True, True, True, False]
    torch.testing.assert_close(y[:2], x[:2], atol=0.02, rtol=0)
    torch.testing.assert_close(y[5], x[5])


@both_dtypes
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_rescale_rows(size, with_bias, dtype):
    y, scale = torch.randn(size).to(dtype), torch.rand(size[0])
    bias = torch.randn(size[1]) if with_bias else None
    expected = y.float() * scale[:, None] + (0 if bias is None else bias)
    found = native.rescale_rows_(y, scale, bias)
    assert found.data_ptr() == y.data_ptr()
    torch.testing.assert_close(y, expected.to(dtype))


def test_what_does_not_fit_is_refused():
    x = torch.randn(4, 6)
    for wrong in (x.T, x.double(), x[0]):
        with pytest.raises(RuntimeError):
            native.quantize_rows(wrong)
    for scale, bias in ((torch.ones(3), None), (torch.ones(4), torch.ones(5)), (torch.ones(4).double(), None)):
        with pytest.raises(RuntimeError):
            native.rescale_rows_(x, scale, bias)


def test_threads_do_not_matter():
    x = torch.randn(640, 384)
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(native.quantize_rows(x))
    finally:
        torch.set_num_threads(threads)
    for q, scale in found[1:]:
        assert torch.equal(q, found[0][0])
        assert torch.equal(scale, found[0][1])


@both_dtypes
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("index", [None, [0, 1, 2, 3, 4, 5, 6, 7, 14, 15, 16]])
def test_heads_of_packed_rows(index, scale, dtype):
    """3 sentences of 7 tokens with 2 heads of 5."""
    places = torch.arange(21) if index is None else torch.tensor(index)
    rows = 21 if index is None else 32
    wide = torch.randn(rows, 30).to(dtype)
    x = wide[:, 10:20]  # some columns of wider rows
    index = None if index is None else places
    padded = torch.zeros(21, 10, dtype=dtype)
    padded[places] = x[: len(places)]
    expected = padded.view(3, 7, 2, 5).transpose(1, 2).flatten(0, 1)
    found = native.split_heads(x, index, 3, 7, 2, scale)
    torch.testing.assert_close(found, expected * scale)
    back = native.join_heads(expected.contiguous(), index, rows, 2, scale)
    torch.testing.assert_close(back[: len(places)], x[: len(places)] * scale)
    assert not back[len(places) :].any()
