import json

import pytest

from lora_core.models import BertConfig, DistilBertConfig, config_from_dict
from lora_core.models.pretrained.source import read_config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("position_embedding_type", "relative_key", "only 'absolute' is implemented"),
        ("is_decoder", True, "is_decoder is True; only False"),
        ("add_cross_attention", True, "add_cross_attention is True; only False"),
        ("hidden_act", "quick_gelu", "hidden_act is 'quick_gelu'; implemented are gelu, "),
        ("hidden_size", "768", "hidden_size is '768', but it should be a whole number"),
        ("hidden_size", 768.0, "hidden_size is 768.0, but it should be a whole number"),
        ("hidden_size", True, "hidden_size is True, but it should be a whole number"),
        ("num_hidden_layers", 0, "num_hidden_layers is 0; expected at least 1"),
        ("pad_token_id", None, "pad_token_id is None, but it should be a whole number"),
        ("pad_token_id", -1, "pad_token_id is -1; expected at least 0"),
        ("hidden_dropout_prob", 1.0, "hidden_dropout_prob is 1.0; expected at least 0 and below 1"),
        ("layer_norm_eps", None, "layer_norm_eps is None, but it should be a number"),
    ],
)
def test_values_that_cannot_be_honoured_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        BertConfig.from_dict({field: value})


def test_unused_fields_are_left_aside():
    values = {
        "model_type": "bert",
        "hidden_size": 24,
        "vocab_size": 7,
        "use_cache": True,
        "tie_word_embeddings": 1,
    }
    assert config_from_dict(values) == BertConfig(hidden_size=24, vocab_size=7)


def test_integers_pass_where_floats_are_meant():
    assert BertConfig.from_dict({"hidden_dropout_prob": 0, "classifier_dropout": None}).hidden_dropout_prob == 0


@pytest.mark.parametrize("config", [BertConfig(hidden_size=24), DistilBertConfig(dim=24)])
def test_to_dict_is_read_back(config):
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_with_dropout_sets_the_family_s_own_fields():
    bert = BertConfig().with_dropout(attention=0.3, hidden=None)
    assert (bert.attention_probs_dropout_prob, bert.hidden_dropout_prob) == (0.3, 0.1)
    distilbert = DistilBertConfig().with_dropout(attention=None, hidden=0.4)
    assert (distilbert.attention_dropout, distilbert.dropout, distilbert.seq_classif_dropout) == (
        0.1,
        0.4,
        0.2,
    )


def test_read_config_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds list instead of a JSON object"):
        read_config(tmp_path)
