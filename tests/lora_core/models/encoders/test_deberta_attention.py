import pytest
import torch
from transformers.models.deberta_v2 import modeling_deberta_v2 as theirs

from lora_core.models.encoders.deberta_attention import DisentangledSelfAttention, distance_rows, shifted
from lora_core.models.layers import additive_mask


@pytest.mark.parametrize(
    ("tokens", "span", "buckets", "most"),
    [(1, 8, 8, 24), (600, 256, 256, 512), (40, 8, 8, 24), (40, 5, 5, 12), (40, 2, 2, 12), (40, 24, -1, 24)],
)
def test_rows_of_distances_are_those_of_transformers(tokens, span, buckets, most):
    states = torch.zeros(1, tokens + 1, 1)
    relative = theirs.build_relative_position(states, states, buckets, most)[0]  # query minus key
    rows = torch.clamp(relative + span, 0, 2 * span - 1)
    found = distance_rows(tokens, span, buckets, most)
    assert torch.equal(found, torch.cat([rows[0].flip(0), rows[1:, 0]]))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5), (5, 1), (4, 4), (3, 6)])
def test_shifted_puts_the_scores_of_distances_where_they_belong(rows, columns):
    scores = torch.randn(2, rows, rows + columns)
    found = shifted(scores, columns)
    assert found.shape == (2, rows, columns)
    for row in range(rows):
        for column in range(columns):
            assert torch.equal(found[:, row, column], scores[:, row, column - row + rows])


@torch.no_grad()
@pytest.mark.parametrize("terms", [("c2p",), ("p2c",), ("c2p", "p2c")])
@pytest.mark.parametrize("asked", [1, 3, 7])
def test_the_first_tokens_may_ask_alone(terms, asked):
    torch.manual_seed(0)
    layer = DisentangledSelfAttention(
        12, 3, 0.0, terms=2, to_position="c2p" in terms, from_position="p2c" in terms, share=True, position_dropout=0.0
    )
    hidden, mask = torch.randn(2, 7, 12), additive_mask(torch.tensor([[1] * 7, [1] * 4 + [0] * 3]), torch.float32)
    query, key, value = layer.query_proj(hidden), layer.key_proj(hidden), layer.value_proj(hidden)
    index, rows = distance_rows(7, 8, 8, 24), torch.randn(1, 16, 12)
    shared = index, *(projection(rows) for projection in layer.position_layers())
    everything = layer.attend(query, key, value, mask, *shared)
    torch.testing.assert_close(layer.attend(query[:, :asked], key, value, mask, *shared), everything[:, :asked])
