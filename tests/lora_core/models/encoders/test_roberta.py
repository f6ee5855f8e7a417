import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_core.models import RobertaConfig, build_model, config_from_dict, load_pretrained, save_pretrained


@settings(max_examples=15, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 14), min_size=1, max_size=4), pad_token_id=st.integers(0, 2))
def test_equals_transformers_at_every_real_token(oracle, batch, lengths, pad_token_id):
    """Positions depend on the padding token, wherever it stands."""
    reference = oracle("roberta", "encoder", pad_token_id=pad_token_id)
    model = build_model(RobertaConfig.from_dict(reference.config.to_dict()))
    model.add_pooler()
    model.load_state_dict(reference.state_dict())
    input_ids, mask = batch(lengths, pad_token_id)
    with torch.no_grad():
        expected = reference(input_ids, attention_mask=mask).last_hidden_state
        hidden = model(input_ids, mask)
    torch.testing.assert_close(hidden[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=1e-5)


def test_positions_skip_padding_on_the_left(oracle):
    reference = oracle("roberta", "encoder")
    model = build_model(RobertaConfig.from_dict(reference.config.to_dict()))
    model.add_pooler()
    model.load_state_dict(reference.state_dict())
    input_ids = torch.tensor([[1, 1, 7, 8, 9], [4, 5, 6, 7, 8]])
    mask = (input_ids != 1).long()
    with torch.no_grad():
        expected = reference(input_ids, attention_mask=mask).last_hidden_state
        hidden = model(input_ids, mask)
    torch.testing.assert_close(hidden[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=1e-5)


def test_padding_without_a_mask_is_treated_as_in_transformers(oracle, batch):
    """It has the padding token's position, and neither row of the padding token learns."""
    reference = oracle("roberta", "token-classification")
    model = build_model(RobertaConfig.from_dict(reference.config.to_dict()), "token-classification", ["a", "b", "c"])
    model.load_state_dict(reference.state_dict())
    input_ids, _ = batch([6, 3], pad_token_id=1)
    expected = reference(input_ids, attention_mask=torch.ones_like(input_ids)).logits
    logits = model(input_ids)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    expected.square().sum().backward()
    logits.square().sum().backward()
    for name in ("word_embeddings", "position_embeddings"):
        gradient = model.roberta.embeddings.get_submodule(name).weight.grad
        assert not gradient[1].any()
        wanted = reference.roberta.embeddings.get_submodule(name).weight.grad
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-4)


def test_max_tokens_is_what_the_position_table_can_serve():
    config = RobertaConfig(50, 24, 2, 3, 40, max_position_embeddings=18)
    assert config.max_tokens == 16
    model = build_model(config)
    longest = torch.full((1, 16), 5)
    assert model(longest).shape == (1, 16, 24)
    with pytest.raises(ValueError, match="17 tokens a sentence, the model positions for 16"):
        model(torch.full((1, 17), 5))


def test_the_defaults_are_those_of_transformers():
    reference = transformers.RobertaConfig().to_dict()
    fields = RobertaConfig().to_dict()
    assert {name: reference[name] for name in fields} == fields


def test_a_padding_token_beyond_the_position_table_is_refused():
    with pytest.raises(ValueError, match="max_position_embeddings 4 leaves no position beyond pad_token_id 3"):
        RobertaConfig(50, 24, 2, 3, 40, max_position_embeddings=4, pad_token_id=3)


TWINS = {"xlm-roberta": transformers.XLMRobertaConfig, "camembert": transformers.CamembertConfig}
AUTO_CLASSES = {
    "encoder": transformers.AutoModel,
    "token-classification": transformers.AutoModelForTokenClassification,
    "text-classification": transformers.AutoModelForSequenceClassification,
}


@pytest.mark.parametrize("family", TWINS)
@pytest.mark.parametrize("task", AUTO_CLASSES)
def test_families_under_another_name_load_and_save(oracle, batch, tmp_path, caplog, family, task):
    reference = oracle(family, task)
    reference.save_pretrained(tmp_path / "theirs")
    model = load_pretrained(tmp_path / "theirs", task)
    assert not caplog.records
    save_pretrained(model, tmp_path / "ours")
    again, report = AUTO_CLASSES[task].from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(again) is type(reference)
    assert not any(report.values())
    input_ids, mask = batch([7, 4], pad_token_id=1)
    with torch.no_grad():
        outputs = [model(input_ids, mask), *(each(input_ids, attention_mask=mask)[0] for each in (reference, again))]
    found, *expected = (output[mask.bool()] if output.dim() == 3 else output for output in outputs)
    for each in expected:
        torch.testing.assert_close(found, each, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", TWINS)
def test_their_defaults_are_those_of_transformers(family):
    reference = TWINS[family]().to_dict()
    fields = config_from_dict({"model_type": family}).to_dict()
    assert {name: reference[name] for name in fields} == fields
