from concurrent.futures import ThreadPoolExecutor

import onnxruntime
import pytest
import torch

from lora_core.export import OnnxModel, export_onnx, session


@pytest.fixture
def model(make):
    return make("roberta", "token-classification")


@pytest.fixture
def onnx_model(model, tmp_path):
    return OnnxModel(export_onnx(model, tmp_path / "model.onnx"), threads=1)


def test_it_takes_what_the_model_takes(model, onnx_model, batch):
    inputs = batch(model)
    expected = model(**inputs).detach()
    ids, mask = inputs.values()
    for given in ((ids, mask), (ids.int(), mask.bool()), (ids, mask * 7), (ids.T.contiguous().T, mask.float())):
        torch.testing.assert_close(onnx_model(*given), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(onnx_model(ids), model(ids).detach(), rtol=1e-4, atol=1e-5)
    assert onnx_model(ids[:0], mask[:0]).shape == (0, 9, 3)
    assert onnx_model.eval() is onnx_model
    assert (onnx_model.max_tokens, onnx_model.vocab_size) == (16, 50)


def test_wrong_inputs(model, onnx_model, batch, make, tmp_path):
    ids, mask = batch(model).values()
    with pytest.raises(ValueError, match="17 tokens a sentence, the model positions for 16"):
        onnx_model(torch.full((1, 17), 5))
    with pytest.raises(ValueError, match="attention_mask has shape"):
        onnx_model(ids, mask[:, 1:])
    for wrong in (-1, 50):
        with pytest.raises(ValueError, match="the model has embeddings for 0 to 49; use the model's own tokenizer"):
            onnx_model(torch.tensor([[3, wrong]]))
    with pytest.raises(ValueError, match="takes input_ids, attention_mask; given were pixel_values"):
        onnx_model(pixel_values=torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="given were none"):
        onnx_model()
    image_model = OnnxModel(export_onnx(make("vit", "image-classification"), tmp_path / "image.onnx"))
    assert image_model.image_shape == (3, 8, 8)
    with pytest.raises(ValueError, match="takes pixel_values; given were input_ids"):
        image_model(ids)
    with pytest.raises(ValueError, match=r"the images have 9 x 8 pixels"):
        image_model(pixel_values=torch.zeros(1, 3, 9, 8))


def test_threads_of_the_caller_share_it(model, onnx_model, batch):
    batches = [batch(model, (length,)) for length in range(1, 17)] * 3
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda inputs: onnx_model(**inputs), batches))
    for inputs, logits in zip(batches, found, strict=True):
        torch.testing.assert_close(logits, model(**inputs).detach(), rtol=1e-4, atol=1e-5)


def test_providers(onnx_model, monkeypatch):
    assert onnx_model.providers == ["CPUExecutionProvider"]
    with pytest.raises(ValueError, match=r"onnxruntime has no NoneExecutionProvider here; it has .*CPU"):
        OnnxModel(onnx_model.path, providers=["NoneExecutionProvider"])
    asked = []
    monkeypatch.setattr(session, "_available", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda _, options, providers, **more: asked.append(providers))
    with pytest.raises(AttributeError):  # what stands for the session is None
        OnnxModel(onnx_model.path)
    assert asked == [[("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]]


def test_threads_and_spinning(onnx_model, monkeypatch):
    asked = []

    def note(_, options, providers, **more):
        key = "session.intra_op.allow_spinning"
        asked.append((options.intra_op_num_threads, options.get_session_config_entry(key)))
        raise RuntimeError("noted")

    monkeypatch.setattr(onnxruntime, "InferenceSession", note)
    for settings in ({}, {"threads": 3}, {"spinning": False}):
        with pytest.raises(ValueError, match="noted"):
            OnnxModel(onnx_model.path, **settings)
    assert asked == [(torch.get_num_threads(), "1"), (3, "1"), (torch.get_num_threads(), "0")]


def test_a_runtime_that_does_not_know_an_operator(onnx_model, monkeypatch):
    def refuse(*_, **__):
        raise onnxruntime.capi.onnxruntime_pybind11_state.Fail("unknown operator")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(ValueError, match=r"cannot run .*model\.onnx \(unknown operator\); install a newer one"):
        OnnxModel(onnx_model.path)
