"""Dropout, residual sum and LayerNorm in one pass, against the three modules in fp64."""

import pytest
import torch
from torch import nn

from lora_core.kernels import residual
from lora_core.kernels.dropout import drop
from lora_core.kernels.native.build import ops
from lora_core.kernels.residual import add_norm

native = ops()
pytestmark = pytest.mark.skipif(native is None, reason="no C++ kernels here: no compiler, or LORA_CORE_NATIVE=0")


def trained(width, affine=True, bias=True):
    norm = nn.LayerNorm(width, eps=1e-5, elementwise_affine=affine, bias=bias)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1.0, 0.5)
    return norm


def run(norm, x, added, weights, keep=None, scale=1.0):
    """The result and all gradients, the plain way and in fp64 with the mask ``keep``."""
    wide = nn.LayerNorm(x.shape[1], norm.eps, norm.elementwise_affine, norm.bias is not None).double()
    wide.load_state_dict(norm.state_dict())
    x, added = (t.detach().double().requires_grad_() for t in (x, added))
    kept = x if keep is None else x * keep.double() * scale
    out = wide(kept + added)
    out.backward(weights.double())
    return [out.detach(), x.grad, added.grad, *(p.grad for p in wide.parameters())]


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 384), (7, 33), (32, 100), (200, 768), (640, 384), (2, 1)])
def test_equals_the_modules(size, dtype, p, monkeypatch):
    torch.manual_seed(0)
    drawn = []
    draw = residual.draw_keep
    monkeypatch.setattr(residual, "draw_keep", lambda x, p: drawn.append(draw(x, p)) or drawn[-1])
    norm = trained(size[1])
    x = torch.randn(size).to(dtype).requires_grad_()
    added, weights = (torch.randn(size) + 3).requires_grad_(), torch.randn(size)
    out = add_norm(x, added, nn.Dropout(p), norm, native)
    out.backward(weights)
    keep, scale = drawn[0] if p else (None, 1.0)
    expected = run(norm, x, added, weights, None if keep is None else drop(torch.ones(size), keep), scale)
    assert x.grad.dtype == dtype
    found = [out, x.grad, added.grad, *(parameter.grad for parameter in norm.parameters())]
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        tolerance = 0.005 if dtype == torch.bfloat16 and number == 1 else 1e-5
        assert (a.double() - b).abs().max() <= tolerance * max(1.0, float(b.abs().max())), number


@pytest.mark.parametrize(("affine", "bias"), [(False, False), (True, False)])
def test_norms_without_parameters(affine, bias):
    norm, x, added, weights = trained(20, affine, bias), *(torch.randn(9, 20) for _ in range(3))
    x.requires_grad_()
    out = add_norm(x, added, None, norm, native)
    out.backward(weights)
    expected = run(norm, x, added, weights)
    torch.testing.assert_close(out.double(), expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad.double(), expected[1], atol=1e-5, rtol=1e-5)


def test_only_what_is_wanted_is_computed():
    norm, added = trained(20), torch.randn(9, 20, requires_grad=True)
    norm.weight.requires_grad_(False)
    out = add_norm(torch.randn(9, 20), added, nn.Dropout(0.5), norm, native)
    out.sum().backward()
    assert norm.weight.grad is None
    assert norm.bias is not None
    torch.testing.assert_close(norm.bias.grad, torch.full((20,), 9.0))
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)), lambda nothing: nothing):
        add_norm(added, added, nn.Dropout(0.5), norm, native)
    assert sorted(shapes) == [(2,), (9, 2), (9, 20), (20,)]  # no mask


def test_threads_do_not_matter():
    norm, x, added, weights = trained(384), *(torch.randn(700, 384) for _ in range(3))
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(5)
            norm.zero_grad()
            inputs = x.clone().requires_grad_(), added.clone().requires_grad_()
            out = add_norm(*inputs, nn.Dropout(0.1), norm, native)
            out.backward(weights)
            found.append([out, *(t.grad for t in inputs), *(parameter.grad for parameter in norm.parameters())])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


def test_a_nan_stays_in_its_row():
    x = torch.randn(4, 40)
    x[2, 7] = torch.nan
    out = add_norm(x, torch.zeros(4, 40), None, trained(40), native)
    assert out.isnan().any(1).tolist() == [False, False, True, False]


def test_another_norm_or_dropout_that_leaves_nothing_is_the_modules_own():
    x, added = torch.randn(9, 20), torch.randn(9, 20)
    norm = nn.RMSNorm(20)
    torch.testing.assert_close(add_norm(x, added, None, norm, native), norm(x + added))
    norm = trained(20)
    torch.testing.assert_close(add_norm(x, added, nn.Dropout(1.0), norm, native), norm(added))
