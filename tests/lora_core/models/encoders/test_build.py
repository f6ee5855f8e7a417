import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lora_core.models import BertConfig, build_model, config_from_dict

ROBERTA_BASE = {
    "model_type": "roberta",
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}
BERT_BASE_UNCASED = {"model_type": "bert"}
DISTILBERT_BASE_UNCASED = {"model_type": "distilbert"}
VIT_BASE_PATCH16_224 = {"model_type": "vit"}
DEIT_BASE_DISTILLED_PATCH16_224 = {"model_type": "deit"}


@pytest.mark.parametrize(
    ("values", "task", "count", "total"),
    [
        (ROBERTA_BASE, "token-classification", 11, 124_063_499),
        (ROBERTA_BASE, "text-classification", 2, 124_647_170),
        (BERT_BASE_UNCASED, "token-classification", 11, 108_900_107),
        (BERT_BASE_UNCASED, "text-classification", 4, 109_485_316),
        (DISTILBERT_BASE_UNCASED, "text-classification", 2, 66_955_010),
        (DISTILBERT_BASE_UNCASED, "encoder", 0, 66_362_880),
        (VIT_BASE_PATCH16_224, "image-classification", 1000, 86_567_656),
        (VIT_BASE_PATCH16_224, "encoder", 0, 85_798_656),
        (DEIT_BASE_DISTILLED_PATCH16_224, "image-classification", 1000, 87_338_192),
    ],
)
def test_parameter_totals_of_published_models(values, task, count, total):
    labels = [f"class {row}" for row in range(count)] or None
    with torch.device("meta"):
        model = build_model(config_from_dict(values), task, labels)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == total


def test_the_seed_decides_the_weights_and_the_global_state_is_left_alone():
    config = BertConfig(50, 24, 2, 3, 40)
    before = torch.get_rng_state()
    first, again, other = (build_model(config, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embeddings.word_embeddings.weight"], other["embeddings.word_embeddings.weight"])


def test_new_weights_are_distributed_as_in_transformers():
    config = BertConfig(900, 240, 1, 3, 400, initializer_range=0.05)
    model = build_model(config, "text-classification", ["no", "yes"])
    assert not model.training
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert not module.bias.any()
        if isinstance(module, nn.LayerNorm):
            assert torch.equal(module.weight, torch.ones(240))
            assert not module.bias.any()
    words = model.bert.embeddings.word_embeddings.weight
    assert not words[config.pad_token_id].any()
    for weight in (
        words[1:],
        model.bert.encoder.layer[0].intermediate.dense.weight,
        model.bert.pooler.dense.weight,
    ):
        assert weight.mean().abs() < 0.002
        torch.testing.assert_close(weight.std(), torch.tensor(0.05), rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("ner", ["O"], "unknown task 'ner'; expected one of encoder, token-classification"),
        (
            "image-classification",
            ["cat"],
            "bert models do not do image-classification; they do encoder, token",
        ),
        ("token-classification", None, "token-classification needs labels"),
        ("encoder", ["O"], "a bare encoder has no head"),
    ],
)
def test_tasks_and_labels_must_go_together(task, labels, message):
    with pytest.raises(ValueError, match=message):
        build_model(BertConfig(50, 24, 2, 3, 40), task, labels)


@pytest.mark.parametrize("values", [{}, {"model_type": "gpt2"}])
def test_unknown_families_are_named(values):
    with pytest.raises(ValueError, match=r"model_type is .*; implemented are bert, roberta, .*, vit, deit"):
        config_from_dict(values)


def test_a_model_is_assembled_without_torchs_compiler():
    """Importing it would cost every prediction a second and 37 MB."""
    code = """
import sys
from lora_core.models import config_from_dict
from lora_core.models.encoders.build import assemble
for kind, task, head in (("bert", "token-classification", "default"), ("distilbert", "text-classification", "lstm"),
                         ("roberta", "text-classification", "textcnn"), ("vit", "image-classification", "default")):
    model = assemble(config_from_dict({"model_type": kind}), task, ("a", "b"), head=head)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[4])
