"""Losses and gradients that are no numbers: where they come from is named, and nothing is spoilt by them."""

import dataclasses
import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from trainers.config import TrainConfig
from trainers.loop import fit
from trainers.run_folder import RunFolder
from trainers.tasks.token import TokenClassification
from trainers.training import numbers
from trainers.training.numbers import MOST_SKIPS

HERE = Path(__file__).resolve().parents[1]
SCRIPT = HERE / "two_processes_numbers.py"


@pytest.fixture(scope="module")
def poison(tiny):
    """two_processes_numbers.py as a module, for its data, model and settings."""
    sys.path.insert(0, str(HERE))
    try:
        yield importlib.import_module("two_processes_numbers")
    finally:
        sys.path.remove(str(HERE))


@pytest.mark.fault("an example that gives NaN, on one rank of two", "all stop; rank and examples named", "the epoch")
def test_all_ranks_stop_and_name_the_rank_and_the_examples(meeting, poison, tmp_path):
    meeting.run_ranks(SCRIPT, tmp_path)
    reports = [json.loads((tmp_path / f"report-{rank}.json").read_text()) for rank in range(2)]
    assert reports[0] == reports[1]
    assert reports[0]["unchanged"]
    named = re.fullmatch(
        r"The loss is not finite in step \d+ \(epoch 1\): rank [01] has nan for training examples (\d+(?:, \d+)?) "
        r"\(counted from 0\)\. The weights are .* --learning-rate.*\. There is no checkpoint yet\.",
        reports[0]["error"],
    )
    assert named, reports[0]["error"]
    assert str(poison.POISONED) in named[1].split(", ")


def test_a_checkpoint_is_promised_only_where_there_is_one(poison, tiny, alone, tmp_path):
    """The poisoned example comes in the second epoch only."""
    model = poison.model_with_a_hole()
    clean, data = tiny.windows(80), poison.poisoned(tiny.windows(80))
    clean = dataclasses.replace(clean, input_ids=clean.input_ids.clip(max=poison.RARE - 1))

    class Second:
        lengths, label_counts = clean.lengths, clean.label_counts

        def collate(self, indices, epoch=None):
            return (data if epoch == 1 else clean).collate(indices, epoch)

    validation = dataclasses.replace(tiny.windows(9, 1), input_ids=tiny.windows(9, 1).input_ids.clip(max=20))
    with pytest.raises(FloatingPointError, match=r"\(epoch 2\)") as error:
        fit(model, TokenClassification(tiny.LABELS), Second(), validation, poison.CONFIG, alone, tmp_path)
    checkpoint = RunFolder(tmp_path).checkpoints / "step-10"
    assert checkpoint.is_dir()
    assert f"The newest checkpoint, {checkpoint}, is from before it; --resume auto" in str(error.value)


class Spoilt(TokenClassification):
    """Token classification whose loss is infinite in the steps that ``spoils`` chooses."""

    def training_loss_sum(self, logits, labels):
        object.__setattr__(self, "step", getattr(self, "step", 0) + 1)
        loss = super().training_loss_sum(logits, labels)
        return loss * float("inf") if self.spoils(self.step) else loss


def spoilt(tiny, spoils):
    task = Spoilt(tiny.LABELS)
    object.__setattr__(task, "spoils", spoils)
    return task


@pytest.fixture
def train(tiny, alone, tmp_path):
    """Trains with fp16, a batch of 4 of 40 examples a step, and returns the state."""

    def train(spoils, **changes):
        config = TrainConfig(precision="fp16", batch_size=4, metric="loss", learning_rate=1e-3, **changes)
        data, task = tiny.windows(40), spoilt(tiny, spoils)
        return fit(tiny.build(), task, data, tiny.windows(9, 1), config, alone, tmp_path)

    return train


@pytest.mark.fault("single fp16 steps that overflow", "skipped, counted in metrics.jsonl, shown", "those steps")
def test_skipped_steps_are_counted_and_shown(train, tmp_path, caplog):
    caplog.set_level("INFO")
    state = train(lambda step: step in (2, 3, 15), epochs=2)
    events = [json.loads(line) for line in RunFolder(tmp_path).metrics.read_text().splitlines()]
    assert [event["skipped_steps"] for event in events] == [2, 1]
    assert "epoch 1: fp16 skipped 2 steps, whose gradients overflowed" in caplog.text
    assert state.scheduler.last_epoch == 20 - 3
    assert state.skipped_in_row == 0
    assert caplog.text.count("--precision fp16 on a CPU takes about 15 times as long") == 1


def test_skips_in_a_row_survive_a_checkpoint(train, tmp_path):
    """A run that is resumed goes on counting."""
    state = train(lambda step: step > 5, epochs=2)
    assert state.skipped_in_row == 15
    saved = json.loads((RunFolder(tmp_path).checkpoints / "step-20" / "state.json").read_text())
    assert saved["skipped_in_row"] == 15


@pytest.mark.fault("fp16 that overflows in every step", "stops after 50 in a row, says what to do", "nothing learnt")
def test_too_many_skips_in_a_row_end_the_run(train):
    with pytest.raises(FloatingPointError, match="fp16 has skipped 50 steps in a row") as error:
        train(lambda step: step > 8, epochs=10)
    message = str(error.value)
    assert f"fallen to {2.0 ** (16 - MOST_SKIPS):.3g}" in message
    assert re.search(r"in step 58 \(epoch 6\): rank 0 has inf for training examples (\d+, ){3}\d+ \(counted", message)
    assert "--precision bf16" in message
    assert message.endswith("step-50, is from before it; --resume auto goes on from there.")


def test_a_short_run_that_took_no_step_is_no_success(train):
    with pytest.raises(FloatingPointError, match=r"fp16 has skipped all 10 steps.*nothing was learnt"):
        train(lambda step: True, epochs=1)


def test_other_precisions_count_no_skips(tiny, alone, tmp_path):
    config = TrainConfig(epochs=1, batch_size=8, metric="loss")
    task = TokenClassification(tiny.LABELS)
    state = fit(tiny.build(), task, tiny.windows(40), tiny.windows(9, 1), config, alone, tmp_path)
    assert "skipped_steps" not in json.loads(RunFolder(tmp_path).metrics.read_text())
    assert state.skipped == state.skipped_in_row == 0


def test_a_gradient_alone_names_the_whole_batch(tiny, alone, tmp_path):
    """The loss is a number, and its gradient is none."""

    class Root(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss):
            return loss.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("nan")

    class Task(TokenClassification):
        def training_loss_sum(self, logits, labels):
            return Root.apply(super().training_loss_sum(logits, labels))

    config = TrainConfig(epochs=1, batch_size=30, metric="loss")
    model = tiny.build()
    before = tiny.weights(model)
    with pytest.raises(FloatingPointError, match=r"gradient is not finite in step 1 .*, though the loss is") as error:
        fit(model, Task(tiny.LABELS), tiny.windows(40), tiny.windows(9, 1), config, alone, tmp_path)
    assert f"and {30 - numbers.SHOWN} more (counted from 0)" in str(error.value)
    assert all(value.equal(before[name]) for name, value in tiny.weights(model).items())
