"""Sessions on arrays, and the weights that processes share."""

import numpy as np
import pytest
import torch

import lora_core
from lora_core.export import (
    OnnxModel,
    OnnxSession,
    export_onnx,
    export_onnx_base,
    quantize_onnx,
    save_onnx_adapter,
    session,
)


def arrays(inputs):
    return {name: tensor.numpy() for name, tensor in inputs.items()}


def test_arrays_in_and_out_are_the_modules_tensors(make, batch, tmp_path):
    model = make("roberta", "token-classification")
    found = OnnxSession(export_onnx(model, tmp_path / "model.onnx"), threads=1)
    inputs = batch(model)
    logits = found.run(**arrays(inputs))
    assert logits.dtype == np.float32
    assert np.array_equal(logits, OnnxModel.of(found)(**inputs).numpy())
    torch.testing.assert_close(torch.from_numpy(logits), model(**inputs).detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="given were none"):
        found.run()


def test_shared_weights_give_the_same_logits(make, batch, tmp_path):
    model = make("bert", "token-classification")
    path = export_onnx(model, tmp_path / "model.onnx")
    for file in (path, quantize_onnx(path, tmp_path / "model.int8.onnx")):
        alone = OnnxSession(file, threads=1)
        for _ in range(2):  # the first makes the files, the second finds them
            shared = OnnxSession(file, threads=1, shared=tmp_path / "shared")
            assert np.array_equal(shared.run(**arrays(batch(model))), alone.run(**arrays(batch(model))))
        assert shared.metadata == alone.metadata
    places = list((tmp_path / "shared").iterdir())
    assert sorted(part.name for place in places for part in place.iterdir()) == sorted(["model.onnx", "weights"] * 2)
    export_onnx(model, path)
    OnnxSession(path, shared=tmp_path / "shared")
    assert len(list((tmp_path / "shared").iterdir())) == 3


def test_adapters_act_on_shared_weights(make, batch, tmp_path):
    model = make("bert", "token-classification")
    lora_core.inject_lora(model, adapter_name="a", r=2, target_modules="all-linear")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape))
    path = export_onnx_base(model, tmp_path / "base.onnx")
    adapter = save_onnx_adapter(model, "a", tmp_path / "a.onnx_adapter")
    inputs = arrays(batch(model))
    alone = OnnxSession(path, threads=1).load_adapter(adapter, "a").run(**inputs)
    shared = OnnxSession(path, threads=1, shared=tmp_path / "shared")
    assert np.array_equal(shared.load_adapter(adapter, "a").run(**inputs), alone)
    assert not np.array_equal(shared.run(**inputs), alone)


@pytest.mark.fault("no room for the weights that processes share", "each has its own; a line says so", "nothing")
def test_weights_that_cannot_be_shared_are_loaded_alone(make, tmp_path, monkeypatch, caplog):
    path = export_onnx(make("bert", "token-classification"), tmp_path / "model.onnx")
    monkeypatch.setattr(session.Path, "rename", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    assert session.shared_file(path, tmp_path / "shared") == path
    assert "do not share the weights" in caplog.text
    assert list((tmp_path / "shared").iterdir()) == []


def test_a_session_knows_the_file_that_it_loaded(make, tmp_path):
    path = export_onnx(make("roberta", "token-classification"), tmp_path / "model.onnx")
    loaded = OnnxSession(path, threads=1)
    assert loaded.stamp == session.file_stamp(path)
    (tmp_path / "copy").write_bytes(path.read_bytes())
    (tmp_path / "copy").rename(path)
    assert loaded.stamp != session.file_stamp(path)
    assert session.file_stamp(tmp_path / "none") == session.file_stamp(path / "below a file") == ()
