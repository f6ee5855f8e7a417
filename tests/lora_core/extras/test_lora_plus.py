"""LoRA+ groups: every trainable parameter once, at its own rate; PEFT's groups where they agree."""

import pytest
import torch

from lora_core import inject_lora, lora_plus_groups


def rates(model, groups) -> dict[str, tuple[float, float]]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_every_trainable_parameter_has_one_rate(make):
    model = inject_lora(make("ours"), r=4, bias="all", target_modules=["query", "word_embeddings"], use_dora=True)
    groups = lora_plus_groups(model, 1e-3, ratio=8, head_lr=5e-4, weight_decay=0.1)
    found = rates(model, groups)
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    query = "bert.encoder.layer.0.attention.self.query"
    assert found[f"{query}.lora.default.lora_A.weight"] == (1e-3, 0.1)
    assert found[f"{query}.lora.default.lora_B.weight"] == (pytest.approx(8e-3), 0.1)
    assert found[f"{query}.lora.default.lora_magnitude_vector"] == (1e-3, 0.0)
    assert found[f"{query}.bias"] == (1e-3, 0.0)
    assert found["bert.embeddings.word_embeddings.lora.default.lora_embedding_B"] == (pytest.approx(8e-3), 0.1)
    assert found["bert.embeddings.word_embeddings.lora.default.lora_embedding_A"] == (1e-3, 0.1)
    assert found["classifier.weight"] == (5e-4, 0.1)
    assert found["classifier.bias"] == (5e-4, 0.0)  # in PEFT it is lr * ratio
    assert len({(g["name"]) for g in groups}) == len(groups)
    torch.optim.AdamW(groups).step()


def test_head_learns_at_lr_by_default(make):
    model = inject_lora(make("ours"), r=4, lora_bias=True)
    found = rates(model, lora_plus_groups(model, 2e-3))
    assert found["classifier.weight"][0] == found["classifier.bias"][0] == 2e-3
    assert found["bert.encoder.layer.1.attention.self.value.lora.default.lora_B.bias"][0] == pytest.approx(3.2e-2)


def test_low_rank_rates_are_those_of_peft(make, peft_model):
    from peft.optimizers import create_loraplus_optimizer

    theirs = peft_model(make("bert"), r=4, target_modules=["query", "value"])
    optimizer = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=8, loraplus_weight_decay=0.1
    )
    wanted = {n.removeprefix("base_model.model."): v for n, v in rates(theirs, optimizer.param_groups).items()}
    model = inject_lora(make("bert"), r=4, target_modules=["query", "value"], modules_to_save=())
    found = rates(model, lora_plus_groups(model, 1e-3, ratio=8, weight_decay=0.1))
    for path in ("bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.attention.self.value"):
        for factor in ("lora_A", "lora_B"):
            assert found[f"{path}.lora.default.{factor}.weight"] == pytest.approx(
                wanted[f"{path}.{factor}.default.weight"]
            )


def test_refusals(make):
    with pytest.raises(ValueError, match="no adapters"):
        lora_plus_groups(make("ours"), 1e-3)
    with pytest.raises(ValueError, match="above 0"):
        lora_plus_groups(inject_lora(make("ours")), 1e-3, ratio=0)
