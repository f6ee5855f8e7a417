import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_core.models import DistilBertConfig, build_model


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    heads=st.integers(1, 4),
    head_size=st.integers(1, 6),
    layers=st.integers(1, 3),
    activation=st.sampled_from(["gelu", "relu"]),
    lengths=st.lists(st.integers(1, 16), min_size=1, max_size=4),
)
def test_equals_transformers_at_every_real_token(oracle, batch, heads, head_size, layers, activation, lengths):
    reference = oracle(
        "distilbert",
        "encoder",
        dim=heads * head_size,
        n_heads=heads,
        n_layers=layers,
        activation=activation,
    )
    model = build_model(DistilBertConfig.from_dict(reference.config.to_dict()))
    model.load_state_dict(reference.state_dict())
    input_ids, mask = batch(lengths, pad_token_id=0)
    with torch.no_grad():
        expected = reference(input_ids, attention_mask=mask).last_hidden_state
        hidden = model(input_ids, mask)
    torch.testing.assert_close(hidden[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=1e-5)


def test_the_defaults_are_those_of_transformers():
    reference = transformers.DistilBertConfig().to_dict()
    fields = DistilBertConfig().to_dict()
    assert {name: reference[name] for name in fields} == fields


def test_sizes_answer_to_the_common_names():
    config = DistilBertConfig(dim=24, n_layers=2, n_heads=3, max_position_embeddings=9)
    common = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.max_tokens)
    assert common == (24, 2, 3, 9)


def test_segments_are_refused():
    model = build_model(DistilBertConfig(50, 24, 2, 3, 40))
    input_ids = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="DistilBERT has no segments"):
        model(input_ids, token_type_ids=input_ids)


def test_heads_must_divide_dim():
    with pytest.raises(ValueError, match="dim 10 is not a multiple of n_heads 3"):
        DistilBertConfig(dim=10, n_heads=3)
