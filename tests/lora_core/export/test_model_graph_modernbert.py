"""ModernBERT as a graph: rotary positions, windows, gates, the pretrained head, words in int8."""

import onnx
import pytest
import torch

import lora_core
from lora_core.export import (
    OnnxModel,
    export_onnx,
    export_onnx_base,
    fused_counts,
    parity_batches,
    quantize_onnx,
    save_onnx_adapter,
    verify_onnx,
    verify_onnx_adapter,
)

CASES = [("token-classification", "cls"), ("text-classification", "cls"), ("text-classification", "mean")]
LENGTHS = ((1,), (1, 1, 1), (4, 4), (5, 2), (9, 4, 1), (48,), (48, 1, 20, 13))
"""Short texts, and those beyond the window of 3 on either side, alone and padded."""


@pytest.fixture(params=CASES, ids=str)
def model(request, make):
    task, pooling = request.param
    return make("modernbert", task, classifier_pooling=pooling, max_position_embeddings=48)


@pytest.fixture
def long_texts():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 50, (length,), generator=generator).tolist() for length in (3, 1, 7, 12, 30, 48)]


@torch.no_grad()
def test_logits_equal_the_model_s_at_every_length(model, batch, long_texts, tmp_path):
    path = export_onnx(model, tmp_path / "model.onnx")
    served = OnnxModel(path)
    for lengths in LENGTHS:
        inputs = batch(model, lengths)
        expected = model(**inputs)
        torch.testing.assert_close(served(**inputs), expected, rtol=1e-5, atol=2e-5, msg=str(lengths))
    assert verify_onnx(model, path, parity_batches(model, long_texts)) < 5e-5
    counts = fused_counts(path)
    assert (counts["layers"], counts["attention"], counts["skip_layer_norm"]) == (4, 4, 8)
    operators = [node.op_type for node in onnx.load(str(path)).graph.node]
    assert operators.count("RotaryEmbedding") == 2 * 4
    assert operators.count("Cos") == 2  # one for each theta, whatever the number of layers


@torch.no_grad()
def test_int8_is_close_and_holds_the_words_in_int8(model, batch, tmp_path):
    path = quantize_onnx(export_onnx(model, tmp_path / "model.onnx"), tmp_path / "model.int8.onnx")
    counts = fused_counts(path)
    assert (counts["int8"], counts["attention"], counts["skip_layer_norm"]) == (4 * 4, 4, 0)
    served, errors, scale = OnnxModel(path), [], []
    for lengths in LENGTHS:
        inputs = batch(model, lengths)
        expected = model(**inputs)
        real = inputs["attention_mask"].bool() if expected.ndim == 3 else slice(None)
        errors.append((served(**inputs) - expected)[real].flatten())
        scale.append(expected[real].flatten())
    assert torch.cat(errors).square().mean().sqrt() < 0.1 * torch.cat(scale).square().mean().sqrt()
    weights = {tensor.name: tensor for tensor in onnx.load(str(path)).graph.initializer}
    words = "model.embeddings.tok_embeddings.weight"
    assert weights[f"{words}.int8"].data_type == onnx.TensorProto.INT8
    assert words not in weights


@pytest.mark.parametrize("targets", ["qv", "attention", "all-linear"])
def test_adapters_are_merged_or_switched(model, long_texts, tmp_path, targets):
    lora_core.inject_lora(model, r=2, target_modules=targets)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    batches = parity_batches(model, long_texts)
    assert verify_onnx(model, export_onnx(model, tmp_path / "merged.onnx"), batches) < 1e-4
    base = OnnxModel(export_onnx_base(model, tmp_path / "base.onnx"))
    adapter = save_onnx_adapter(model, "default", tmp_path / "adapter")
    assert verify_onnx_adapter(model, "default", base, adapter, batches) < 1e-4


def test_an_adapter_may_bring_a_bias_to_layers_without_one(model, long_texts, tmp_path):
    lora_core.inject_lora(model, r=2, target_modules=["Wqkv", "Wi", "mlp.Wo"], lora_bias=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    base = OnnxModel(export_onnx_base(model, tmp_path / "base.onnx"))
    adapter = save_onnx_adapter(model, "default", tmp_path / "adapter")
    assert verify_onnx_adapter(model, "default", base, adapter, parity_batches(model, long_texts)) < 1e-4
    with pytest.raises(ValueError, match="the layer has none to merge it into"):
        export_onnx(model, tmp_path / "merged.onnx")


def test_an_adapter_for_another_pretrained_head_is_refused(make, tmp_path):
    """The head that pretraining made is the base's, not the adapter's."""
    model, other = (make("modernbert", "token-classification") for _ in range(2))
    with torch.no_grad():
        other.head.dense.weight.add_(1)
    for each in (model, other):
        lora_core.inject_lora(each, r=2)
    base = OnnxModel(export_onnx_base(model, tmp_path / "base.onnx"))
    adapter = save_onnx_adapter(other, "default", tmp_path / "adapter")
    with pytest.raises(ValueError, match="base"):
        base.load_adapter(adapter, "default")
