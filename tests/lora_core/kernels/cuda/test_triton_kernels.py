"""Triton's kernels against the same products in torch: compiled where there is a GPU for them, else in its interpreter.

The products in torch take the mask that the kernels make of a seed, so that both drop the same.
"""

import pytest
import torch

from lora_core.kernels.cuda import products
from lora_core.kernels.cuda.products import Mask

triton_kernels = pytest.importorskip("lora_core.kernels.cuda.triton_kernels")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cuda" and torch.cuda.get_device_capability() < (8, 0):
    pytest.skip("Triton has no kernels for this GPU", allow_module_level=True)
pytestmark = pytest.mark.cuda

SIZES = [(1, 1, 1, 1), (2, 7, 3, 5), (3, 32, 16, 32), (2, 37, 17, 24), (1, 20, 8, 70)]
"""adapters, N, r, C: single numbers, odd ones, whole blocks, more than a block of any."""
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.003}
CASES = [(size, torch.float32) for size in SIZES] + [(SIZES[3], torch.float16)]
if DEVICE == "cuda":
    CASES += [(size, torch.bfloat16) for size in SIZES]  # the interpreter multiplies the bits of bf16 as integers
each_case = pytest.mark.parametrize(("size", "dtype"), CASES, ids=str)


@pytest.fixture(autouse=True)
def blocks(monkeypatch, request):
    """Other sizes for the interpreter, which is slow: small blocks for small inputs, a large one for many numbers."""
    if DEVICE == "cpu":
        size = 128 if request.function.__name__ in ("test_rate", "test_masks_are_independent") else 32
        monkeypatch.setattr(triton_kernels, "ROWS", size)
        monkeypatch.setattr(triton_kernels, "COLUMNS", size)


