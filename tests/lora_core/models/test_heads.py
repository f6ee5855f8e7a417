import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lora_core.models import build_model, config_from_dict

FAMILIES = ("bert", "roberta", "distilbert")
TASKS = ("token-classification", "text-classification")
LABELS = ("O", "B-protein", "I-protein")


def ours(reference, task, **fields):
    """Our model with the weights of transformers' one; strict loading proves that the names are the same."""
    model = build_model(config_from_dict({**reference.config.to_dict(), **fields}), task, LABELS)
    model.load_state_dict(reference.state_dict())
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("lengths", [[1], [7, 7], [12, 3, 1, 8]], ids=["one", "even", "padded"])
def test_logits_and_gradients_equal_transformers(oracle, batch, family, task, lengths):
    reference = oracle(family, task)
    model = ours(reference, task)
    input_ids, mask = batch(lengths, reference.config.pad_token_id)
    expected = reference(input_ids, attention_mask=mask).logits
    logits = model(input_ids, mask)
    if task == "token-classification":
        assert logits.shape == (*input_ids.shape, len(LABELS))
        expected, logits = expected[mask.bool()], logits[mask.bool()]
    else:
        assert logits.shape == (len(input_ids), len(LABELS))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)

    gold = torch.arange(len(logits)) % len(LABELS)
    F.cross_entropy(logits, gold, reduction="sum").backward()
    F.cross_entropy(expected, gold, reduction="sum").backward()
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
def test_dropout_stands_where_transformers_has_it(oracle, family, task):
    own = {
        "bert": {
            "hidden_dropout_prob": 0.11,
            "attention_probs_dropout_prob": 0.22,
            "classifier_dropout": 0.33,
        },
        "roberta": {"hidden_dropout_prob": 0.11, "attention_probs_dropout_prob": 0.22},
        "distilbert": {"dropout": 0.11, "attention_dropout": 0.22, "seq_classif_dropout": 0.33},
    }[family]

    def dropouts(model):
        return {name: module.p for name, module in model.named_modules() if name.endswith("dropout")}

    reference = oracle(family, task, **own)
    assert dropouts(ours(reference, task)) == dropouts(reference)


class Halve(nn.Module):
    """Stands in for dropout where random numbers would make two models differ."""

    p = 0.0

    def forward(self, x):
        return x / 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
def test_dropout_is_applied_where_and_as_often_as_in_transformers(oracle, batch, family, task):
    reference = oracle(family, task)
    model = ours(reference, task)
    for each in (model, reference):
        names = [name for name, _ in each.named_modules() if name.endswith("dropout")]
        for name in names:
            each.set_submodule(name, Halve())
    input_ids, mask = batch([7, 4], reference.config.pad_token_id)
    with torch.no_grad():
        expected = reference(input_ids, attention_mask=mask).logits
        logits = model(input_ids, mask)
    if task == "token-classification":
        expected, logits = expected[mask.bool()], logits[mask.bool()]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
def test_every_dropout_acts_and_in_training_only(oracle, batch, family, task):
    model = ours(oracle(family, task), task)
    dropouts = {name: module for name, module in model.named_modules() if name.endswith("dropout")}
    input_ids, mask = batch([9, 5], model.config.pad_token_id)
    for acting in dropouts:
        for name, module in dropouts.items():
            module.p = 0.5 if name == acting else 0.0
        model.eval()
        expected = model(input_ids, mask)
        assert torch.equal(model(input_ids, mask), expected)
        model.train()
        assert not torch.allclose(model(input_ids, mask), expected), acting


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
def test_attributes_describe_the_model(oracle, family, task):
    model = ours(oracle(family, task), task)
    assert (model.task, model.labels, model.base_model_prefix) == (task, LABELS, family)
    assert model.base_model is getattr(model, family)
    assert model.fresh_parameters == ()
    head = {name.split(".")[0] for name, _ in model.named_parameters()} - {family}
    assert set(model.head_names) == head
    assert [model.get_submodule(layer).out_features for layer in model.label_layers] == [len(LABELS)]


@pytest.mark.parametrize("family", FAMILIES)
def test_models_can_be_copied_and_pickled(oracle, batch, family):
    model = ours(oracle(family, "text-classification"), "text-classification")
    input_ids, mask = batch([3, 5], model.config.pad_token_id)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(input_ids, mask), model(input_ids, mask))
