import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lora_core.models.checks import check_input
from lora_core.models.layers import (
    ACTIVATIONS,
    GatedActivation,
    activation,
    additive_mask,
    multi_head_attention,
    outside_window,
    windowed_attention,
)


def test_attention_equals_the_formula():
    """softmax(Q K^T / sqrt(D) + mask) V, head by head."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 5, 6).unbind()
    mask = additive_mask(torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]), torch.float32)
    expected = torch.empty(2, 5, 6)
    for head in range(3):
        part = slice(2 * head, 2 * head + 2)
        scores = query[..., part] @ key[..., part].mT / 2**0.5 + mask[:, 0]
        expected[..., part] = scores.softmax(-1) @ value[..., part]
    torch.testing.assert_close(multi_head_attention(query, key, value, mask, 3, 0.0), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_mask_gives_padding_no_weight_and_is_finite(dtype):
    mask = additive_mask(torch.tensor([[1, 1, 0], [0, 0, 0]]), dtype)
    assert mask.shape == (2, 1, 1, 3)
    assert mask.dtype == dtype
    assert mask.isfinite().all()
    scores = torch.tensor([[3.0, -2.0, 9.0], [1.0, 1.0, 1.0]], dtype=dtype)
    weights = (scores + mask[:, 0, 0]).softmax(-1)
    assert weights[0, 2] == 0
    torch.testing.assert_close(weights[1].float(), torch.full((3,), 1 / 3), rtol=1e-2, atol=1e-2)


def test_no_mask_stays_no_mask():
    assert additive_mask(None, torch.float32) is None


def test_attention_dropout_scales_what_it_keeps():
    torch.manual_seed(0)
    value = torch.ones(1, 400, 2)
    zeros = torch.zeros_like(value)
    attended = multi_head_attention(zeros, zeros, value, None, 1, 0.5)
    assert attended.std() > 0
    torch.testing.assert_close(attended.mean(), torch.tensor(1.0), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("window", [1, 3, 8])
@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 24, 25])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_in_blocks_equals_a_mask_over_all_pairs(window, tokens, masked):
    """At padding too, so that graphs and blocks give the same."""
    torch.manual_seed(0)
    inputs = torch.randn(3, 3, tokens, 6)
    lengths = torch.tensor([tokens, max(1, tokens // 3), 1])
    mask = additive_mask(torch.arange(tokens) < lengths[:, None], torch.float32) if masked else None
    outside = outside_window(tokens, window, torch.float32)
    assert torch.equal(outside == 0, (torch.arange(tokens) - torch.arange(tokens)[:, None]).abs() <= window)
    both = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    expected = multi_head_attention(*both[0], outside if mask is None else outside + mask, 3, 0.0)
    found = windowed_attention(*both[1], mask, 3, 0.0, window)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(found)
    for result in (expected, found):
        (result * weights).sum().backward()
    torch.testing.assert_close(both[1].grad, both[0].grad, rtol=1e-5, atol=1e-5)


def test_attention_in_blocks_needs_no_score_for_every_pair():
    """At 2,048 tokens a mask over all pairs would be 16 MB; the largest tensor here has the size of the inputs."""
    query, key, value = torch.randn(3, 1, 2048, 8)
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            found = func(*args, **(kwargs or {}))
            for tensor in found if isinstance(found, tuple) else (found,):
                largest = max(largest, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
            return found

    with Sizes():
        windowed_attention(query, key, value, None, 1, 0.0, 8)
    assert largest <= 2048 * 3 * 8


@pytest.mark.parametrize("name", ["gelu", "silu", "relu"])
def test_the_first_half_is_activated_and_the_second_is_its_gate(name):
    x = torch.randn(2, 5, 8)
    gated = GatedActivation(activation(name), 0.5).eval()
    torch.testing.assert_close(gated(x), activation(name)(x[..., :4]) * x[..., 4:])
    dropped = gated.train()(torch.ones(1, 4000))
    assert 0.4 < (dropped == 0).float().mean() < 0.6


def test_activations_are_those_of_transformers():
    from transformers.activations import ACT2FN

    x = torch.linspace(-6, 6, 101)
    for name in ACTIVATIONS:
        torch.testing.assert_close(activation(name)(x), ACT2FN[name](x), rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("ids_shape", "mask_shape", "message"),
    [
        ((4,), None, r"input_ids has shape \(4,\)"),
        ((1, 9), None, "9 tokens a sentence, the model positions for 8"),
        ((2, 4), (2, 5), r"attention_mask has shape \(2, 5\); expected that of input_ids, \(2, 4\)"),
    ],
)
def test_misshapen_input_is_named(ids_shape, mask_shape, message):
    mask = None if mask_shape is None else torch.ones(mask_shape)
    with pytest.raises(ValueError, match=message):
        check_input(torch.ones(ids_shape, dtype=torch.long), mask, max_tokens=8)
