import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_core.models import BertConfig, BertModel, build_model


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    heads=st.integers(1, 4),
    head_size=st.integers(1, 6),
    layers=st.integers(1, 3),
    intermediate=st.integers(1, 30),
    activation=st.sampled_from(["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu", "swish"]),
    eps=st.sampled_from([1e-12, 1e-2]),
    lengths=st.lists(st.integers(1, 16), min_size=1, max_size=4),
    segments=st.booleans(),
    data=st.data(),
)
def test_equals_transformers_at_every_real_token(
    oracle, batch, heads, head_size, layers, intermediate, activation, eps, lengths, segments, data
):
    reference = oracle(
        "bert",
        "encoder",
        hidden_size=heads * head_size,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        intermediate_size=intermediate,
        hidden_act=activation,
        layer_norm_eps=eps,
    )
    model = build_model(BertConfig.from_dict(reference.config.to_dict()))
    model.add_pooler()
    model.load_state_dict(reference.state_dict())
    input_ids, mask = batch(lengths, pad_token_id=0)
    token_type_ids = None
    if segments:
        token_type_ids = torch.tensor(
            data.draw(st.lists(st.integers(0, 1), min_size=input_ids.numel(), max_size=input_ids.numel()))
        ).view_as(input_ids)
    with torch.no_grad():
        expected = reference(input_ids, attention_mask=mask, token_type_ids=token_type_ids)
        hidden = model(input_ids, mask, token_type_ids)
        pooled = model.pooler(hidden)
    torch.testing.assert_close(hidden[mask.bool()], expected.last_hidden_state[mask.bool()], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pooled, expected.pooler_output, rtol=1e-5, atol=1e-5)


def test_forward_takes_no_mask_and_a_bool_mask(oracle, batch):
    reference = oracle("bert", "encoder")
    model = build_model(BertConfig.from_dict(reference.config.to_dict()))
    input_ids, mask = batch([5, 9], pad_token_id=0)
    with torch.no_grad():
        assert torch.equal(model(input_ids, mask.bool()), model(input_ids, mask))
        torch.testing.assert_close(model(input_ids), model(input_ids, torch.ones_like(mask)))
        assert not torch.allclose(model(input_ids), model(input_ids, mask))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_row_of_padding_is_finite_in_every_precision(batch, dtype, training):
    """A mask of minus infinity, or of the least float32 cast to a half type, would give NaN."""
    model = build_model(BertConfig(50, 24, 2, 3, 40)).train(training)
    input_ids, mask = batch([4, 6], pad_token_id=0)
    mask[0] = 0
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        hidden = model(input_ids, mask)
    hidden.float().square().sum().backward()
    assert hidden.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_the_defaults_are_those_of_transformers():
    reference = transformers.BertConfig().to_dict()
    fields = BertConfig().to_dict()
    assert {name: reference[name] for name in fields} == fields


def test_a_bare_encoder_has_no_pooler_until_asked():
    model = build_model(BertConfig(50, 24, 2, 3, 40))
    assert model.pooler is None
    model.add_pooler()
    pooler = model.pooler
    assert pooler(torch.ones(2, 5, 24)).shape == (2, 24)


def test_heads_must_divide_the_hidden_size():
    with pytest.raises(ValueError, match="hidden_size 10 is not a multiple of num_attention_heads 3"):
        BertConfig(hidden_size=10, num_attention_heads=3)


def test_class_attributes_describe_a_bare_encoder():
    assert (BertModel.base_model_prefix, BertModel.task, BertModel.labels) == ("bert", "encoder", ())
    assert BertConfig().max_tokens == 512
