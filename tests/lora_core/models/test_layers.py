import pytest
import torch

from lora_core.models.layers import ACTIVATIONS, activation, additive_mask, check_input, multi_head_attention


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
