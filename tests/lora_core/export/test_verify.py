import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import lora_core
from lora_core.export import OnnxModel, export_onnx, parity_batches, quantize_onnx, verify_onnx, verify_score, write
from lora_core.export.onnx_file import read_metadata


def spoil(path, value):
    """Change one weight of the last layer, and make the file whole again."""
    model = onnx.load(str(path))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "classifier.bias")
    array = numpy_helper.to_array(tensor).copy()
    array[0] = array[0] + np.float32(value)
    tensor.raw_data = array.tobytes()
    facts = read_metadata(path)
    del model.metadata_props[:]
    write.write_model(model, path, {name: text for name, text in facts.items() if name != "graph_sha256"})


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "deberta-v2", "modernbert"])
@pytest.mark.parametrize("task", ["token-classification", "text-classification"])
def test_a_true_file_passes_and_stays(make, texts, tmp_path, family, task):
    model = make(family, task).train()
    path = export_onnx(model, tmp_path / "model.onnx")
    assert 0 < verify_onnx(model, path, parity_batches(model, texts)) < 1e-5
    assert path.exists()
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [(2e-4, "differ from the model's by 0.0002, more than 0.0001"), (float("nan"), "or hold NaN or infinity")],
)
def test_a_wrong_file_is_deleted(make, texts, tmp_path, change, message):
    model = make("bert", "token-classification")
    path = export_onnx(model, tmp_path / "model.onnx")
    spoil(path, change)
    with pytest.raises(ValueError, match=rf"{message}.*The file was deleted"):
        verify_onnx(model, path, parity_batches(model, texts))
    assert list(tmp_path.iterdir()) == []


def test_int8_and_other_models_do_not_pass_as_fp32(make, texts, tmp_path):
    model = make("bert", "token-classification")
    source = export_onnx(model, tmp_path / "model.onnx")
    path = quantize_onnx(source, tmp_path / "int8.onnx")
    with pytest.raises(ValueError, match="differ from the model's"):
        verify_onnx(model, path, parity_batches(model, texts))
    assert not path.exists()
    other = make("bert", "token-classification", labels=("a", "b"))
    with pytest.raises(ValueError, match="are not those of the model"):
        verify_onnx(other, source, parity_batches(model, texts))
    assert not source.exists()


def test_files_that_cannot_be_run_and_empty_checks_do_not_pass(make, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "EXTERNAL_OVER", 1000)
    model = make("bert", "token-classification")
    path = export_onnx(model, tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="not a whole ONNX file"):
        verify_onnx(model, path, parity_batches(model, texts))
    assert list(tmp_path.iterdir()) == []
    path = export_onnx(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="no logits to compare"):
        verify_onnx(model, path, [])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="sequences must hold at least one text"):
        parity_batches(model, [])


def test_images(make, batch, tmp_path):
    model = make("vit", "image-classification")
    path = export_onnx(model, tmp_path / "model.onnx")
    assert verify_onnx(model, path, [batch(model, (1,)), batch(model, (1, 1, 1))]) < 1e-5


def test_a_model_in_half_precision_is_compared_as_it_is_in_fp32(make, texts, tmp_path):
    model = make("bert", "token-classification").bfloat16()
    lora_core.inject_lora(model, r=2, bias="all")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
    path = export_onnx(model, tmp_path / "model.onnx")
    assert verify_onnx(model, path, parity_batches(model, texts)) < 1e-5
    assert model.bert.encoder.layer[0].output.dense.weight.dtype == torch.bfloat16


def test_the_score_may_fall_by_half_a_point(make, tmp_path):
    path = export_onnx(make("bert", "token-classification"), tmp_path / "model.onnx")
    seen = []

    def score(onnx_model):
        seen.append(onnx_model)
        return 0.698

    assert verify_score(path, score, 0.70) == pytest.approx(0.2)
    assert verify_score(path, score, 0.65) == pytest.approx(-4.8)
    assert isinstance(seen[0], OnnxModel)
    assert path.exists()
    with pytest.raises(ValueError, match=r"scores 0\.6980, the model 0\.7040: a loss of 0\.60 points, at most 0\.5"):
        verify_score(path, score, 0.704)
    assert not path.exists()


@pytest.mark.parametrize("outcome", [float("nan"), KeyboardInterrupt()])
def test_no_score_deletes_too(make, tmp_path, outcome):
    path = export_onnx(make("bert", "token-classification"), tmp_path / "model.onnx")

    def score(_):
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    with pytest.raises((ValueError, KeyboardInterrupt)):
        verify_score(path, score, 0.5)
    assert not path.exists()
