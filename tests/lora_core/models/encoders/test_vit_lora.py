"""LoRA on this library's ViT: counts, layers, PEFT's files both ways, the head on half-precision bases."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.nn import functional as F

import lora_core
from lora_core.models import build_model, config_from_dict, load_pretrained, save_pretrained

LABELS = ("cat", "dog", "newt")
TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture
def base(tmp_path):
    """Folder with a random transformers checkpoint."""
    config = transformers.ViTConfig(**TINY, id2label=dict(enumerate(LABELS)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.ViTForImageClassification(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.2)
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def ours(base):
    return load_pretrained(base, "image-classification")


def theirs(base):
    return transformers.ViTForImageClassification.from_pretrained(base).eval()


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("r", "alpha", "trainable", "total_of_peft"), [(8, 16, 443_906, 86_244_100), (24, 48, 1_328_642, 87_128_836)]
)
def test_counts_of_the_published_experiments(r, alpha, trainable, total_of_peft):
    """PEFT keeps a second classifier and counts it; here there is one."""
    with torch.device("meta"):
        model = build_model(config_from_dict({"model_type": "vit"}), "image-classification", ["normal", "ill"])
    lora_core.inject_lora(model, r=r, lora_alpha=alpha, lora_dropout=0.1, target_modules=["query", "key", "value"])
    classifier = model.classifier.weight.numel() + model.classifier.bias.numel()
    assert lora_core.parameter_counts(model) == (trainable, total_of_peft - classifier)


TARGETS = {
    "qv": (["q_proj", "v_proj"], 4),
    "qkv": (["q_proj", "k_proj", "v_proj"], 6),
    "attention": (["q_proj", "k_proj", "v_proj", "o_proj"], 8),
    "all-linear": (["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"], 12),
    ("projection",): (["projection"], 1),
    ("query", "projection", "intermediate.dense"): (["q_proj", "projection", "fc1"], 5),
}


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_peft_s_adapters_load(targets, base, pixels, tmp_path, peft_model):
    names, count = TARGETS[targets]
    reference = peft_model(
        theirs(base), r=4, lora_alpha=8, target_modules=names, modules_to_save=["classifier"], init_lora_weights=False
    )
    with torch.no_grad():
        reference.base_model.model.classifier.modules_to_save.default.weight.normal_(0, 0.2)
    reference.save_pretrained(tmp_path / "adapter")
    model = lora_core.load_adapter(ours(base), tmp_path / "adapter")
    with torch.no_grad():
        expected = reference(pixel_values=pixels).logits
        torch.testing.assert_close(model(pixels), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, ours(base)(pixels))
    chosen = targets if isinstance(targets, str) else list(targets)
    injected = lora_core.inject_lora(ours(base), r=4, target_modules=chosen)
    layers = [path for path, module in injected.named_modules() if hasattr(module, "lora")]
    assert len(layers) == count
    assert {path for path, module in model.named_modules() if hasattr(module, "lora")} == set(layers)


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_peft_loads_our_adapters(targets, base, pixels, tmp_path, peft_load):
    chosen = targets if isinstance(targets, str) else list(targets)
    model = lora_core.inject_lora(
        ours(base),
        r=4,
        lora_alpha=8,
        target_modules=chosen,
        init_lora_weights=False,
        rank_pattern={"query": 2} if "q" in str(targets) else {},
    )
    with torch.no_grad():
        model.classifier.weight.normal_(0, 0.2)
        expected = model(pixels)
    lora_core.save_adapter(model, tmp_path / "adapter")
    reference = peft_load(theirs(base), tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(reference(pixel_values=pixels).logits, expected, rtol=1e-5, atol=1e-5)
    again = lora_core.load_adapter(ours(base), tmp_path / "adapter")
    torch.testing.assert_close(again(pixels), expected)
    reference.save_pretrained(tmp_path / "again")
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_our_files_have_the_names_that_transformers_has_in_memory(base, tmp_path):
    model = lora_core.inject_lora(ours(base), r=2, bias="lora_only")
    lora_core.save_adapter(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == [
        f"vit.layers.{layer}.attention.{name}_proj" for layer in (0, 1) for name in "qv"
    ]
    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert "base_model.model.vit.layers.1.attention.v_proj.base_layer.bias" in keys
    assert not any("encoder.layer" in key for key in keys)


@pytest.mark.parametrize("targets", ["all-linear", ["projection"], ["query", "key", "value"]], ids=str)
def test_training_reaches_every_factor_and_merging_keeps_the_logits(targets, base, pixels, tmp_path):
    model = ours(base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lora_core.inject_lora(model, r=4, target_modules=targets)
    torch.testing.assert_close(model(pixels), ours(base)(pixels))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in trained if ".lora." not in name} == {"classifier"}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    model.train()
    for _ in range(2):  # B starts at zero, so A learns from the second step on
        optimizer.zero_grad()
        F.cross_entropy(model(pixels), torch.arange(3)).backward()
        optimizer.step()
    assert all(parameter.grad.any() for parameter in trained.values())
    model.eval()
    assert all(
        torch.equal(tensor, before[name])
        for name, tensor in model.state_dict().items()
        if name in before and not name.startswith("classifier")
    )
    expected = model(pixels)
    assert not torch.allclose(expected, ours(base)(pixels))
    lora_core.merge_lora(model)
    torch.testing.assert_close(model(pixels), expected, rtol=1e-5, atol=1e-5)
    save_pretrained(lora_core.eject_lora(model), tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(theirs(tmp_path / "merged")(pixels).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_head_is_wide_on_a_half_base(dtype, base, pixels):
    model = lora_core.inject_lora(ours(base).to(dtype), r=4, target_modules="qkv")
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(dtypes.values()) == {torch.float32}
    assert {"classifier.weight", "classifier.bias"} <= dtypes.keys()
    logits = model.train()(pixels)
    assert logits.dtype == dtype
    F.cross_entropy(logits.float(), torch.arange(3)).backward()
    assert model.classifier.weight.grad.dtype == torch.float32
    assert model.classifier.weight.grad.any()


def test_a_distilled_model_trains_both_heads():
    model = build_model(config_from_dict({"model_type": "deit", **TINY}), "image-classification", LABELS)
    lora_core.inject_lora(model, r=4, target_modules="qkv")
    heads = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad and ".lora." not in name}
    assert heads == {"cls_classifier", "distillation_classifier"}
