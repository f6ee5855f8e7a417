import onnx
import pytest
import torch
from onnx import TensorProto, helper

from lora_core import files
from lora_core.export import OnnxModel, export_onnx, fused_counts, quantize_onnx, read_metadata, update_metadata, write
from lora_core.export.onnx_file import metadata_sha256


@pytest.fixture
def path(make, tmp_path):
    return export_onnx(make("bert", "token-classification"), tmp_path / "model.onnx")


@pytest.fixture
def external(make, tmp_path, monkeypatch):
    """A file whose weights lie beside it, as those of a model above 2 GB do."""
    monkeypatch.setattr(write, "EXTERNAL_OVER", 1000)
    return export_onnx(make("bert", "token-classification"), tmp_path / "large.onnx")


def test_another_weight_is_found_out(path):
    model = onnx.load(str(path))
    values = bytearray(model.graph.initializer[3].raw_data)
    values[0] ^= 1
    model.graph.initializer[3].raw_data = bytes(values)
    onnx.save(model, str(path))
    for read in (OnnxModel, read_metadata, fused_counts):
        with pytest.raises(ValueError, match=r"model\.onnx was changed after it was written.*export the model again"):
            read(path)
    with pytest.raises(ValueError, match="was changed after it was written"):
        quantize_onnx(path, path.with_name("int8.onnx"))


def test_every_bit_counts(path):
    data = path.read_bytes()
    end = data.index(b"lora_core_format") - 2000  # about where the metadata begins
    for at in (*range(0, end, len(data) // 40), *range(end, len(data), 61)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(ValueError):  # noqa: PT011 - what is wrong depends on the place
            read_metadata(path)


def test_other_labels_are_found_out(path):
    model = onnx.load(str(path))
    labels = next(entry for entry in model.metadata_props if entry.key == "labels")
    labels.value = '["O", "I-protein", "B-protein"]'
    onnx.save(model, str(path))
    with pytest.raises(ValueError, match=r"model\.onnx was changed after it was written: its metadata"):
        OnnxModel(path)


@pytest.mark.parametrize("kept", [0, 1, 100, -1, -5000])
def test_a_truncated_file(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model\.onnx (is not a whole ONNX file|is not an ONNX file|was not written)"):
        OnnxModel(path)


def test_other_files(path, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.onnx does not exist; export the model again, or correct"):
        OnnxModel(tmp_path / "none.onnx")
    for name, content in {"text": b"no model at all", "json": b'{"a": 1}', "pickle": b"\x80\x04\x95"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is not a"):
            OnnxModel(tmp_path / name)
    identity = helper.make_node("Identity", ["x"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    onnx.save(helper.make_model(helper.make_graph([identity], "g", values[:1], values[1:])), str(tmp_path / "other"))
    with pytest.raises(ValueError, match="other was not written by lora_core"):
        OnnxModel(tmp_path / "other")


def test_other_versions(path):
    model = onnx.load(str(path))
    model.opset_import[0].version = 11
    onnx.save(model, str(path))
    with pytest.raises(ValueError, match=r"uses the operator sets \{'': 11, 'com.microsoft': 1\}, expected"):
        OnnxModel(path)
    next(entry for entry in model.metadata_props if entry.key == "lora_core_format").value = "9"
    onnx.save(model, str(path))
    with pytest.raises(ValueError, match="has lora_core_format '9', this version reads '1'"):
        OnnxModel(path)


def test_weights_beside_the_file(external, make, batch, tmp_path):
    data = tmp_path / "large.onnx.data"
    assert external.stat().st_size < 20_000 < data.stat().st_size
    model = make("bert", "token-classification")
    with torch.no_grad():
        torch.testing.assert_close(OnnxModel(external)(**batch(model)), model(**batch(model)), rtol=1e-4, atol=1e-5)
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in (external, data):
        file.rename(moved / file.name)
    int8 = quantize_onnx(moved / external.name, tmp_path / "int8.onnx")
    assert OnnxModel(int8)(**batch(model)).shape == (3, 9, 3)
    content = (moved / data.name).read_bytes()
    (moved / data.name).write_bytes(content[:-100] + bytes(100))
    with pytest.raises(ValueError, match=r"large\.onnx\.data was changed after it was written"):
        OnnxModel(moved / external.name)
    (moved / data.name).write_bytes(content[:-1])
    with pytest.raises(ValueError, match=rf"large\.onnx\.data has {len(content) - 1} bytes, expected {len(content)}"):
        OnnxModel(moved / external.name)
    (moved / data.name).unlink()
    with pytest.raises(FileNotFoundError, match=r"needs .*large\.onnx\.data, which does not exist"):
        OnnxModel(moved / external.name)


def test_a_smaller_export_takes_the_old_weights_away(external, make, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "EXTERNAL_OVER", 10**9)
    export_onnx(make("bert", "token-classification"), external)
    assert [file.name for file in tmp_path.iterdir()] == ["large.onnx"]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/large.onnx.data"])
def test_no_weights_are_read_from_elsewhere(external, tmp_path, name):
    """Also from a file whose digests were made to fit."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "large.onnx.data").rename(tmp_path / "sub" / "large.onnx.data")
    model = onnx.load(str(external), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    metadata = read_facts(model)
    metadata["external_data"] = metadata["external_data"].replace("large.onnx.data", name)
    forge(model, metadata, external)
    with pytest.raises(ValueError, match="which is not a file of its own folder"):
        OnnxModel(external)
    metadata["external_data"] = "{}"
    forge(model, metadata, external)
    with pytest.raises(ValueError, match=r"names weights in \['.*'\], its metadata in \[\]"):
        OnnxModel(external)


def read_facts(model):
    return {entry.key: entry.value for entry in model.metadata_props}


def forge(model, metadata, path):
    """Write a file whose digest fits its content."""
    import hashlib

    del model.metadata_props[:]
    body = model.SerializeToString()
    metadata["graph_sha256"] = hashlib.sha256(body).hexdigest()
    metadata["metadata_sha256"] = metadata_sha256(metadata)
    tail = onnx.ModelProto()
    for key, value in metadata.items():
        tail.metadata_props.add(key=key, value=value)
    path.write_bytes(body + tail.SerializeToString())


def test_metadata_can_be_added_later(path, make, batch):
    before = read_metadata(path)
    update_metadata(path, {"parity": "1e-6", "f1": "0.7"})
    after = read_metadata(path)
    assert after.pop("metadata_sha256") != before.pop("metadata_sha256")
    assert after == before | {"parity": "1e-6", "f1": "0.7"}
    update_metadata(path, {"f1": "0.8"})
    assert read_metadata(path)["f1"] == "0.8"
    onnx.checker.check_model(str(path))
    assert OnnxModel(path).metadata["parity"] == "1e-6"
    with pytest.raises(ValueError, match=r"\['graph_sha256'\] belongs to the file's own checks"):
        update_metadata(path, {"graph_sha256": ""})
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


def test_a_failed_write_leaves_the_old_file(path, make, monkeypatch):
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        export_onnx(make("distilbert", "token-classification"), path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
