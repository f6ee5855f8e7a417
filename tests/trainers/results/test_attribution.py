"""The oracles: completeness, a linear model whose shares are known, and the gradient by finite differences."""

import numpy as np
import pytest
import torch

from lora_core.models import build_model, config_from_dict
from trainers.results import attribution
from trainers.results.attribution import by_word, integrated_gradients

SIZES = {"model_type": "bert", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 32, "max_position_embeddings": 16, "type_vocab_size": 1}  # fmt: skip
IDS = torch.tensor([2, 7, 9, 7, 21, 3])
SPECIAL = torch.tensor([True, False, False, False, False, True])


class LinearModel(torch.nn.Module):
    """Logits that are a sum over the tokens."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(30, 4)
        self.out = torch.nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask):
        return self.out(self.words(input_ids)).sum(1)


@pytest.fixture
def model():
    model = build_model(config_from_dict(SIZES), "text-classification", ["a", "b", "c"], seed=0)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_shares_add_up_to_the_rise_of_the_logit(model):
    mask = torch.ones(1, 6, dtype=torch.long)
    empty = torch.where(SPECIAL, IDS, 0)
    for label in range(3):
        found = integrated_gradients(model, IDS, label, 0, SPECIAL, steps=300)
        rise = (model(IDS[None], mask) - model(empty[None], mask))[0, label].item()
        assert abs(rise) > 0.01
        assert found.difference == pytest.approx(rise, abs=1e-5)
        assert found.tokens.sum() == pytest.approx(rise, abs=0.01 * abs(rise) + 1e-4)
        assert not found.tokens[SPECIAL.numpy()].any()
    few = integrated_gradients(model, IDS, 0, 0, SPECIAL, steps=2)
    many = integrated_gradients(model, IDS, 0, 0, SPECIAL, steps=300)
    assert abs(many.tokens.sum() - many.difference) < abs(few.tokens.sum() - few.difference)


def test_of_a_linear_model_every_token_has_its_term():
    torch.manual_seed(0)
    model = LinearModel()
    terms = model.words.weight @ model.out.weight[1]
    expected = torch.where(SPECIAL, 0.0, terms[IDS] - terms[5]).detach().numpy()
    assert integrated_gradients(model, IDS, 1, 5, SPECIAL, steps=1).tokens == pytest.approx(expected, abs=1e-5)


def test_the_model_is_left_as_it_was(model):
    before = model(IDS[None])
    integrated_gradients(model, IDS, 0, 0, SPECIAL)
    assert model(IDS[None]).equal(before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_long_texts_take_no_more_memory_and_cudnn_takes_no_part(model, monkeypatch):
    seen = []
    model.register_forward_pre_hook(
        lambda module, arguments, inputs: seen.append((inputs["input_ids"].numel(), torch.backends.cudnn.enabled)),
        with_kwargs=True,
    )
    whole = integrated_gradients(model, IDS, 0, 0, SPECIAL, steps=7)
    monkeypatch.setattr(attribution, "TOKENS_AT_ONCE", 12)
    before = len(seen)
    parts = integrated_gradients(model, IDS, 0, 0, SPECIAL, steps=7)
    assert parts.tokens == pytest.approx(whole.tokens, abs=1e-6)
    assert [tokens for tokens, _ in seen[before:]] == [12, 12, 12, 6, 12]
    assert [enabled for _, enabled in seen[before:]] == [False] * 4 + [torch.backends.cudnn.enabled]


def test_words_are_sums_of_their_tokens():
    values, words = np.array([9.0, 1.0, 2.0, 3.0, 4.0, 9.0]), np.array([-1, 0, 0, 3, 4, -1])
    assert by_word(values, words).tolist() == [3.0, 3.0, 4.0]


def test_of_a_token_the_shares_add_up_to_the_rise_of_its_own_logit():
    model = build_model(config_from_dict(SIZES), "token-classification", ["O", "B-A", "I-A"], seed=0)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    model.eval()
    mask = torch.ones(1, 6, dtype=torch.long)
    empty = torch.where(SPECIAL, IDS, 0)
    rises = (model(IDS[None], mask) - model(empty[None], mask))[0]
    for position, label in ((1, 0), (4, 2)):
        found = integrated_gradients(model, IDS, label, 0, SPECIAL, steps=300, position=position)
        rise = rises[position, label].item()
        assert found.difference == pytest.approx(rise, abs=1e-5)
        assert found.tokens.sum() == pytest.approx(rise, abs=0.01 * abs(rise) + 1e-4)
