"""Batches and micro-batches by tokens, in the training loop."""

import dataclasses

import pytest
import torch

from lora_core.models.encoders.bert import BertEmbeddings
from trainers.config import TrainConfig
from trainers.data.batches import total_steps
from trainers.loop import fit
from trainers.tasks.token import TokenClassification
from trainers.training import precision

CONFIG = TrainConfig(epochs=2, batch_size=8, learning_rate=1e-3, metric="loss", seed=7)


@pytest.fixture
def run(tiny, alone, tmp_path):
    """Runs fit on a fresh model and returns (model, state, training windows)."""

    def run(**changes):
        model, train = tiny.build(lora=True), tiny.windows(60)
        config = dataclasses.replace(CONFIG, **changes)
        task = TokenClassification(tiny.LABELS)
        return model, fit(model, task, train, tiny.windows(9, seed=1), config, alone, tmp_path), train

    return run


def test_micro_batches_by_tokens_leave_the_result(run):
    whole, _, _ = run()
    parts, _, _ = run(micro_batch_tokens=40)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_schedule_ends_with_the_last_batch(run):
    _, state, train = run(batch_tokens=100, micro_batch_tokens=50)
    assert state.step == total_steps(train.lengths, 8, seed=7, epochs=2, batch_tokens=100) != 16
    assert state.scheduler.get_last_lr()[0] == 0


@pytest.mark.parametrize(
    ("changes", "split"),
    [({}, True), ({"kernels": "plain"}, False), ({"micro_batch_size": 8}, False), ({"micro_batch_tokens": 999}, False)],
)
def test_fused_layers_take_long_batches_in_parts(run, monkeypatch, changes, split):
    sizes = []
    embed = BertEmbeddings.forward

    def forward(self, input_ids, *rest):
        if self.training:
            sizes.append(input_ids.numel())
        return embed(self, input_ids, *rest)

    monkeypatch.setattr(BertEmbeddings, "forward", forward)
    monkeypatch.setattr(precision, "FUSED_TOKENS", 20)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    _, state, train = run(epochs=1, **changes)
    assert state.step == 8
    assert train.lengths.max() <= 40
    assert (max(sizes) <= 40) == split == (len(sizes) > 8)
