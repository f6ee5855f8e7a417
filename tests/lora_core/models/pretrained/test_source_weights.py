import json

import pytest
import torch
from safetensors.torch import save_file

from lora_core.models import BertConfig, build_model
from lora_core.models.pretrained.source import read_tensors, split_encoder

ENCODER = build_model(BertConfig(50, 24, 2, 3, 40))


def test_shards_written_by_transformers_are_read_whole(oracle, tmp_path):
    reference = oracle("bert", "token-classification")
    reference.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    found = read_tensors(tmp_path)
    expected = reference.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def write_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/hostname", "sub/a.safetensors", r"..\a", "..", 3])
def test_shards_outside_the_folder_are_refused(tmp_path, shard):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"x": torch.ones(1)}, tmp_path / "outside.safetensors")
    write_index(folder, {"x": shard})
    with pytest.raises(ValueError, match="shards must be plain file names"):
        read_tensors(folder)


def test_a_shard_that_is_a_link_is_read(tmp_path):
    """The hub's cache keeps files elsewhere and links to them."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"x": torch.ones(1)}, tmp_path / "blob")
    (folder / "a.safetensors").symlink_to(tmp_path / "blob")
    write_index(folder, {"x": "a.safetensors"})
    assert read_tensors(folder).keys() == {"x"}


def test_a_leftover_copy_in_another_shard_is_not_taken(tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "a.safetensors")
    save_file({"x": torch.zeros(1), "y": torch.ones(1)}, tmp_path / "b.safetensors")
    write_index(tmp_path, {"x": "a.safetensors", "y": "b.safetensors"})
    assert read_tensors(tmp_path) == {"x": torch.ones(1), "y": torch.ones(1)}


def test_an_incomplete_set_of_shards_is_named(tmp_path):
    write_index(tmp_path, {"x": "a.safetensors", "y": "a.safetensors"})
    with pytest.raises(FileNotFoundError, match=r"names a\.safetensors, which is not in the folder"):
        read_tensors(tmp_path)
    save_file({"x": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"1 tensors that its shards lack, first y in a\.safetensors"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "index.json is not JSON"),
        ("[]", "index.json holds list instead of a JSON object"),
        ("{}", "index.json is not an index of weights"),
        ('{"weight_map": []}', "index.json is not an index of weights"),
    ],
)
def test_a_broken_index_is_named(tmp_path, text, message):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_tensors(tmp_path)


def test_no_weights_and_truncated_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        read_tensors(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_tensors(tmp_path)


def test_the_encoder_is_told_from_heads_with_and_without_the_prefix():
    x, y = torch.zeros(1), torch.ones(1)
    for prefix in ("", "bert."):
        encoder, others = split_encoder(
            {
                f"{prefix}encoder.layer.0.w": x,
                f"{prefix}embeddings.position_ids": x,
                "cls.predictions.bias": y,
            },
            ENCODER,
        )
        assert encoder == {"encoder.layer.0.w": x}
        assert others == {"cls.predictions.bias": y}


def test_the_oldest_norm_names_get_today_s():
    x, y = torch.zeros(1), torch.ones(1)
    encoder, _ = split_encoder({"bert.embeddings.LayerNorm.gamma": x, "bert.embeddings.LayerNorm.beta": y}, ENCODER)
    assert encoder == {"embeddings.LayerNorm.weight": x, "embeddings.LayerNorm.bias": y}
