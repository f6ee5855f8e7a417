"""Masks that are made from a seed, against dropout's definition: as tests/lora_core/test_dropout.py."""

import math

import pytest
import torch

from lora_core.kernels import dropout
from lora_core.kernels.dropout import add_dropped, draw_keep, drop
from lora_core.kernels.native.build import ops

SHAPE = (1000, 500)
needs_native = pytest.mark.skipif(ops() is None, reason="no C++ kernels here: no compiler, or LORA_CORE_NATIVE=0")


def mask(keep, shape=SHAPE):
    return drop(torch.ones(shape), keep)


@needs_native
@pytest.mark.parametrize("p", [0.001, 0.1, 0.37, 0.5, 0.9, 1 - 2**-15])
def test_rate_and_scaling(p):
    torch.manual_seed(0)
    keep, scale = draw_keep(torch.empty(SHAPE), p)
    kept = mask(keep)
    assert (keep.dtype, keep.shape) == (torch.int64, (2,))
    assert set(kept.unique().tolist()) == {0, 1}
    deviation = math.sqrt(p * (1 - p) / kept.numel())
    assert abs(1 - kept.mean().item() - p) < 4 * deviation
    assert scale == pytest.approx(1 / (1 - p), rel=2**-15 / (1 - p))


@needs_native
def test_elements_are_independent():
    """Of each other, at any distance, within a number of four elements too, and from seed to seed, near ones too."""
    torch.manual_seed(0)
    keep, _ = draw_keep(torch.empty(SHAPE), 0.3)
    other = draw_keep(torch.empty(SHAPE), 0.3)[0]
    near = keep + torch.tensor([1, 0])
    masks = torch.stack([mask(k).flatten() for k in (keep, other, near)]) - 0.7
    first, *others = masks / masks.std()
    count = len(first)
    for distance in (1, 2, 3, 4, 8, 128, 500):
        assert abs(float(first[:-distance] @ first[distance:])) / count < 4 / math.sqrt(count), distance
    for second in others:
        assert abs(float(first @ second)) / count < 4 / math.sqrt(count)
    rows, columns = first.view(SHAPE).mean(1), first.view(SHAPE).mean(0)
    assert rows.std().item() == pytest.approx(1 / math.sqrt(SHAPE[1]), rel=0.1)
    assert columns.std().item() == pytest.approx(1 / math.sqrt(SHAPE[0]), rel=0.15)


@needs_native
def test_masks_of_one_seed_agree_whatever_the_dtype_and_the_threads():
    keep, _ = draw_keep(torch.empty(640, 385), 0.4)
    threads = torch.get_num_threads()
    expected = mask(keep, (640, 385))
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(mask(keep, (640, 385)), expected)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(drop(torch.ones(640, 385, dtype=torch.bfloat16), keep).float(), expected)
    assert torch.equal(mask(keep, (3, 5)).flatten(), expected.flatten()[:15])


def test_torchs_seed_decides():
    x = torch.empty(50, 50)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, other = (mask(draw_keep(x, 0.5)[0], x.shape) for _ in range(2))
    torch.set_rng_state(state)
    assert torch.equal(mask(draw_keep(x, 0.5)[0], x.shape), first)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_drop_and_its_sum(dtype, native, monkeypatch):
    if not native:
        monkeypatch.setattr(dropout, "ops", lambda: None)
    x = torch.tensor([[1.5, -2.5, -0.0], [math.inf, math.nan, 7]], dtype=dtype).T.repeat(40, 3)
    keep, _ = draw_keep(x, 0.5)
    kept = mask(keep, x.shape).bool()
    before = x.clone()
    found = drop(x, keep)
    torch.testing.assert_close(found, torch.where(kept, x, 0), equal_nan=True)
    torch.testing.assert_close(x, before, equal_nan=True)
    y = torch.randn(x.shape).to(dtype)
    expected = y + torch.where(kept, x, 0)
    assert add_dropped(y, x, keep) is y
    torch.testing.assert_close(y, expected, equal_nan=True)
    assert found.dtype == y.dtype == dtype


def test_other_dtypes_have_a_mask():
    keep, _ = draw_keep(torch.empty(7, 5, dtype=torch.float64), 0.5)
    assert (keep.dtype, keep.shape) == (torch.uint8, (7, 5))
