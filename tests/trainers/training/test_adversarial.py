"""The oracles: the gradient as autograd gives it, plain training with the loss written out, one big batch."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lora_core.models import build_model, config_from_dict
from trainers.config import TrainConfig
from trainers.data.batches import epoch_batches
from trainers.data.tokens.windows import IGNORED_LABEL
from trainers.loop import fit
from trainers.tasks.token import TokenClassification
from trainers.training.adversarial import EmbeddingAdversary, NoAdversary, WeightAdversary, build_adversary, uphill

CONFIG = TrainConfig(epochs=1, batch_size=8, learning_rate=1e-3, metric="loss", seed=7, group_by_length=3)
ADVERSARIES = {"fgm": EmbeddingAdversary, "awp": WeightAdversary}
VIT = {"model_type": "vit", "image_size": 4, "patch_size": 2, "hidden_size": 8, "num_hidden_layers": 1,
       "num_attention_heads": 2, "intermediate_size": 8}  # fmt: skip


def loss_of(model, batch):
    inputs, labels = batch
    return F.cross_entropy(model(**inputs).flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL)


@pytest.fixture
def batch(tiny):
    return tiny.windows(6).collate(np.arange(6))


@pytest.fixture
def model(tiny):
    """LoRA with a B that is not zero, frozen embeddings, and no dropout."""
    model = tiny.build(lora=True)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    assert not model.bert.embeddings.word_embeddings.weight.requires_grad
    return model.train()


@pytest.mark.parametrize("name", ADVERSARIES)
def test_the_second_pass_is_worse_and_leaves_no_trace(tiny, model, batch, name):
    before = tiny.weights(model)
    losses, gradients = [], []
    for perturbed, parts in ADVERSARIES[name](model, 0.05).passes(iter([batch])):
        assert perturbed == bool(losses)
        loss = loss_of(model, *parts)
        loss.backward()
        losses.append(loss.item())
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
    assert losses[1] > losses[0]
    assert all(value.equal(before[key]) for key, value in tiny.weights(model).items())
    assert loss_of(model, batch).item() == losses[0]
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert gradients[1].keys() == trained
    assert not any(gradients[0][key].equal(gradients[1][key]) for key in trained)


def test_fgm_moves_each_examples_embeddings_along_their_gradient(model, batch):
    inputs, _ = batch
    table = model.bert.embeddings.word_embeddings
    embedded = table(inputs["input_ids"]).detach().requires_grad_()
    seen = []
    adversary = EmbeddingAdversary(model, epsilon=0.7)
    for _, parts in adversary.passes(iter([batch])):
        handle = table.register_forward_hook(lambda module, arguments, output: seen.append(output.detach()))
        loss_of(model, *parts).backward()
        handle.remove()
    handle = table.register_forward_hook(lambda module, arguments, output: embedded)
    (gradient,) = torch.autograd.grad(loss_of(model, batch), embedded)
    handle.remove()
    norms = gradient.flatten(1).norm(dim=1)
    assert seen[0].equal(embedded)
    torch.testing.assert_close(seen[1] - seen[0], 0.7 * gradient / norms[:, None, None], atol=1e-6, rtol=1e-4)
    assert not (seen[1] - seen[0])[inputs["attention_mask"] == 0].any()


def test_awp_moves_trained_matrices_along_their_gradient_in_proportion_to_their_norm(tiny, model, batch):
    adversary = WeightAdversary(model, epsilon=0.02)
    before = tiny.weights(model)
    for perturbed, parts in adversary.passes(iter([batch])):
        if not perturbed:
            loss_of(model, *parts).backward()
            continue
        matrices = 0
        for name, parameter in model.named_parameters():
            change = parameter.detach() - before[name]
            if parameter.requires_grad and parameter.ndim > 1:
                expected = 0.02 * before[name].norm() * parameter.grad / parameter.grad.norm()
                torch.testing.assert_close(change, expected, atol=1e-7, rtol=1e-3)
                matrices += 1
            else:
                assert not change.any()
        assert matrices == 2 * 2 * 2 + 1  # A and B, of query and value, in two layers; the classifier


def test_weights_come_back_after_an_error(tiny, model, batch):
    before = tiny.weights(model)
    passes = WeightAdversary(model).passes(iter([batch]))
    loss_of(model, *next(passes)[1]).backward()
    next(passes)
    assert not model.classifier.weight.equal(before["classifier.weight"])
    passes.close()
    assert model.classifier.weight.equal(before["classifier.weight"])
    passes = EmbeddingAdversary(model).passes(iter([batch]))
    next(passes)
    passes.close()
    assert not model.bert.embeddings.word_embeddings._forward_hooks


def test_a_gradient_without_direction_moves_nothing():
    gradient = torch.tensor([[3.0, 4.0], [0.0, 0.0], [float("inf"), 1.0], [float("nan"), 1.0]])
    assert uphill(gradient, 10.0).tolist() == [[6.0, 8.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]


# In the loop


@pytest.fixture
def run(tiny, alone, tmp_path):
    def run(config, name="run", lora=True, dropout=0.0, resume_from=None, train=None):
        model = tiny.build(dropout=dropout, lora=lora)
        train, task = train or tiny.windows(40), TokenClassification(tiny.LABELS)
        fit(model, task, train, tiny.windows(5, seed=1), config, alone, tmp_path / name, resume_from)
        return model

    return run


def largest_difference(one, other):
    return max((a - b).abs().max().item() for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", ADVERSARIES)
def test_a_step_takes_the_sum_of_both_gradients(tiny, run, name):
    train = tiny.windows(8)
    config = dataclasses.replace(CONFIG, adversarial=name, max_grad_norm=0.0, schedule="constant")
    model = run(config, train=train)
    plain = tiny.build(lora=True)
    (indices,) = epoch_batches(train.lengths, 8, seed=7, epoch=0, group=3)
    for _, parts in ADVERSARIES[name](plain).passes(iter([train.collate(indices)])):
        loss_of(plain, *parts).backward()
    trained = [p for p in plain.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.01},
              {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0}]  # fmt: skip
    torch.optim.AdamW(groups, lr=1e-3).step()
    assert largest_difference(model, plain) < 1e-5
    assert largest_difference(model, run(dataclasses.replace(config, adversarial="none"), "off", train=train)) > 1e-4


@pytest.mark.parametrize("name", ADVERSARIES)
@pytest.mark.parametrize("lora", [True, False])
def test_micro_batches_change_nothing_and_the_log_holds_the_first_pass(run, tmp_path, name, lora):
    config = dataclasses.replace(CONFIG, adversarial=name)
    whole = run(config, "whole", lora)
    parts = run(dataclasses.replace(config, micro_batch_size=3), "parts", lora)
    assert largest_difference(whole, parts) < 2e-5
    off = run(CONFIG, "off", lora)
    assert largest_difference(whole, off) > 1e-4
    still = dataclasses.replace(config, learning_rate=1e-12)
    run(still, "still", lora)
    run(dataclasses.replace(still, adversarial="none"), "still off", lora)
    losses = [json.loads((tmp_path / folder / "metrics.jsonl").read_text())["train_loss"]
              for folder in ("still", "still off")]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("name", ADVERSARIES)
def test_a_resumed_run_ends_with_the_same_bits(run, tmp_path, name):
    config = dataclasses.replace(CONFIG, adversarial=name, epochs=2, schedule="constant", keep_checkpoints=2)
    run(config, "through", dropout=0.2)
    shutil.copytree(tmp_path / "through", tmp_path / "resumed")
    checkpoints = tmp_path / "resumed" / "checkpoints"
    shutil.rmtree(checkpoints / "step-10")
    run(config, "resumed", dropout=0.2, resume_from=checkpoints / "step-5")
    ends = [path / "step-10" / "tensors.safetensors" for path in (checkpoints, tmp_path / "through" / "checkpoints")]
    assert ends[0].read_bytes() == ends[1].read_bytes()


@pytest.mark.parametrize("name", ADVERSARIES)
def test_fp16_skips_what_overflows(run, tmp_path, name):
    run(dataclasses.replace(CONFIG, adversarial=name, precision="fp16"))
    (event,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert np.isfinite(event["train_loss"])


# Settings


def test_the_settings_choose_the_adversary(tiny):
    model = tiny.build()
    assert type(build_adversary(model, TrainConfig())) is NoAdversary
    for name, epsilon in (("fgm", 1.0), ("awp", 0.005)):
        found = build_adversary(model, TrainConfig(adversarial=name))
        assert (type(found), found.epsilon) == (ADVERSARIES[name], epsilon)
        assert build_adversary(model, TrainConfig(adversarial=name, adversarial_epsilon=0.3)).epsilon == 0.3
    with pytest.raises(ValueError, match="adversarial_epsilon must be above 0"):
        TrainConfig(adversarial_epsilon=0.0)


def test_fgm_needs_words(tiny):
    vit = build_model(config_from_dict(VIT), "image-classification", ["a", "b"])
    with pytest.raises(ValueError, match=r"has 0 tables of them. Use awp"):
        build_adversary(vit, TrainConfig(adversarial="fgm"))
    assert build_adversary(vit, TrainConfig(adversarial="awp")).matrices
    assert EmbeddingAdversary(torch.nn.Sequential(torch.nn.Embedding(3, 2))).embeddings.num_embeddings == 3
