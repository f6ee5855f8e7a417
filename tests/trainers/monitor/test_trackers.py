"""Each tracker's own files are the oracle of what it was told: they must hold the figures of metrics.jsonl."""

import pytest

from trainers.config import RunConfig
from trainers.experiment import run
from trainers.monitor.trackers import TRACKERS


@pytest.fixture
def tracked(checkpoint, data, tmp_path, monkeypatch):
    """Train with a tracker, in two starts: once for one of two epochs, and on to the end."""

    def train(track):
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # trackio reads it when it is imported
        pytest.importorskip(TRACKERS[track].package)
        config = RunConfig(model=str(checkpoint), data=str(data), output_dir=tmp_path / "run", epochs=2, track=track)

        def stop(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("trainers.training.checkpoint_schedule.CheckpointSchedule.after_step",
                          lambda schedule: stop() if schedule._state.epoch == 1 else None)  # fmt: skip
            with pytest.raises(KeyboardInterrupt):
                run(config)
        return run(RunConfig.from_dict({**config.to_dict(), "resume": "auto"}, ""))

    return train


def expected(finished, name):
    """(step, value) of a validation score in metrics.jsonl."""
    return [(event["step"], pytest.approx(event["validation"][name], abs=1e-6)) for event in finished.epochs]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tensorboard_holds_the_curves_once(tracked):
    finished = tracked("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished.files.tensorboard))
    events.Reload()
    for name in ("loss", "f1"):
        assert [(one.step, one.value) for one in events.Scalars(f"validation/{name}")] == expected(finished, name)
    ((step, value),) = [(one.step, one.value) for one in events.Scalars("test/f1")]
    assert (step, value) == (finished.result["step"], pytest.approx(finished.result["test"]["f1"]))


@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_one_run(tracked, monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    finished = tracked("mlflow")
    import mlflow

    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("lora-core")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
    history = client.get_metric_history(found.info.run_id, "validation/f1")
    assert sorted((one.step, one.value) for one in history) == expected(finished, "f1")
    assert found.data.metrics["test/f1"] == pytest.approx(finished.result["test"]["f1"])
    assert found.data.params["epochs"] == "2"


def leveldb_records(data, at):
    """The records of a log of LevelDB (its doc/log_format.md), which lies at an offset of its file."""
    block, header, place, whole = 32768, 7, 0, b""
    while place + header <= len(data):
        room = block - (place + at) % block
        if room < header:
            place += room
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + header : place + header + length]
        place += header + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_files_and_asks_nobody(tracked, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    finished = tracked("wandb")
    from wandb.proto import wandb_internal_pb2

    history, ids = {}, set()
    for path in sorted(finished.folder.glob("wandb/offline-run-*/*.wandb")):
        for data in leveldb_records(path.read_bytes()[7:], at=7):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            for item in record.history.item:
                if ("/".join(item.nested_key) or item.key) == "validation/f1":
                    history[record.history.step.num] = float(item.value_json)
    assert len(ids) == 1
    assert sorted(history.items()) == expected(finished, "f1")


@pytest.mark.filterwarnings("ignore")
def test_trackio_holds_one_run(tracked):
    finished = tracked("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("lora-core")
    logs = SQLiteStorage.get_logs("lora-core", name)
    found = [(one["step"], one["validation/f1"]) for one in logs if "validation/f1" in one]
    assert sorted(found) == expected(finished, "f1")
