"""Products in int8 against the integers multiplied one by one, and layers with them against the plain ones."""

import copy
import logging
import pickle

import pytest
import torch
from torch import Tensor

import lora_core
from lora_core.kernels import fused, int8
from lora_core.kernels.fused import fuse, unfuse
from lora_core.kernels.int8 import Int8Weight, round_rows, unsupported
from lora_core.kernels.linear import Products, project
from lora_core.models import build_model, config_from_dict

needs_int8 = pytest.mark.skipif(unsupported() is not None, reason=f"{unsupported()}")
TINY = {"model_type": "bert", "vocab_size": 60, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip


@pytest.fixture(autouse=True, params=["in C++", "in torch"])
def operators(request, monkeypatch):
    """Rows are rounded in C++ where there is a compiler, else by torch's operators."""
    if request.param == "in torch":
        monkeypatch.setattr(int8, "ops", lambda: None)
    elif int8.ops() is None:
        pytest.skip("the C++ kernels cannot be built here")


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_model(config_from_dict(TINY), "token-classification", ["a", "b", "c"])
    return lora_core.inject_lora(model, r=4, target_modules="all-linear", init_lora_weights=False, bias="all")


def batch() -> dict[str, Tensor]:
    ids = torch.randint(1, 60, (5, 12), generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(12) < torch.tensor([12, 3, 7, 1, 9])[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_rounded_to_the_nearest_of_255_steps(dtype):
    x = (torch.randn(9, 33) * torch.logspace(-6, 3, 9)[:, None]).to(dtype)
    x[4] = 0
    values, scale = round_rows(x)
    assert (values.dtype, scale.shape) == (torch.uint8, (9,))
    back = (values.double() - 128) * scale[:, None]
    assert ((back - x.double()).abs() <= scale.double()[:, None] * 0.5001).all()
    assert int(values.max()) <= 255
    assert int(values.min()) >= 1
    assert (back[4] == 0).all()


@needs_int8
@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_products_are_exact_in_the_rounded_numbers(tokens):
    weight, bias = torch.randn(20, 36), torch.randn(20)
    x, grad = torch.randn(tokens, 36) * 5, torch.randn(tokens, 20) * 1e-5
    rounded, frozen = [], Int8Weight(weight)
    for matrix in (weight, weight.T):
        scale = matrix.abs().amax(1, keepdim=True) / 127
        rounded.append((matrix / scale).round().double() * scale)
    of_x, of_grad = round_rows(x), round_rows(grad)
    as_numbers = [(rows.values.double() - 128) * rows.scale[:, None] for rows in (of_x, of_grad)]
    expected = as_numbers[0] @ rounded[0].T + bias
    torch.testing.assert_close(frozen.product(of_x, bias, torch.float32).double(), expected, rtol=1e-5, atol=1e-5)
    expected = as_numbers[1] @ rounded[1].T
    found = frozen.input_gradient(of_grad, torch.float32).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-10)


@needs_int8
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(wrong):
    x = torch.randn(3, 16)
    x[1, 5] = wrong
    found = Int8Weight(torch.randn(8, 16)).product(round_rows(x), None, torch.float32)
    assert found[[0, 2]].isfinite().all()
    assert not found[1].isfinite().any()


@needs_int8
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_layers_are_near_the_plain_ones(model, dtype):
    real = batch()["attention_mask"].bool()

    def results() -> list[Tensor]:
        model.zero_grad()
        out = model(**batch())[real].float()
        (out * torch.arange(out.numel()).view_as(out).cos()).sum().backward()
        return [out.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    expected = results()
    fuse(model, dtype, frozen=torch.int8)
    found = results()
    assert 1e-4 < relative(found[0], expected[0]) < 0.03
    assert len(found) == len(expected)
    small = max(float(e.norm()) for e in expected[1:]) / 1000  # nothing but rounding
    for f, e in zip(found[1:], expected[1:], strict=True):
        assert e.norm() < small or relative(f, e) < 0.1
    assert all(p.dtype == torch.float32 for p in model.parameters())


@needs_int8
def test_trained_weights_are_not_rounded():
    layer, x = torch.nn.Linear(16, 8), torch.randn(5, 16)
    products = Products(frozen=torch.int8)
    (found,) = project(x, (layer,), products)
    torch.testing.assert_close(found, layer(x))
    layer.weight.requires_grad_(False)
    (found,) = project(x, (layer,), products)
    assert 1e-4 < relative(found, layer(x)) < 0.03
    with torch.no_grad():
        layer.weight.mul_(2)  # the copy is made again
    assert relative(project(x, (layer,), products)[0], layer(x)) < 0.03


@needs_int8
def test_the_same_numbers_each_time_and_after_a_copy(model):
    fuse(model.eval(), frozen=torch.int8)
    expected = model(**batch())
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(**batch()), expected)


@needs_int8
def test_an_adapter_is_saved_as_it_is(model, tmp_path):
    lora_core.save_adapter(model, tmp_path / "plain")
    fuse(model.eval(), frozen=torch.int8)(**batch())
    lora_core.save_adapter(model, tmp_path / "fused")
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("plain", "fused")]
    assert files[0] == files[1]


def test_says_once_where_there_is_no_int8(model, monkeypatch, caplog):
    expected = fuse(model.eval())(**batch())
    monkeypatch.setattr(fused, "unsupported", lambda _: "this CPU has neither AVX512-VNNI nor AMX")
    fuse(unfuse(model), frozen=torch.int8)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(model(**batch()), expected)
        assert torch.equal(model(**batch()), expected)
    assert [record.getMessage() for record in caplog.records] == [
        "Products with frozen weights are not computed in int8 but as the others: this CPU has neither AVX512-VNNI "
        "nor AMX."
    ]


def test_other_dtypes_are_refused(model):
    with pytest.raises(ValueError, match="or None"):
        fuse(model, frozen=torch.float16)
