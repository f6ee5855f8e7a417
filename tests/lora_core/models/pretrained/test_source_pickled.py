"""Checkpoints as pickles: read as transformers reads them, and never a way to run code."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file
from torch.torch_version import TorchVersion

from lora_core.formats.pickled import read_pickle
from lora_core.models import load_pretrained
from lora_core.models.pretrained.source import read_tensors


@pytest.fixture
def checkpoint(oracle, tmp_path):
    """(folder, transformers' model): config.json and model.safetensors, which tests replace by pickles."""
    reference = oracle("bert", "token-classification")
    reference.save_pretrained(tmp_path)
    return tmp_path, reference


def pickled(folder, tensors=None, **options):
    """Put a pickle in the place of model.safetensors."""
    tensors = load_file(folder / "model.safetensors") if tensors is None else tensors
    (folder / "model.safetensors").unlink(missing_ok=True)
    torch.save(tensors, folder / "pytorch_model.bin", **options)
    return tensors


def assert_same_logits(folder, reference, batch, tolerance=1e-5):
    ids, mask = batch([7, 4], 0)
    model = load_pretrained(folder, "token-classification")
    with torch.no_grad():
        ours, theirs = model(ids, mask), reference(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(ours[mask.bool()], theirs[mask.bool()], atol=tolerance)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "torch 1.5"])
def test_a_pickle_is_read_as_safetensors_are(checkpoint, batch, zipped):
    folder, reference = checkpoint
    tensors = pickled(folder, _use_new_zipfile_serialization=zipped)
    found = read_tensors(folder)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert_same_logits(folder, reference, batch)


def test_shards_are_joined(checkpoint, batch):
    folder, reference = checkpoint
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"pytorch_model-00001-of-00002.bin": names[:20], "pytorch_model-00002-of-00002.bin": names[20:]}
    for file, held in files.items():
        torch.save({name: tensors[name] for name in held}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, held in files.items() for name in held}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_same_logits(folder, reference, batch)
    index["weight_map"][names[0]] = "../outside.bin"
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="shards must be plain file names"):
        load_pretrained(folder, "token-classification")


def test_names_dtypes_and_buffers_of_old_checkpoints(checkpoint, batch, caplog):
    """As google's BERT was converted: TensorFlow's names of norms, counters, the heads of pretraining, and float16."""
    folder, reference = checkpoint
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor.half()
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    tensors["bert.embeddings.position_ids"] = torch.arange(16)[None]
    tensors["cls.predictions.transform.LayerNorm.gamma"] = torch.ones(24)
    tensors["cls.seq_relationship.weight"] = torch.ones(2, 24)
    assert sum(name.endswith("gamma") for name in tensors) == 6
    pickled(folder, tensors)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(parameter.half())
    assert_same_logits(folder, reference, batch)
    assert {parameter.dtype for parameter in load_pretrained(folder, "token-classification").parameters()} == {
        torch.float32
    }
    assert "left out" not in caplog.text


class Code:
    """What a hostile checkpoint holds: reading it with pickle makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.fault("a .bin checkpoint that runs code when unpickled", "refused, nothing runs", "nothing")
@pytest.mark.parametrize("form", ["zip", "torch 1.5", "bare pickle", "in a list", "instead of a tensor"])
def test_code_in_a_pickle_never_runs(checkpoint, form):
    folder, _ = checkpoint
    sentinel = folder / "it-ran"
    content = {
        "in a list": {"weight": [Code(sentinel)]},
        "instead of a tensor": {**load_file(folder / "model.safetensors"), "x": Code(sentinel)},
    }.get(form, Code(sentinel))
    if form == "bare pickle":
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(content))
    else:
        pickled(folder, content, _use_new_zipfile_serialization=form != "torch 1.5")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin .*(could run code|not a whole file)"):
        load_pretrained(folder, "token-classification")
    assert not sentinel.exists()
    pickle.loads(pickle.dumps(Code(sentinel)))  # the trap itself works
    assert sentinel.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"a": torch.ones(1)}, "epoch": 3}, "first 'model', a dict: it is a training checkpoint"),
        ([torch.ones(1)], "holds list, not tensors by name"),
        ({}, "holds dict, not tensors by name"),
        ({1: torch.ones(1)}, "holds dict, not tensors by name"),
        (torch.ones(2), "holds Tensor, not tensors by name"),
    ],
    ids=["training checkpoint", "list", "empty", "numbers", "tensor"],
)
def test_what_is_no_state_dict_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=message):
        read_pickle(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("zipped", [True, False])
def test_cut_and_changed_files_are_errors_of_one_line(tmp_path, zipped):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.arange(100.0), "b": torch.ones(3)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for length in torch.randint(len(whole), (40,), generator=generator).tolist():
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"pytorch_model\.bin") as error:
            read_pickle(path)
        assert "\n" not in str(error.value)


def test_safetensors_come_first(checkpoint):
    folder, _ = checkpoint
    torch.save({"a": torch.ones(1)}, folder / "pytorch_model.bin")
    assert read_tensors(folder).keys() == load_file(folder / "model.safetensors").keys()


@pytest.mark.parametrize(("version", "warned"), [("2.6.0+cpu", True), ("2.9.1", True), ("2.10.0", False)])
def test_a_torch_that_pickles_can_attack_is_named(tmp_path, caplog, monkeypatch, version, warned):
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    read_pickle(tmp_path / "pytorch_model.bin")
    assert (f"torch {version} can be attacked by one (CVE-2026-24747)" in caplog.text) == warned
