"""Fused layers are tried beside the plain ones before a run on a GPU relies on them; here on the CPU's."""

import re

import pytest
import torch
from torch import nn

import lora_core
from lora_core.kernels import transformer_layer
from lora_core.kernels.fused import fuse, product_dtype
from lora_core.models import build_model, config_from_dict
from trainers.training import kernel_check
from trainers.training.kernel_check import check_kernels, disagreement, small_batch

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SIZES = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
         "max_position_embeddings": 24}  # fmt: skip
RELATIVE = {"relative_attention": True, "pos_att_type": "p2c|c2p", "position_buckets": 8, "share_att_key": True}
FAMILIES = {
    "bert": SIZES,
    "roberta": SIZES,
    "deberta-v2": {**SIZES, **RELATIVE},
    "modernbert": {**SIZES, "pad_token_id": 0, "local_attention": 4},
    "mpnet": SIZES,
    "vit": {"image_size": 16, "patch_size": 4, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
            "intermediate_size": 40},
}  # fmt: skip


def build(family="bert", lora=True):
    task = "image-classification" if family == "vit" else "token-classification"
    model = build_model(config_from_dict({"model_type": family, **FAMILIES[family]}), task, ("a", "b"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
    if lora:
        lora_core.inject_lora(model, r=4, lora_dropout=0.3, init_lora_weights="random", target_modules="all-linear")
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_agree(family, dtype):
    model = fuse(build(family), dtype).train()
    before = torch.get_rng_state()
    assert disagreement(model, dtype, CPU) is None
    assert model.training
    assert product_dtype(model) == dtype
    assert torch.get_rng_state().equal(before), "the training's random numbers are its own"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_models_of_which_nothing_or_all_is_trained():
    assert disagreement(fuse(build(lora=False)), torch.float32, CPU) is None
    assert disagreement(fuse(build(lora=False).requires_grad_(False)), torch.float32, CPU) is None


class Wrong(torch.autograd.Function):
    """Right forward, wrong backward."""

    @staticmethod
    def forward(ctx, x, approximate):
        ctx.save_for_backward(x)
        return nn.functional.gelu(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.1, None


def fails(*arguments):
    raise RuntimeError("no kernel image is available\nfor this device")


@pytest.mark.parametrize(
    ("name", "broken", "said"),
    [
        ("_Gelu", Wrong, r"differ from them by \d+%"),
        ("add_norm", fails, "fail here: RuntimeError: no kernel image is available$"),
        ("add_norm", lambda x, *rest: x.float() * float("nan"), "give numbers that are not finite"),
    ],
)
@pytest.mark.fault("fused kernels that fail or differ on a GPU", "plain layers, one line says why", "nothing")
def test_layers_that_do_not_agree_are_not_used(name, broken, said, monkeypatch, caplog):
    """The check itself is for GPUs; this one computes where the model is."""
    monkeypatch.setattr(transformer_layer, name, broken)
    monkeypatch.setattr(kernel_check, "disagreement", lambda model, dtype, device: disagreement(model, dtype, CPU))
    model = fuse(build())
    check_kernels(model, GPU)
    assert product_dtype(model) is None
    (record,) = caplog.records
    assert record.getMessage().startswith("The plain layers are used: the fused ones ")
    assert re.search(said, record.args[0])


def test_a_cpu_needs_no_check(monkeypatch):
    monkeypatch.setattr(kernel_check, "disagreement", lambda *nothing: pytest.fail("it was tried"))
    model = fuse(build())
    check_kernels(model, CPU)
    assert product_dtype(model) == torch.float32
    check_kernels(nn.Linear(2, 2), GPU)  # nothing is fused


def test_the_batch_has_padding_and_fits_the_model():
    inputs, real = small_batch(build("roberta").base_model, CPU)
    assert inputs["attention_mask"].sum(1).tolist() == [12, 7]
    assert inputs["input_ids"][1, 7:].tolist() == [1] * 5
    assert (inputs["input_ids"][real] != 1).all()
