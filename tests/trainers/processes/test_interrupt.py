"""Signals in this very process: what they do, and that afterwards they do what they did before.

tests/trainers/training/test_checkpoint_schedule.py has processes that end.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading

import pytest

import trainers
from trainers.processes import interrupt
from trainers.processes.interrupt import Interrupted
from trainers.training.state import TrainState

TIMES = {"seconds", "tokens_per_second", "peak_memory_bytes", "memory"}
WORDS = [["il2", "binds", f"w{number}"] for number in range(24)]
DATA = {"tokens": WORDS, "ner_tags": [["B-protein", "O", "O"]] * len(WORDS)}


@pytest.fixture(autouse=True)
def handlers():
    """They are as before at the end of every test."""
    before = [signal.getsignal(signum) for signum in interrupt.STOP_SIGNALS]
    yield
    assert [signal.getsignal(signum) for signum in interrupt.STOP_SIGNALS] == before


def at_step(monkeypatch, number, action):
    end_step = TrainState.end_step

    def replacement(state, *arguments):
        if state.step + 1 == number:
            action()
        end_step(state, *arguments)

    monkeypatch.setattr(TrainState, "end_step", replacement)


def train(checkpoint, folder, **settings):
    return trainers.train(
        DATA, model=str(checkpoint), output_dir=folder, epochs=2, batch_size=4, learning_rate=0.01, fresh_head=True,
        metric="loss", **settings,
    )  # fmt: skip


def events(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


@pytest.mark.fault("Interrupt in a notebook", "KeyboardInterrupt, with a checkpoint", "nothing")
def test_a_notebook_user_interrupts_and_goes_on(checkpoint, tmp_path, monkeypatch):
    train(checkpoint, tmp_path / "straight")
    with monkeypatch.context() as patched:
        at_step(patched, 7, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt) as raised:
            train(checkpoint, tmp_path / "run")
    assert str(raised.value) == (
        f"stopped by SIGINT after step 7 (epoch 2), with a checkpoint in {tmp_path / 'run'}. "
        'To go on: the same with resume="auto", without overwrite=True.'
    )
    assert (tmp_path / "run" / "checkpoints" / "step-7").is_dir()
    train(checkpoint, tmp_path / "run", resume="auto")
    assert events(tmp_path / "run") == events(tmp_path / "straight")


def test_training_in_a_thread_leaves_signals_alone(checkpoint, tmp_path, monkeypatch):
    seen = []
    at_step(monkeypatch, 3, lambda: seen.append(signal.getsignal(signal.SIGINT)))
    thread = threading.Thread(target=train, args=(checkpoint, tmp_path / "run"))
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
    assert events(tmp_path / "run")[-1]["event"] == "result"


@pytest.mark.parametrize("signum", interrupt.STOP_SIGNALS)
def test_at_once(signum):
    with pytest.raises(Interrupted) as raised, interrupt.raising():
        signal.raise_signal(signum)
    assert str(raised.value) == f"stopped by {signum.name}."
    assert raised.value.exit_status == 128 + signum
    assert interrupt.requested() == 0


def test_noted_and_asked_for(capfd):
    @interrupt.raising()
    @interrupt.deferred()
    def work():
        assert interrupt.requested() == 0
        with interrupt.deferred():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)  # the same request
        raise Interrupted(interrupt.requested())

    with pytest.raises(Interrupted, match="SIGTERM"):
        work()
    assert capfd.readouterr().err.count("SIGTERM: stopping after this step or batch, with a checkpoint.") == 1


def test_a_signal_that_nobody_asked_for_is_passed_on():
    reached = []

    @interrupt.raising()
    @interrupt.deferred()
    def work():
        signal.raise_signal(signal.SIGHUP)
        reached.append("the end")

    with pytest.raises(Interrupted, match="SIGHUP"):
        work()
    assert reached == ["the end"]


def test_a_forked_process_dies_as_it_would():
    with interrupt.deferred():
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert interrupt.requested() == 0


def test_children_that_hear_nothing():
    def child():
        return subprocess.run([sys.executable, "-c", "import signal; signal.raise_signal(signal.SIGTERM)"], check=False)

    with interrupt.unheard_by_children():
        assert child().returncode == 0
    assert child().returncode == -signal.SIGTERM


def test_it_crosses_processes():
    there = pickle.loads(pickle.dumps(Interrupted(signal.SIGTERM, "after step 3", "Go on.")))
    assert str(there) == "stopped by SIGTERM after step 3. Go on."
    assert there.signum == signal.SIGTERM
