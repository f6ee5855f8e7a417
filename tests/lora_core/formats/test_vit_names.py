"""Adapters of vision transformers under the names before and since transformers 5."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from lora_core import inject_lora, load_adapter, save_adapter
from lora_core.formats.vit_names import to_new_name, to_old_name

PAIRS = {
    "vit.encoder.layer.3.attention.attention.query": "vit.layers.3.attention.q_proj",
    "vit.encoder.layer.0.attention.attention.key.base_layer.bias": "vit.layers.0.attention.k_proj.base_layer.bias",
    "encoder.layer.11.attention.attention.value": "layers.11.attention.v_proj",
    "vit.encoder.layer.0.attention.output.dense.lora_A.weight": "vit.layers.0.attention.o_proj.lora_A.weight",
    "vit.encoder.layer.0.intermediate.dense": "vit.layers.0.mlp.fc1",
    "vit.encoder.layer.0.output.dense": "vit.layers.0.mlp.fc2",
    "vit.encoder.layer.0.layernorm_before.bias": "vit.layers.0.layernorm_before.bias",
    "vit.embeddings.patch_embeddings.projection": "vit.embeddings.patch_embeddings.projection",
    "classifier.weight": "classifier.weight",
}


def new_vit() -> nn.Module:
    """transformers' own, under the names it has now."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    return transformers.ViTForImageClassification(config).eval()


def renamed(model: nn.Module) -> nn.Module:
    """The same model with its modules under the old names: a stand-in that runs the old layout."""
    root = nn.Module()
    for path, module in model.named_modules():
        if path and not any(True for _ in module.children()):
            *parents, leaf = to_old_name(path).split(".")
            parent = root
            for name in parents:
                if not hasattr(parent, name):
                    parent.add_module(name, nn.Module())
                parent = getattr(parent, name)
            parent.add_module(leaf, module)
    return root


@pytest.mark.parametrize(("old", "new"), PAIRS.items())
def test_names_go_both_ways(old, new):
    assert to_new_name(old) == new
    assert to_old_name(new) == old
    assert to_new_name(new) == new
    assert to_old_name(old) == old


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


FIELDS = [
    {"target_modules": ["q_proj", "v_proj"]},
    {
        "target_modules": ["q_proj", "fc1", "fc2"],
        "lora_alpha": 6,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"fc1": 9},
    },
    {"target_modules": ["o_proj"], "bias": "all", "layers_to_transform": [1]},
]


def old_words(fields: dict) -> dict:
    """The config as it would have been written for the old names."""
    names = {
        "q_proj": "query",
        "v_proj": "value",
        "o_proj": "attention.output.dense",
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
    }
    new = {**fields, "target_modules": [names[name] for name in fields["target_modules"]]}
    if "fc2" in fields["target_modules"]:
        new["exclude_modules"] = ["attention.output.dense"]
    for pattern in ("rank_pattern", "alpha_pattern"):
        if pattern in fields:
            new[pattern] = {names[name]: value for name, value in fields[pattern].items()}
    return new


@pytest.mark.parametrize("fields", FIELDS)
def test_old_file_loads_into_new_model(fields, pixels, randomise, tmp_path):
    """The file is PEFT's and ours alike; the oracle is the same adapter injected under the new names."""
    model = randomise(inject_lora(new_vit(), **{"r": 4, "modules_to_save": ["classifier"], **fields}))
    expected = model(pixels).logits
    save_adapter(model, tmp_path)
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    save_file({to_old_name(key): tensor for key, tensor in load_file(weights).items()}, weights)
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, **old_words(fields)}))
    loaded = load_adapter(new_vit(), tmp_path)
    torch.testing.assert_close(loaded(pixels).logits, expected)
    save_adapter(loaded, tmp_path / "again")
    torch.testing.assert_close(load_adapter(new_vit(), tmp_path / "again")(pixels).logits, expected)


@pytest.mark.parametrize("fields", FIELDS)
def test_new_file_loads_into_old_model(fields, pixels, randomise, peft_model, tmp_path):
    theirs = randomise(peft_model(new_vit(), **{"r": 4, "modules_to_save": ["classifier"], **fields}))
    theirs.save_pretrained(tmp_path)
    base = new_vit()
    load_adapter(renamed(base), tmp_path)  # its layers are those of `base`, which still runs under the new names
    torch.testing.assert_close(base(pixels).logits, theirs(pixels).logits, atol=1e-5, rtol=1e-4)
