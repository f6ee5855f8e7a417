import dataclasses
import json
import shutil

import pytest
import torch

from lora_core.export import OnnxSession, export_onnx, quantize_onnx, session, update_metadata
from lora_core.models import load_pretrained, save_pretrained
from lora_core.models.task_model import TaskModel
from trainers.config import RunConfig
from trainers.data.texts.encode import TextProcessing
from trainers.model import load_model
from trainers.serve import pipeline
from trainers.serve.served import load_served

IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]])


def logits(served):
    return torch.from_numpy(served.logits(input_ids=IDS.numpy(), attention_mask=(IDS != 0).long().numpy()))


@pytest.mark.parametrize("method", ["lora", "full", "head"])
def test_a_run_its_weights_folder_and_its_onnx_file_are_one_model(method, finished, tmp_path):
    folder = finished[method]
    config = RunConfig.from_dict(json.loads((folder / "config.json").read_text()), "")
    model = load_model(dataclasses.replace(config, output_dir=folder), load_served(folder).labels)
    with torch.inference_mode():
        expected = model(IDS, (IDS != 0).long())
    tokenizer = (folder / ("adapter" if method == "lora" else "best") / "tokenizer.json").read_text()
    path = export_onnx(model, tmp_path / "model.onnx", metadata={"tokenizer.json": tokenizer})
    for source in (folder, folder / ("adapter" if method == "lora" else "best"), str(path)):
        served = load_served(source)
        torch.testing.assert_close(logits(served), expected, atol=1e-5, rtol=1e-5)
        assert served.labels == model.labels
        assert (served.task, served.max_length, served.pad_token_id) == ("token-classification", 24, 0)
        assert served.vocab_size == model.config.vocab_size
        assert served.tokenizer().encode("il2 gene").tokens == ["[CLS]", "il2", "gene", "[SEP]"]
        assert source == str(path) or not any("lora_" in name for name in served.model.state_dict())


def test_settings_that_inference_needs_come_from_the_run_and_from_the_file(finished, tmp_path):
    folder = shutil.copytree(finished["full"], tmp_path / "run")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "max_length": 12, "long_text": "head_tail"}))
    assert (load_served(folder).max_length, load_served(folder).long_text) == (12, "head_tail")
    model = load_served(folder).model
    assert isinstance(model, TaskModel)
    path = export_onnx(model, tmp_path / "model.onnx")
    assert (load_served(path).max_length, load_served(path).long_text) == (24, "head")
    update_metadata(path, {"text_processing.json": TextProcessing(12, "head_tail").to_json()})
    assert (load_served(path).max_length, load_served(path).long_text) == (12, "head_tail")
    update_metadata(path, {"text_processing.json": "{"})
    with pytest.raises(ValueError, match=r"model\.onnx: text_processing\.json is not JSON"):
        load_served(path)


def test_a_model_that_left_its_run_keeps_the_settings(finished, tmp_path):
    moved = shutil.copytree(finished["full"] / "best", tmp_path / "moved")
    assert (load_served(moved).max_length, load_served(moved).long_text) == (24, "head")
    TextProcessing(12, "head_tail").save(moved)
    assert (load_served(moved).max_length, load_served(moved).long_text) == (12, "head_tail")


def test_a_folder_of_exports_is_served_int8_first(finished, tmp_path):
    model = load_served(finished["full"]).model
    assert isinstance(model, TaskModel)
    folder = tmp_path / "exports"
    path = export_onnx(model, folder / "model.onnx")
    assert load_served(folder).source == str(path)
    assert load_served(folder, "token-classification").labels == model.labels
    quantize_onnx(path, folder / "model.int8.onnx")
    assert load_served(folder).source == str(folder / "model.int8.onnx")
    shutil.copy(path, finished["full"] / "model.onnx")  # beside a run's own model it is not taken unasked
    assert load_served(finished["full"]).source == str(finished["full"])
    (finished["full"] / "model.onnx").unlink()


def test_device_of_an_onnx_file(finished, tmp_path, monkeypatch):
    model = load_served(finished["full"]).model
    assert isinstance(model, TaskModel)
    path = export_onnx(model, tmp_path / "model.onnx")
    served = load_served(path, device="cpu").model
    assert isinstance(served, OnnxSession)
    assert served.providers == ["CPUExecutionProvider"]
    monkeypatch.setattr(session, "_available", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ValueError, match="has no CUDAExecutionProvider here"):
        load_served(path, device="cuda:0")
    for device in ("meta", "cuda:1", "gpu"):
        with pytest.raises(ValueError, match=f"device is '{device}'"):
            load_served(path, device=device)
    assert load_served(path, device="cpu:0").source == str(path)


def test_a_device_that_is_not_there(finished, monkeypatch):
    with pytest.raises(ValueError, match="device is 'gpu'; expected one such as cpu"):
        load_served(finished["full"], device="gpu")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"device is .cuda., but torch .* finds 0 CUDA devices"):
        load_served(finished["full"], device="cuda")


def test_a_run_is_loaded_without_a_warning_of_a_fresh_head(finished, caplog):
    load_served(finished["lora"])
    assert caplog.text == ""


def test_the_architecture_tells_the_task(checkpoint, tmp_path):
    save_pretrained(load_pretrained(checkpoint, "text-classification", ["a", "b"]), tmp_path)
    assert load_served(tmp_path).task == "text-classification"
    assert load_served(checkpoint).task == "token-classification"


def test_what_cannot_be_served(finished, checkpoint, data, tmp_path):
    with pytest.raises(FileNotFoundError, match="lora-core export RUN"):
        load_served(finished["lora"] / "model.onnx")
    with pytest.raises(ValueError, match="does token-classification, not text-classification"):
        load_served(finished["lora"], "text-classification")
    adapter = shutil.copytree(finished["lora"] / "adapter", tmp_path / "adapter")
    (adapter / "head.json").unlink()  # as older versions wrote it
    with pytest.raises(ValueError, match="adapter without its run"):
        load_served(adapter)
    with pytest.raises(ValueError, match="no head for text-classification"):
        load_served(checkpoint, "text-classification")
    save_pretrained(load_pretrained(checkpoint), tmp_path / "encoder")
    with pytest.raises(ValueError, match="tell no task of token-classification"):
        load_served(tmp_path / "encoder")
    unfinished = shutil.copytree(finished["lora"], tmp_path / "unfinished")
    (unfinished / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="has not finished"):
        load_served(unfinished)
    path = export_onnx(load_pretrained(checkpoint, "token-classification"), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load_served(path).tokenizer()
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"junk\.onnx"):
        load_served(tmp_path / "junk.onnx")
    content = path.read_bytes()
    weights = load_pretrained(checkpoint).state_dict()["embeddings.word_embeddings.weight"].numpy().tobytes()
    path.write_bytes(content.replace(weights, weights[:-1] + b"\x7f"))
    with pytest.raises(ValueError, match=r"model\.onnx was changed after it was written"):
        load_served(path)


def test_a_tokenizer_that_pads_is_as_one_that_does_not(finished, tmp_path):
    path = tmp_path / "model.onnx"
    folder = finished["full"] / "best"
    model = load_pretrained(folder, "token-classification")
    tokenizer = load_served(finished["full"]).tokenizer()
    export_onnx(model, path, metadata={"tokenizer.json": tokenizer.to_str()})
    expected = pipeline(model=path)("nfkb binds the il2 promoter")
    tokenizer.enable_padding(length=20)
    tokenizer.enable_truncation(2)
    export_onnx(model, path, metadata={"tokenizer.json": tokenizer.to_str()})
    assert pipeline(model=path)("nfkb binds the il2 promoter") == expected != []
