import pytest
import torch

from trainers.precision import autocast, grad_scaler

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_matrix_products_have_the_dtype_and_weights_keep_theirs(precision, dtype):
    layer = torch.nn.Linear(4, 3)
    with autocast(precision, CPU):
        product = layer(torch.ones(2, 4))
    assert product.dtype == dtype
    assert layer.weight.dtype == torch.float32
    assert layer(torch.ones(2, 4)).dtype == torch.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_scaling_where_none_is_needed(precision):
    scaler = grad_scaler(precision, CPU)
    loss = torch.tensor(3.0)
    assert not scaler.is_enabled()
    assert scaler.scale(loss) is loss
    assert scaler.get_scale() == 1.0


def test_fp16_gradients_below_its_range_survive():
    weight = torch.tensor(1.0, requires_grad=True)
    tiny = 1e-9  # the smallest fp16 number is 6e-8

    def gradient(scaler):
        weight.grad = None
        loss = weight.half().float() * tiny
        scaler.scale(loss).backward()
        return weight.grad / scaler.get_scale()

    assert gradient(grad_scaler("fp32", CPU)) == 0
    assert gradient(grad_scaler("fp16", CPU)).item() == pytest.approx(tiny, rel=1e-3)
