"""The oracle of a run that was stopped and goes on is the same run without a stop."""

import json
import os
import signal

import pytest

import trainers
from trainers.config import RunConfig
from trainers.experiment import run
from trainers.monitor.tracking import check_trackers
from trainers.processes.interrupt import Interrupted
from trainers.run_folder import RunFolder, read_run


class Recorder:
    """A tracker in memory: what it was told, in order; with something that happens at a step."""

    def __init__(self, at=None, happens=None):
        self.told, self.at, self.happens = [], at, happens

    def start(self, run_id, name, config):
        self.told.append(("start", run_id, name, config["learning_rate"]))

    def log(self, step, values):
        self.told.append((step, dict(values)))
        if step == self.at:
            self.happens()

    def finish(self, status):
        self.told.append(("finish", status))

    @property
    def figures(self):
        """What was logged, without what depends on the clock."""
        timed = ("train/seconds", "train/tokens_per_second")
        logged = [entry for entry in self.told if isinstance(entry[0], int)]
        return [(step, {name: values[name] for name in values if name not in timed}) for step, values in logged]


class Killed(BaseException):
    """Ends the process as a kill does, as far as a tracker can tell."""


def kill():
    raise Killed


@pytest.fixture
def config(checkpoint, data, tmp_path):
    """22 windows of training data, one a step: 22 steps an epoch, and a tracked loss at 20 and 40."""
    return RunConfig(model=str(checkpoint), data=str(data), output_dir=tmp_path / "run", epochs=2, batch_size=1)


@pytest.fixture(scope="session")
def uninterrupted(checkpoint, data, tmp_path_factory):
    """The figures of the run of `config`, told to a tracker at one go."""
    folder, recorder = tmp_path_factory.mktemp("tracked") / "run", Recorder()
    run(RunConfig(model=str(checkpoint), data=str(data), output_dir=folder, epochs=2, batch_size=1),
        trackers=[recorder])  # fmt: skip
    return recorder


def test_a_tracker_is_told_start_figures_and_end(uninterrupted):
    (_, run_id, name, rate), *_, last = uninterrupted.told
    assert (name, rate, last, len(run_id)) == ("run", 2e-3, ("finish", "finished"), 12)
    steps = [step for step, _ in uninterrupted.figures]
    of_epoch = steps[1]
    assert steps == [20, of_epoch, 40, 2 * of_epoch, 2 * of_epoch]
    inner, epoch, _, _, result = (values for _, values in uninterrupted.figures)
    assert inner.keys() == {"train/step_loss", "train/learning_rate"}
    assert {"train/loss", "train/epoch", "train/learning_rate", "validation/f1", "validation/loss"} <= epoch.keys()
    assert {"test/f1", "best/validation/f1"} <= result.keys()
    assert all(isinstance(value, float) for _, values in uninterrupted.figures for value in values.values())


def test_the_tracked_loss_is_the_mean_of_the_steps_since(tiny, alone, tmp_path, uninterrupted):
    """20 and 2 steps of one label each make up the epoch's mean only with their labels; so it lies between extremes."""
    (_, inner), (_, epoch), *_ = uninterrupted.figures
    assert inner["train/step_loss"] == pytest.approx(epoch["train/loss"], rel=0.3)


def test_a_signal_stops_and_the_run_goes_on_under_its_id_and_never_back(config, uninterrupted):
    first = Recorder(at=20, happens=lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(config, trackers=[first])
    assert first.told[-1] == ("finish", "stopped")
    second = Recorder()
    run(RunConfig.from_dict({**config.to_dict(), "resume": "auto"}, ""), trackers=[second])
    assert second.told[0] == first.told[0]  # the same id
    assert first.figures + second.figures == uninterrupted.figures
    steps = [step for step, _ in first.figures + second.figures]
    assert steps == sorted(steps)


def test_steps_that_are_done_again_are_not_told_again(config, uninterrupted):
    first = Recorder(at=40, happens=kill)  # after the first epoch's checkpoint: 18 steps are repeated
    with pytest.raises(Killed):
        run(config, trackers=[first])
    assert first.told[-1] == ("finish", "failed")
    second = Recorder()
    run(RunConfig.from_dict({**config.to_dict(), "resume": "auto"}, ""), trackers=[second])
    told_twice = first.figures[-1]  # it was not noted before the kill: told again, at the same step
    assert second.figures[0] == told_twice
    assert first.figures[:-1] + second.figures == uninterrupted.figures


def test_a_tracker_that_joins_later_is_told_what_it_missed(config, uninterrupted):
    with pytest.raises(Killed):
        run(config, trackers=[Recorder(at=40, happens=kill)])

    class Late(Recorder):
        pass

    late = Late()
    run(RunConfig.from_dict({**config.to_dict(), "resume": "auto"}, ""), trackers=[late])
    assert late.figures == uninterrupted.figures[1:]  # but for the losses within the epoch, which no file holds
    assert set(json.loads(RunFolder(config.output_dir).tracking.read_text())["told"]) == {"Recorder", "Late"}


@pytest.mark.fault("a tracker that raises in every call", "one warning; the run and its other trackers go on", "none")
def test_a_tracker_that_fails_ends_no_run(config, caplog, uninterrupted):
    class Broken(Recorder):
        def log(self, step, values):
            raise RuntimeError("no\nconnection")

        finish = log

    other = Recorder()
    run(config, trackers=[Broken(), other])
    assert [message for message in caplog.messages if "tracker" in message] == [
        "The tracker Broken has failed, and the run goes on without it: RuntimeError: no connection"
    ]
    assert other.figures == uninterrupted.figures
    assert read_run(config.output_dir).result["test"]


def test_begun_anew_a_run_has_another_id(config):
    first, second = Recorder(), Recorder()
    run(RunConfig.from_dict({**config.to_dict(), "epochs": 1}, ""), trackers=[first])
    run(RunConfig.from_dict({**config.to_dict(), "epochs": 1, "overwrite": True}, ""), trackers=[second])
    assert first.told[0][1] != second.told[0][1]
    assert first.figures == second.figures


def test_names_are_checked_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("class Tracker: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    check_trackers("mine:Tracker")
    check_trackers("")
    with pytest.raises(
        ValueError, match=r"--track tensorbord: did you mean tensorboard\? There are tensorboard, mlflow"
    ):
        check_trackers("mine:Tracker, tensorbord")
    with pytest.raises(ValueError, match="mine has no class Other"):
        check_trackers("mine:Other")
    with pytest.raises(ModuleNotFoundError, match="No module named 'nowhere'"):
        check_trackers("nowhere:Tracker")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match=r"--track mlflow needs the package mlflow: pip install 'lora-core\[mlflow\]'"
    ):
        check_trackers("mlflow")


def test_from_python_trackers_are_objects(checkpoint, tmp_path):
    rows = [{"tokens": ["il2", "binds"], "ner_tags": ["B-protein", "O"]}] * 4
    recorder = Recorder()
    trainers.train({"train": rows, "validation": rows}, trackers=[recorder], model=str(checkpoint), fresh_head=True,
                   output_dir=tmp_path / "run", epochs=1)  # fmt: skip
    assert [entry[0] for entry in recorder.told] == ["start", 1, 1, "finish"]
