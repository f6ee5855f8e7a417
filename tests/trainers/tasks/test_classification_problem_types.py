"""Losses and gradients of several labels and of numbers are those of transformers, however a batch is split up."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from lora_core.models import load_pretrained
from trainers.processes.distributed import World

HERE = Path(__file__).resolve().parents[1]
KINDS = ("multi_label_classification", "regression")


@pytest.fixture(scope="module")
def worker():
    sys.path.insert(0, str(HERE))
    try:
        import two_processes_problem_types
    finally:
        sys.path.remove(str(HERE))
    return two_processes_problem_types


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_transformers(worker, kind, windows, tmp_path):
    labels = worker.LABELS[kind]
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24, num_labels=len(labels), problem_type=kind, initializer_range=0.3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
    torch.manual_seed(0)
    oracle = transformers.BertForSequenceClassification(config)
    oracle.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, "text-classification")
    assert model.problem_type == kind
    data = worker.texts(kind, 7)
    task = dataclasses.replace(worker.TASKS[kind], windows=windows)
    inputs, targets = data.collate(np.arange(7))
    expected = oracle(**inputs, labels=targets)
    terms = int(data.label_counts.sum())
    assert terms == 7 * len(labels)
    loss = task.loss_sum(model(**inputs), targets) / terms
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-6)
    loss.backward()
    expected.loss.backward()
    theirs = dict(oracle.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_batch_add_up_to_the_whole(worker, kind, lora, tmp_path):
    world = World(rank=0, size=1, device=torch.device("cpu"))
    whole = worker.train(kind, world, tmp_path / "whole", lora=lora)
    parts = worker.train(kind, world, tmp_path / "parts", lora=lora, micro_batch_size=2)
    start = worker.build(kind, lora)
    moved = max(
        float((a - b).detach().abs().max()) for a, b in zip(whole.parameters(), start.parameters(), strict=True)
    )
    assert moved > 1e-3
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_two_processes_train_and_score_as_one(meeting, worker, tmp_path):
    meeting.run_ranks(HERE / "two_processes_problem_types.py", tmp_path)
    world = World(rank=0, size=1, device=torch.device("cpu"))
    for kind in KINDS:
        one = worker.train(kind, world, tmp_path / f"one {kind}", lora=True)
        for rank in range(2):
            found = load_file(tmp_path / f"{kind}-{rank}.safetensors")
            for name, parameter in one.named_parameters():
                if parameter.requires_grad:
                    torch.testing.assert_close(found[name], parameter.detach(), rtol=0, atol=1e-5)
            scores = json.loads((tmp_path / f"{kind}-{rank}.json").read_text())
            assert scores["loss"] == pytest.approx(worker.scores(kind, one, world)["loss"], abs=1e-5)
