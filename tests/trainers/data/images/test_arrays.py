"""Arrays and tensors of one picture: all of them give the pixels that they were made of, or are refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.data.images.arrays import eight_bit_pixels

RANDOM = np.random.default_rng(0)
SHAPES = st.sampled_from([(5, 7), (1, 1), (5, 7, 3), (6, 5, 4), (4, 4, 3), (1, 1, 3)])


def as_float(pixels, dtype):
    return (pixels / 255).astype(dtype)


@given(shape=SHAPES, seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_every_type_gives_the_same_pixels(shape, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    tensor = torch.from_numpy(pixels)
    first = tensor.permute(2, 0, 1) if tensor.ndim == 3 else tensor[None]
    ways = [pixels, pixels.astype(np.uint16) * 257, as_float(pixels, np.float64), as_float(pixels, np.float32),
            as_float(pixels, np.float16), np.asfortranarray(pixels), first, first.float() / 255]  # fmt: skip
    if pixels.ndim == 2:
        ways += [pixels[:, :, None], tensor, tensor.float() / 255]
    for way in ways:
        found = eight_bit_pixels(way)
        assert found.dtype == np.uint8
        assert np.array_equal(found, pixels), (way.shape, way.dtype)


def test_channels_first_and_last_are_told_apart():
    pixels = RANDOM.integers(0, 256, (9, 8, 3), dtype=np.uint8)
    for way in (pixels, pixels.transpose(2, 0, 1), torch.from_numpy(pixels), torch.from_numpy(pixels).permute(2, 0, 1)):
        assert np.array_equal(eight_bit_pixels(way), pixels)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (np.zeros((3, 50, 3), np.uint8), "can be 50 x 3 pixels with channels first or 3 x 50 with channels last"),
        (torch.zeros(3, 50, 3), "can be 50 x 3 pixels"),
        (np.zeros((5, 6, 2), np.uint8), r"shape is \(5, 6, 2\), expected \(H, W\), \(H, W, C\) or \(C, H, W\)"),
        (np.zeros((2, 5, 6, 3), np.uint8), "expected"),
        (np.zeros(5, np.uint8), "expected"),
        (np.zeros((0, 5), np.uint8), "no pixels"),
        (np.full((5, 6), 1.5), "numbers from 1.5 to 1.5, expected 0 to 1. Divide"),
        (np.full((5, 6), -0.5), "expected 0 to 1"),
        (np.array([[0.5, np.nan]]), "expected 0 to 1"),
        (np.zeros((5, 6), np.int64), "pixels are int64, which does not tell what white is: expected uint8"),
        (torch.zeros((5, 6), dtype=torch.int32), "int32"),
    ],
)
def test_what_is_ambiguous_is_refused(values, problem):
    with pytest.raises(ValueError, match=problem):
        eight_bit_pixels(values)


def test_black_and_white_and_halves():
    assert eight_bit_pixels(np.array([[True, False]])).tolist() == [[255, 0]]
    assert eight_bit_pixels(np.array([[0, 128, 129, 65535]], np.uint16)).tolist() == [[0, 0, 1, 255]]
    assert eight_bit_pixels(torch.tensor([[0.0, 0.25, 1.0]], dtype=torch.bfloat16)).tolist() == [[0, 64, 255]]
