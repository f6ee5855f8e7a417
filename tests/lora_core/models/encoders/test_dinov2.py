"""DINOv2 against transformers and PEFT: both kinds of feed-forward layers, images of other sizes, adapters under both
sets of names, fused layers, ONNX.
"""

import copy
import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import lora_core
from lora_core.export import OnnxModel, export_onnx, quantize_onnx, verify_onnx
from lora_core.kernels.fused import FusedStack, fuse
from lora_core.models import Dinov2Config, build_model, load_pretrained, save_pretrained

LABELS = ("cat", "dog", "newt")
TINY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 28, "patch_size": 7}


@pytest.fixture(params=[False, True], ids=["mlp", "swiglu"])
def reference(request, tmp_path):
    """A random model in which every weight matters, saved in `tmp_path / "theirs"`."""
    config = transformers.Dinov2Config(**TINY, use_swiglu_ffn=request.param, id2label=dict(enumerate(LABELS)))
    torch.manual_seed(0)
    model = transformers.Dinov2ForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(tmp_path / "theirs")
    return model


@pytest.fixture
def model(reference, tmp_path):
    return load_pretrained(tmp_path / "theirs", "image-classification")


@pytest.fixture
def adapted(model):
    lora_core.inject_lora(model, r=2, target_modules="attention")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    return model


def pixels(side=28):
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))


def weighted_sum(logits):
    return (logits * torch.linspace(-1, 1, logits.numel()).view(logits.shape)).sum()


def test_logits_and_gradients_equal_those_of_transformers(reference, model, tmp_path):
    files = load_file(tmp_path / "theirs/model.safetensors")
    assert "dinov2.encoder.layer.0.attention.attention.query.weight" in files  # as published checkpoints have it
    expected, found = reference(pixels()).logits, model(pixels())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weighted_sum(expected).backward()
    weighted_sum(found).backward()
    by_value = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    for name in ("dinov2.embeddings.cls_token", "dinov2.embeddings.position_embeddings", "classifier.weight",
                 "dinov2.encoder.layer.0.layer_scale1.lambda1", "dinov2.layernorm.weight"):  # fmt: skip
        torch.testing.assert_close(model.get_parameter(name).grad, by_value[name], rtol=1e-4, atol=1e-5, msg=name)
    query = model.get_parameter("dinov2.encoder.layer.0.attention.attention.query.weight").grad
    torch.testing.assert_close(query, by_value["dinov2.encoder.layer.0.attention.q_proj.weight"], rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for name, p in reference.named_parameters() if "mask_token" not in name
    )


@torch.no_grad()
def test_images_of_another_size_equal_what_transformers_interpolates(reference, tmp_path):
    resized = load_pretrained(tmp_path / "theirs", "image-classification", image_size=42)
    torch.testing.assert_close(resized(pixels(42)), reference(pixels(42)).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_transformers_reads_what_is_saved(reference, model, tmp_path):
    save_pretrained(model, tmp_path / "ours")
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "ours").eval()
    torch.testing.assert_close(again(pixels()).logits, reference(pixels()).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_adapters_are_exchanged_with_peft(adapted, reference, peft_load, tmp_path):
    lora_core.save_adapter(adapted, tmp_path / "ours")
    config = json.loads((tmp_path / "ours/adapter_config.json").read_text())
    assert all("attention.q_proj" in name or "proj" in name for name in config["target_modules"])
    expected = adapted(pixels())
    torch.testing.assert_close(peft_load(reference, tmp_path / "ours")(pixels()).logits, expected, rtol=1e-4, atol=1e-4)
    again = load_pretrained(tmp_path / "theirs", "image-classification")
    lora_core.load_adapter(again, tmp_path / "ours")
    torch.testing.assert_close(again(pixels()), expected)
    merged = lora_core.eject_lora(lora_core.merge_lora(adapted))
    torch.testing.assert_close(merged(pixels()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_of_peft_loads_here(reference, tmp_path):
    theirs = peft.get_peft_model(
        reference, peft.LoraConfig(r=3, target_modules=["q_proj", "o_proj"], modules_to_save=["classifier"])
    ).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
        theirs.save_pretrained(tmp_path / "peft")
        model = load_pretrained(tmp_path / "theirs", "image-classification")
        lora_core.load_adapter(model, tmp_path / "peft")
        torch.testing.assert_close(model(pixels()), theirs(pixels()).logits, rtol=1e-4, atol=1e-4)


def test_an_adapter_of_gated_layers_keeps_the_checkpoints_names(model, tmp_path, caplog):
    lora_core.inject_lora(model, r=2, target_modules="all-linear")
    lora_core.save_adapter(model, tmp_path / "ours")
    gated = "swiglu" in str(type(model.dinov2.encoder["layer"][0].mlp)).lower()
    assert ("mlp.weights_in, which transformers 5 splits" in caplog.text) == gated
    again = load_pretrained(tmp_path / "theirs", "image-classification")
    lora_core.load_adapter(again, tmp_path / "ours")
    torch.testing.assert_close(again(pixels()), model(pixels()))


def test_fused_layers_equal_the_plain_ones(adapted):
    fused = fuse(copy.deepcopy(adapted)).train()
    results = []
    for each in (adapted.train(), fused):
        logits = each(pixels())
        weighted_sum(logits).backward()
        results.append((logits, {name: p.grad for name, p in each.named_parameters() if p.grad is not None}))
    assert [stack.told for stack in fused.modules() if isinstance(stack, FusedStack)] == [set()]
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-4, atol=1e-4)
    assert results[1][1].keys() == results[0][1].keys()
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@torch.no_grad()
def test_exported_graphs_equal_the_model(adapted, tmp_path):
    path = export_onnx(adapted, tmp_path / "model.onnx")
    batches = [{"pixel_values": pixels()}, {"pixel_values": pixels()[:1]}]
    assert verify_onnx(adapted, path, batches) < 1e-4
    expected = adapted(pixels())
    found = OnnxModel(quantize_onnx(path, tmp_path / "int8.onnx"))(pixel_values=pixels())
    assert 0 < (found - expected).norm() < 0.2 * expected.norm()


def test_new_scales_begin_as_the_config_says():
    model = build_model(Dinov2Config(**TINY, layerscale_value=1e-5), "image-classification", ["a", "b"])
    scales = [parameter for name, parameter in model.named_parameters() if "lambda1" in name]
    assert len(scales) == 4
    assert all(bool((scale == 1e-5).all()) for scale in scales)
    with pytest.raises(ValueError, match=r"drop_path_rate is 0\.1; only 0"):
        Dinov2Config(drop_path_rate=0.1)


def test_the_defaults_are_those_of_transformers():
    theirs, ours = transformers.Dinov2Config().to_dict(), Dinov2Config().to_dict()
    assert {name: theirs[name] for name in ours} == ours
