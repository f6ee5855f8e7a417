"""Fused models whose linear layers are computed in stacks, as on a GPU, against the plain layers.

On the CPU, with the products in torch; where there is a GPU, on it, with those that it gets.
"""

import copy

import pytest
import torch

import lora_core
from lora_core.kernels import linear
from lora_core.kernels.fused import FusedStack, fuse
from lora_core.models import build_model, config_from_dict

GPU = torch.cuda.is_available()


@pytest.fixture(params=[False, True], ids=["one by one", "as one"])
def stacks(request, monkeypatch):
    """Layers go to the stacks of cuda/stacked.py; in fp32 too all that read one input are one of them, if so wished."""
    calls = []
    project_stack = linear.project_stack
    monkeypatch.setattr(linear, "ONE_BY_ONE", ())
    monkeypatch.setattr(linear, "project_stack", lambda *args: calls.append(args[1]) or project_stack(*args))
    if request.param:
        monkeypatch.setattr(linear, "HALF", (torch.float32,))
    return calls


@pytest.mark.parametrize("method", ["qv", "all-linear", "full"])
@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert", "vit"])
def test_equals_the_plain_layers(family, method, stacks, make, inputs, gradients, shared_dropout, assert_same):
    model = make(family).train()
    if method != "full":
        lora_core.inject_lora(model, r=4, target_modules=method, bias="all", init_lora_weights=False)
    fused = fuse(copy.deepcopy(model))
    shared_dropout()
    expected = gradients(model, inputs(family))
    shared_dropout()
    found = gradients(fused, inputs(family))
    assert stacks
    assert all(not module.told for module in fused.modules() if isinstance(module, FusedStack))
    assert_same(found, expected, 2e-5)


def test_gradient_checkpointing_finds_the_masks_again(stacks, make, inputs, gradients):
    """Seeds are drawn again from the same random numbers, so adapters' dropout is the same."""
    model = make("bert").train()
    lora_core.inject_lora(model, r=4, target_modules="all-linear", lora_dropout=0.3, init_lora_weights=False)
    fuse(model)
    found = []
    for wanted in (False, True):
        model.bert.encoder.layer.gradient_checkpointing = wanted
        torch.manual_seed(1)
        found.append(gradients(model, inputs("bert")))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(gradient, found[1][1][name]) for name, gradient in found[0][1].items())


@pytest.mark.cuda
@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", ["qv", "all-linear", "full"])
def test_learns_on_a_gpu_as_the_plain_layers_do(method, dtype, dropout):
    """Losses of twenty steps of a small BERT, next to those of the plain layers in fp32, without dropout."""
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bf16")
    sizes = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 128, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": 0.0}  # fmt: skip
    ids = torch.randint(1, 100, (16, 24), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(24) < torch.arange(9, 25)[:, None]).long()
    batch = {"input_ids": ids.cuda(), "attention_mask": mask.cuda()}
    labels = torch.where(mask.bool(), ids % 3, -100).cuda()

    def losses(fused):
        model = build_model(config_from_dict({"model_type": "bert", **sizes}), "token-classification", ("a", "b", "c"))
        torch.manual_seed(0)
        if method != "full":
            lora_core.inject_lora(model, r=8, target_modules=method, lora_dropout=dropout if fused else 0.0)
        model.cuda().train(fused or dropout == 0.0)
        if fused:
            fuse(model, dtype)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        scaler, found = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16), []
        for _ in range(20):
            loss = torch.nn.functional.cross_entropy(model(**batch).flatten(0, 1).float(), labels.flatten())
            found.append(loss.item())
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert all(not module.told for module in model.modules() if isinstance(module, FusedStack))
        return found

    expected, found = losses(fused=False), losses(fused=True)
    assert expected[-1] < expected[0] - 0.02
    assert found == pytest.approx(expected, abs=0.15 if dropout else 2e-3 if dtype == torch.float32 else 0.03)
