import pytest
import torch

import lora_core
from lora_core.export import (
    OnnxModel,
    export_onnx,
    export_onnx_base,
    parity_batches,
    quantize_onnx,
    save_onnx_adapter,
    verify_onnx,
    verify_onnx_adapter,
)
from lora_core.models import build_model, config_from_dict
from lora_core.models.heads import HEADS

EXPORTED = ("linear", "mlp", "textcnn", "attention", "lstm", "crf")


@pytest.fixture
def with_head(make):
    """`with_head(family, head)`: a random model with one of the heads that suit every text encoder."""

    def build(family, head):
        plain = make(family, HEADS[head].task)
        model = build_model(plain.config, HEADS[head].task, plain.labels, head=head)
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                if name.startswith("classifier."):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
                else:
                    parameter.copy_(plain.get_parameter(name))
        if head == "attention":
            model.classifier.mark_confusing(range(3, 20), 2.0)
        if head == "crf":
            model.classifier.constrain(torch.rand(model.classifier.transitions.shape, generator=generator) < 0.7)
        return model

    return build


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "deberta-v2", "modernbert"])
@pytest.mark.parametrize("head", EXPORTED)
def test_logits_equal_the_models(with_head, texts, batch, tmp_path, family, head):
    model = with_head(family, head)
    path = export_onnx(model, tmp_path / "model.onnx")
    assert verify_onnx(model, path, parity_batches(model, texts)) < 1e-5
    inputs = batch(model, (9, 4, 1))
    rounded = OnnxModel(quantize_onnx(path, tmp_path / "model.int8.onnx"))(**inputs)
    expected = model(**inputs)
    assert (rounded - expected).norm() < 0.1 * expected.norm()
    half = verify_onnx(model.half(), export_onnx(model, tmp_path / "half.onnx"), parity_batches(model, texts))
    assert half < 1e-4


@pytest.mark.parametrize("head", EXPORTED)
def test_adapters_bring_their_heads_to_a_base(with_head, texts, tmp_path, head):
    model = with_head("bert", head)
    for number, name in enumerate(("one", "two")):
        lora_core.add_adapter(model, name, r=2)
        lora_core.set_adapter(model, name)
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape) * 0.2)
            if head == "attention":
                model.classifier.mark_confusing([5 + number], 3.0)
    base = OnnxModel(export_onnx_base(model, tmp_path / "base.onnx"))
    for name in ("one", "two"):
        path = save_onnx_adapter(model, name, tmp_path / f"{name}.onnx_adapter")
        assert verify_onnx_adapter(model, name, base, path, parity_batches(model, texts)) < 1e-4


def test_what_cannot_be_exported(tmp_path):
    for family in ("lstm", "bilstm-attention"):
        model = build_model(
            config_from_dict({"model_type": family, "vocab_size": 20}), "text-classification", ["a", "b"]
        )
        with pytest.raises(ValueError, match=f"{family} models cannot be exported as ONNX"):
            export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
