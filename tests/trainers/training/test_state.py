"""What a state counts, and what of it each process gets back."""

import json

import numpy as np
import pytest
import torch

from trainers.config import TrainConfig
from trainers.processes.distributed import World
from trainers.training.averaging import WeightAverage
from trainers.training.optim import build_optimizer, build_scheduler
from trainers.training.precision import grad_scaler
from trainers.training.state import TrainState, random_state

CONFIG = TrainConfig(learning_rate=0.01)
CPU = torch.device("cpu")


@pytest.fixture
def new_state(tiny):
    def new():
        model = tiny.build()
        optimizer = build_optimizer(model, CONFIG)
        return TrainState(
            model, optimizer, grad_scaler("fp32", CPU), build_scheduler(optimizer, CONFIG, 10), WeightAverage(model, 0)
        )

    return new


def test_the_loss_does_not_depend_on_when_it_is_read(new_state):
    losses = torch.rand(50, generator=torch.Generator().manual_seed(0)) * 1e3
    totals = []
    for every in (1, 7, 20, 50):
        state = new_state()
        for number, loss in enumerate(losses, start=1):
            state.add_loss(loss, np.arange(1))
            if number % every == 0:
                state.read_loss()
        totals.append(state.read_loss())
    assert len(set(totals)) == 1
    assert totals[0] == pytest.approx(losses.double().sum().item())


def test_time_is_counted_from_the_clocks_start_to_the_end_of_each_step(new_state, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    state = new_state()
    for work, pause in ((2.0, 0.0), (3.0, 100.0), (4.0, 50.0)):  # the pause is a checkpoint's
        now[0] += work
        state.end_step(labels=1, tokens=10)
        now[0] += pause
        state.start_clock()
    assert state.epoch_seconds == 9.0
    state.end_epoch()
    assert state.seconds == 9.0
    assert state.pop_epoch(World(0, 1, CPU)) == {"train_loss": 0.0, "seconds": 9.0, "tokens_per_second": 30 / 9}
    assert state.epoch_seconds == 0.0


def stored(state, **more):
    """As two processes store it within an epoch."""
    worlds = [World(rank, 2, CPU) for rank in range(2)]
    randoms, tensors = zip(*map(random_state, worlds), strict=True)
    progress = {**state.progress(), "random": randoms, **more}
    return state.tensors() | tensors[0] | tensors[1], json.loads(json.dumps(progress))


def test_every_process_has_its_own_loss_again(new_state):
    state = new_state()
    state.step = state.batch = 3
    tensors, progress = stored(state, epoch_losses=[1.25, 7.5])
    found = []
    for rank, size in ((0, 2), (1, 2), (0, 1), (0, 4), (3, 4)):
        other = new_state()
        other.restore(tensors, progress, World(rank, size, CPU))
        found.append(other.read_loss())
    assert found == [1.25, 7.5, 8.75, 8.75, 0.0]  # their sum is the same however many processes go on


def test_checkpoints_of_older_versions_are_read_by_every_process(new_state):
    tensors, progress = stored(new_state(), epoch_loss=0.0, epoch_seconds=12.0, seconds=12.0)
    for rank in range(2):
        state = new_state()
        state.restore(tensors, progress, World(rank, 2, CPU))
        assert (state.read_loss(), state.epoch_seconds, state.seconds) == (0.0, 0.0, 12.0)


def test_of_equal_scores_that_with_the_lower_loss_is_best(new_state):
    """Few validation examples give many epochs the same score, the first of which has learnt least."""
    state, kept = new_state(), []
    for epoch, (f1, loss) in enumerate([(0.5, 0.9), (1.0, 0.7), (1.0, 0.2), (1.0, 0.3), (0.9, 0.1)], start=1):
        state.epoch = epoch
        if state.record_score({"f1": f1, "loss": loss}, "f1"):
            kept.append(epoch)
    assert kept == [1, 2, 3]
    assert (state.best_epoch, state.best_score, state.best_loss) == (3, 1.0, 0.2)
