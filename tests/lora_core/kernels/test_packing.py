import pytest
import torch

from lora_core.kernels.packing import ROWS, Layout
from lora_core.models.layers import additive_mask


def test_real_tokens_alone():
    hidden = torch.arange(24.0).view(2, 4, 3).requires_grad_()
    mask = additive_mask(torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0]]), torch.float32)
    layout = Layout.of(hidden, mask)
    packed = layout.pack(hidden)
    assert packed[:4, 0].tolist() == [0, 6, 9, 15]
    padded = layout.pad(packed * 2)
    assert padded.shape == hidden.shape
    assert padded[..., 0].tolist() == [[0, 0, 12, 18], [0, 30, 0, 0]]
    padded.backward(torch.full_like(padded, 5))
    assert hidden.grad[..., 0].tolist() == [[10, 0, 10, 10], [0, 10, 0, 0]]


@pytest.mark.parametrize("real", [1, ROWS - 1, ROWS, ROWS + 1])
def test_rows_are_rounded_up_and_what_fills_them_has_no_effect(real):
    hidden = torch.randn(2, ROWS, 3, requires_grad=True)
    mask = torch.zeros(2 * ROWS)
    mask[torch.randperm(2 * ROWS)[:real]] = 1
    layout = Layout.of(hidden, additive_mask(mask.view(2, ROWS), torch.float32))
    packed = layout.pack(hidden)
    assert len(packed) == (ROWS if real <= ROWS else 2 * ROWS)
    assert not packed[real:].any()
    packed.retain_grad()
    padded = layout.pad(packed.exp())  # what fills the rows is 1 now
    assert torch.equal(padded.flatten(0, 1), hidden.detach().exp().flatten(0, 1) * mask[:, None])
    padded.sum().backward()
    assert not packed.grad[real:].any()
    assert torch.equal(hidden.grad.flatten(0, 1), padded.detach().flatten(0, 1))


def test_batches_without_padding_are_not_copied():
    hidden = torch.randn(2, 4, 3)
    for mask in (None, additive_mask(torch.ones(2, 4), torch.float32)):
        layout = Layout.of(hidden, mask)
        assert layout.mask is None
        assert layout.pack(hidden).data_ptr() == layout.pad(layout.pack(hidden)).data_ptr() == hidden.data_ptr()


def test_a_batch_of_padding_alone():
    hidden = torch.randn(2, 4, 3)
    layout = Layout.of(hidden, additive_mask(torch.zeros(2, 4), torch.float32))
    assert layout.pack(hidden).shape == (0, 3)
    assert not layout.pad(layout.pack(hidden)).any()
