"""The largest pass that fits, with a stand-in for a GPU's memory."""

import dataclasses
import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.config import TrainConfig
from trainers.loop import fit
from trainers.processes.distributed import World
from trainers.tasks.token import TokenClassification
from trainers.training.largest_batch import NEAR, largest_that_fits, tokens_that_fit, with_largest_batch
from trainers.training.memory import TooLittleMemoryError

AUTO = TrainConfig(epochs=1, batch_size=16, metric="loss", micro_batch_tokens="auto", kernels="plain")


@given(st.integers(1, 600), st.integers(0, 10**6), st.integers(1, 10**6))
def test_what_is_found_fits_and_little_more_does_not(lowest, more, memory):
    highest, tried = lowest + more, []

    def fits(tokens):
        assert lowest <= tokens <= highest
        tried.append(tokens)
        return tokens <= memory

    if memory < lowest:
        with pytest.raises(TooLittleMemoryError, match=f"not even one pass of {lowest} tokens"):
            largest_that_fits(fits, lowest, highest)
        return
    found = largest_that_fits(fits, lowest, highest)
    assert found <= memory
    assert found == highest or max(found * NEAR, found + 1) >= min(memory + 1, highest)
    assert len(tried) <= 24
    assert len(set(tried)) == len(tried)


class Limited(torch.nn.Module):
    """A model on a device that has room for so many tokens."""

    def __init__(self, model, room, error=None):
        super().__init__()
        self.model, self.room, self.passes = model, room, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def forward(self, input_ids, attention_mask):
        self.passes.append(input_ids.numel())
        if input_ids.numel() > self.room:
            raise self.error
        return self.model(input_ids=input_ids, attention_mask=attention_mask)


@pytest.mark.parametrize("room", [100, 250])
def test_passes_are_tried_on_the_longest_examples_and_change_nothing(tiny, alone, room):
    data, task = tiny.windows(40), TokenClassification(tiny.LABELS)
    longest = int(max(data.lengths))
    model = Limited(tiny.build(dropout=0.1, lora=True), room)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    found = tokens_that_fit(model, task, data, AUTO, alone)
    assert 0.75 * room - longest < found <= room
    assert max(model.passes) == 16 * longest
    assert all(tokens % longest == 0 for tokens in model.passes)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])


def test_all_of_a_step_is_one_pass_where_it_fits(tiny, alone):
    data, task = tiny.windows(40), TokenClassification(tiny.LABELS)
    model = Limited(tiny.build(), 10**6)
    assert tokens_that_fit(model, task, data, AUTO, alone) == 16 * max(data.lengths)
    assert len(model.passes) == 1


def test_other_errors_are_not_taken_for_too_little_memory(tiny, alone):
    model = Limited(tiny.build(), 10, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        tokens_that_fit(model, TokenClassification(tiny.LABELS), tiny.windows(40), AUTO, alone)


@pytest.mark.fault("a GPU too small for one example", "one line with what to change", "nothing")
def test_nothing_fits(tiny, alone):
    with pytest.raises(TooLittleMemoryError, match="Use --gradient-checkpointing, --precision bf16"):
        tokens_that_fit(Limited(tiny.build(), 1), TokenClassification(tiny.LABELS), tiny.windows(40), AUTO, alone)


def test_the_least_of_all_processes_is_taken_and_said(tiny, monkeypatch, caplog):
    world = World(rank=0, size=2, device=torch.device("cuda"))
    monkeypatch.setattr(World, "gather", lambda self, value: [value, 300])
    monkeypatch.setattr("trainers.training.largest_batch.tokens_that_fit", lambda *_: 4096)
    with caplog.at_level(logging.INFO, "trainers"):
        config = with_largest_batch(tiny.build(), None, tiny.windows(4), AUTO, world)
    assert config == dataclasses.replace(AUTO, micro_batch_tokens=300)
    assert "passes of up to 300 tokens or images fit" in caplog.text
    assert with_largest_batch(tiny.build(), None, None, TrainConfig(), world) == TrainConfig()


def test_on_a_cpu_it_is_said_and_passes_are_as_usual(tiny, alone, tmp_path, caplog):
    weights = []
    for most in ("auto", None):
        model = tiny.build(lora=True)
        config = dataclasses.replace(AUTO, micro_batch_tokens=most)
        with caplog.at_level(logging.INFO, "trainers"):
            fit(model, TokenClassification(tiny.LABELS), tiny.windows(20), tiny.windows(4), config, alone, tmp_path)
        weights.append([value.clone() for value in model.state_dict().values()])
    assert "--micro-batch-tokens auto is for GPUs" in caplog.text
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


@pytest.mark.parametrize("settings", [{"parallel": "fsdp"}, {"micro_batch_size": 4}])
def test_what_it_does_not_go_with(settings):
    with pytest.raises(ValueError, match="micro_batch_tokens auto goes neither with"):
        TrainConfig(micro_batch_tokens="auto", **settings)
    with pytest.raises(
        ValueError, match="micro_batch_tokens is 'many', but it should be a whole number or one of auto"
    ):
        TrainConfig(micro_batch_tokens="many")
    with pytest.raises(ValueError, match="micro_batch_tokens must be at least 1"):
        TrainConfig(micro_batch_tokens=0)