def random(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def kept(mask, adapters, rows, columns):
    """What a mask of the kernels keeps, (n, N, C), found by adding products that are 1 everywhere."""
    found = torch.zeros(rows, adapters * columns, device=DEVICE)
    s, factors = torch.ones(rows, adapters, device=DEVICE), torch.ones(adapters, 1, columns, device=DEVICE)
    triton_kernels.up_(found, s, factors, mask, apart=True)
    return found.unflatten(1, (adapters, columns)).transpose(0, 1)


def assert_near(found, expected, dtype):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    error = (found.double() - expected.double()).abs().max()
    assert error <= TOLERANCE[dtype] * expected.double().abs().max().clamp_min(1e-3), float(error)


@pytest.fixture(params=[None, 0.25], ids=["no dropout", "dropout"])
def p(request):
    return request.param


def masks(x, p, adapters):
    """The kernels' mask, and the same for the products in torch."""
    if p is None:
        return None, None
    torch.manual_seed(5)
    mask = triton_kernels.new_mask(x, p, adapters)
    return mask, Mask(kept(mask, adapters, *x.shape).to(torch.uint8), p)


@each_case
def test_down(size, dtype, p):
    adapters, rows, rank, columns = size
    x, factors = random(rows, columns, dtype=dtype), random(adapters, rank, columns, seed=1)
    mask, same = masks(x, p, adapters)
    expected = products.down(x, factors, same, scale=1.5)
    assert_near(triton_kernels.down(x, factors, mask, scale=1.5), expected, dtype)


@each_case
def test_down_of_own_columns(size, dtype):
    """The input has columns more than the adapters read, and the factors are not contiguous."""
    adapters, rows, rank, columns = size
    x, factors = random(rows, adapters * columns + 3, dtype=dtype), random(adapters, columns, rank, seed=1).mT
    expected = products.down(x, factors, apart=True)
    assert_near(triton_kernels.down(x, factors, apart=True), expected, dtype)


@each_case
def test_up(size, dtype, p):
    adapters, rows, rank, columns = size
    s, factors = random(rows, adapters * rank, dtype=dtype), random(adapters, rank, columns, seed=1)
    found = random(rows, columns, dtype=dtype, seed=2)
    mask, same = masks(found, p, adapters)
    expected = found.clone()
    products.up_(expected, s, factors, same, scale=0.5)
    triton_kernels.up_(found, s, factors, mask, scale=0.5)
    assert_near(found, expected, dtype)


@each_case
def test_up_to_own_columns(size, dtype):
    adapters, rows, rank, columns = size
    s, factors = random(rows, adapters * rank, dtype=dtype), random(adapters, columns, rank, seed=1).mT
    found = random(rows, adapters * columns + 3, dtype=dtype, seed=2)
    expected = found.clone()
    products.up_(expected, s, factors, apart=True, scale=0.5)
    triton_kernels.up_(found, s, factors, apart=True, scale=0.5)
    assert_near(found, expected, dtype)
    assert torch.equal(found[:, -3:], expected[:, -3:])


@pytest.mark.parametrize("apart", [False, True])
@each_case
def test_reduce(size, dtype, apart, p):
    adapters, rows, rank, columns = size
    s = random(rows, adapters * rank, dtype=dtype)
    x = random(rows, adapters * columns + 3 if apart else columns, dtype=dtype, seed=1)
    mask, same = masks(x[:, :columns], p, adapters)
    shape = (adapters, rank, columns)
    expected = products.reduce(s.float(), x.float(), shape, same, apart=apart, scale=2.0)
    assert_near(triton_kernels.reduce(s, x, shape, mask, apart=apart, scale=2.0), expected, dtype)


def test_many_rows_are_summed_in_parts(monkeypatch):
    monkeypatch.setattr(triton_kernels, "SPLITS", 3)
    s, x = random(300, 4), random(300, 10, seed=1)
    expected = products.reduce(s, x, (1, 4, 10))
    found = [triton_kernels.reduce(s, x, (1, 4, 10)) for _ in range(2)]
    assert_near(found[0], expected, torch.float32)
    assert torch.equal(*found)


def test_nothing_comes_of_no_rows():
    x, factors = random(0, 10), random(2, 4, 10)
    assert triton_kernels.down(x, factors).shape == (0, 8)
    triton_kernels.up_(x, random(0, 8), factors)
    assert torch.equal(triton_kernels.reduce(random(0, 8), x, (2, 4, 10)), torch.zeros(2, 4, 10, device=DEVICE))


@pytest.mark.parametrize("p", [0.1, 0.75])
def test_rate(p):
    """In all rows, columns, and adapters: counts are binomial, so within five standard deviations."""
    torch.manual_seed(3)
    rows, columns = 128, 70
    found = kept(triton_kernels.new_mask(random(rows, columns), p, 3), 3, rows, columns)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    for counts, of in (
        (found.sum((1, 2)), rows * columns),
        (found.sum((0, 1)), 3 * rows),
        (found.sum((0, 2)), 3 * columns),
    ):
        assert ((counts - of * (1 - p)).abs() < 5 * (of * p * (1 - p)) ** 0.5).all()


def test_masks_are_independent():
    """Of each other's adapters, of neighbours in rows and columns, and of those of another seed."""
    torch.manual_seed(3)
    x, p = random(128, 70), 0.5
    one, other = (kept(triton_kernels.new_mask(x, p, 3), 3, *x.shape) - 0.5 for _ in range(2))
    pairs = {
        "seeds": (one, other),
        "adapters": (one[0], one[1]),
        "rows": (one[:, 1:], one[:, :-1]),
        **{f"{d} columns": (one[..., d:], one[..., :-d]) for d in (1, 2, 4, 16)},
    }
    for name, (a, b) in pairs.items():
        correlation = 4 * (a * b).mean()
        assert abs(correlation) < 5 / a.numel() ** 0.5, (name, float(correlation))


def test_the_same_seed_gives_the_same_mask():
    x = random(40, 20)
    torch.manual_seed(3)
    mask = triton_kernels.new_mask(x, 0.5, 2)
    torch.manual_seed(3)
    again = triton_kernels.new_mask(x, 0.5, 2)
    assert torch.equal(kept(mask, 2, *x.shape), kept(again, 2, *x.shape))
    assert mask.state.numel() == 1
