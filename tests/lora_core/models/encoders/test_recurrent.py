"""torch's own LSTM on each text alone, without padding, is the oracle of the packed one."""

import pytest
import torch

from lora_core.models import build_model, config_from_dict, load_pretrained, save_pretrained
from lora_core.models.layers import PackedLSTM

SIZES = {"vocab_size": 30, "embedding_size": 5, "hidden_size": 8}
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_padding_is_not_seen(bidirectional, num_layers):
    torch.manual_seed(0)
    packed = PackedLSTM(5, 4, num_layers=num_layers, bidirectional=bidirectional).eval()
    x = torch.randn(3, 4, 5)
    outputs, last = packed(x, MASK)
    for row, length in enumerate(MASK.sum(1)):
        expected, (states, _) = packed.lstm(x[row : row + 1, :length])
        torch.testing.assert_close(outputs[row : row + 1, :length], expected)
        assert not outputs[row, length:].any()
        final = [states[-2, 0], states[-1, 0]] if bidirectional else [states[-1, 0]]
        torch.testing.assert_close(last[row], torch.cat(final))
    without_mask, _ = packed(x, None)
    torch.testing.assert_close(without_mask[2], outputs[2])


def test_masks_that_an_lstm_cannot_take():
    packed = PackedLSTM(5, 4)
    outputs, _ = packed(torch.randn(2, 3, 5), torch.tensor([[0, 0, 0], [1, 1, 1]]))
    assert outputs.isfinite().all()
    with pytest.raises(ValueError, match="padding before a token"):
        packed(torch.randn(2, 3, 5), torch.tensor([[0, 1, 1], [1, 1, 1]]))


@pytest.mark.parametrize("family", ["lstm", "bilstm-attention"])
def test_the_encoder_is_embeddings_and_an_lstm(tmp_path, family):
    config = config_from_dict({"model_type": family, **SIZES})
    model = build_model(config, seed=3)
    ids = torch.tensor([[4, 9, 2, 0], [7, 0, 0, 0], [1, 2, 3, 4]])
    directions = 2 if family == "bilstm-attention" else 1
    oracle = torch.nn.LSTM(5, 8 // directions, batch_first=True, bidirectional=directions == 2)
    oracle.load_state_dict(model.encoder.lstm.state_dict())
    hidden = model(ids, MASK)
    for row, length in enumerate(MASK.sum(1)):
        expected, _ = oracle(model.embeddings.word_embeddings.weight[ids[row, :length]][None])
        torch.testing.assert_close(hidden[row, :length], expected[0])
    save_pretrained(model, tmp_path)
    again = load_pretrained(tmp_path)
    assert again.config == config
    assert torch.equal(again(ids, MASK), hidden)


def test_what_the_families_refuse():
    config = config_from_dict({"model_type": "lstm", **SIZES})
    model = build_model(config)
    with pytest.raises(ValueError, match="no segments"):
        model(torch.ones(1, 3, dtype=torch.int64), None, torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="513 tokens"):
        model(torch.ones(1, 513, dtype=torch.int64))
    with pytest.raises(ValueError, match="no attention layers"):
        config.with_dropout(attention=0.1, hidden=None)
    assert config.with_dropout(attention=0.0, hidden=0.5).hidden_dropout_prob == config.head_dropout + 0.2 == 0.5
    with pytest.raises(ValueError, match="hidden_size 7 is not a multiple of 2"):
        config_from_dict({"model_type": "bilstm-attention", **SIZES, "hidden_size": 7})
