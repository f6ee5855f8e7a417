import json
import time

import pytest
import torch
from safetensors.torch import save_file

from lora_core.models import BertConfig, build_model, config_from_dict, load_pretrained, save_pretrained
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


def test_a_shard_that_is_a_link_of_the_hubs_cache_is_read_and_no_other_link(tmp_path):
    """The hub's cache keeps files elsewhere and links to them."""
    folder, blobs = tmp_path / "models--a--b/snapshots/1", tmp_path / "models--a--b/blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    save_file({"x": torch.ones(1)}, blobs / "blob")
    (folder / "a.safetensors").symlink_to("../../blobs/blob")
    write_index(folder, {"x": "a.safetensors"})
    assert read_tensors(folder).keys() == {"x"}
    (folder / "a.safetensors").unlink()
    (blobs / "blob").rename(tmp_path / "secret")
    (folder / "a.safetensors").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"a\.safetensors is a link to .*secret, outside its folder"):
        read_tensors(folder)


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


@pytest.mark.fault("a config.json with endless layers or sizes", "refused before it is built", "none")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 10**7}, "says that there are 10000000 layers, but the weights beside it are 21 tensors"),
        ({"intermediate_size": 10**18}, "intermediate_size|names sizes that no tensor can have"),
        ({"intermediate_size": 10**400}, "names sizes that no tensor can have"),
        ({"intermediate_size": 10**9}, "of another shape"),
        ({"num_attention_heads": 1e400}, "num_attention_heads is inf, but it should be a whole number"),
        ({"pad_token_id": 9}, "pad_token_id is 9; expected an id below vocab_size, 9"),
        ({"architectures": 3}, "architectures is 3; expected a list of names"),
        ({"model_type": ["bert"]}, r"model_type is \['bert'\]; implemented are"),
    ],
)
def test_an_enemys_config_ends_at_once(fields, message, tmp_path):
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
    model = build_model(config_from_dict({"model_type": "bert", "vocab_size": 9, **sizes}))
    save_pretrained(model, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | fields
    (tmp_path / "config.json").write_text(json.dumps(values))
    started = time.perf_counter()
    with pytest.raises(ValueError, match=message) as error:
        load_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert time.perf_counter() - started < 5  # it takes milliseconds; without the check, hours


@pytest.mark.fault("NaN or infinity in a base model's weights", "refused, the tensors named", "none")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(value, tmp_path):
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
    model = build_model(config_from_dict({"model_type": "bert", "vocab_size": 9, **sizes}))
    names = ["embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.bias"]
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).view(-1)[-1] = value
    save_pretrained(model, tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be used .*: {', '.join(names)} hold NaN or infinity"):
        load_pretrained(tmp_path)


def test_weights_whose_sum_is_too_large_are_numbers(tmp_path):
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
    model = build_model(config_from_dict({"model_type": "bert", "vocab_size": 9, **sizes}))
    torch.nn.init.constant_(model.get_parameter("embeddings.word_embeddings.weight"), 3e38)
    save_pretrained(model, tmp_path)
    load_pretrained(tmp_path)
