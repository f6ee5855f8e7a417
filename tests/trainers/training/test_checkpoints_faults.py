"""What a checkpoint folder may meet: a disk that fails for a while, strangers' files, another run's checkpoints."""

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_core.files import discard, sha256_of_file
from trainers.config import RunConfig, TrainConfig
from trainers.experiment import run
from trainers.run_folder import MetricsLog, RunFolder, set_aside
from trainers.training import checkpoints
from trainers.training.averaging import WeightAverage
from trainers.training.checkpoints import load_checkpoint, newest_checkpoint, save_best, save_checkpoint, unusable
from trainers.training.optim import build_optimizer, build_scheduler
from trainers.training.precision import grad_scaler
from trainers.training.state import TrainState

CONFIG = TrainConfig(epochs=2, batch_size=16, learning_rate=0.01, metric="loss", seed=3)


@pytest.fixture(scope="module")
def straight(checkpoint, data, tmp_path_factory):
    """The settings of a whole run of three epochs, of six steps each."""
    config = RunConfig(
        model=str(checkpoint), data=str(data), output_dir=tmp_path_factory.mktemp("straight") / "run", epochs=3,
        batch_size=4, learning_rate=0.01, metric="loss", keep_checkpoints=2, hidden_dropout=0.1,
    )  # fmt: skip
    run(config)
    return config


@pytest.fixture(scope="module")
def begun(straight, tmp_path_factory):
    """A run with the same settings that stopped at the end of its third epoch, with step-6 and step-12."""
    folder = tmp_path_factory.mktemp("begun") / "run"

    def stop(self, event, **values):
        if values.get("epoch") == 3:
            raise KeyboardInterrupt
        write(self, event, **values)

    write, MetricsLog.write = MetricsLog.write, stop
    try:
        with pytest.raises(KeyboardInterrupt):
            run(dataclasses.replace(straight, output_dir=folder))
    finally:
        MetricsLog.write = write
    return folder


@pytest.fixture
def stopped(begun, straight, tmp_path):
    """(A copy of that run's folder, the function that goes on with it)."""
    folder = shutil.copytree(begun, tmp_path / "run")
    return folder, lambda resume="auto": run(dataclasses.replace(straight, output_dir=folder, resume=str(resume)))


@pytest.fixture
def state(tiny):
    return new_state(tiny.build())


def new_state(model):
    optimizer = build_optimizer(model, CONFIG)
    return TrainState(
        model,
        optimizer,
        grad_scaler("fp32", torch.device("cpu")),
        build_scheduler(optimizer, CONFIG, 10),
        WeightAverage(model, 0),
    )


def files(folder):
    # But for the lock's file, which a killed run leaves and the next takes away.
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "run.lock")
    return {path: path.read_bytes() for path in paths if not path.is_symlink()}


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def same_weights(one, other):
    return (one / "adapter/adapter_model.safetensors").read_bytes() == (
        other / "adapter/adapter_model.safetensors"
    ).read_bytes()


# A disk that fails for a while


@pytest.mark.fault(
    "EIO, EACCES or ESTALE while a checkpoint is read",
    "stops with path and reason; goes on when it is over",
    "none",
)
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json", "best-2"])
def test_an_error_of_the_disk_is_no_damage(stopped, straight, monkeypatch, caplog, number, name):
    folder, resume = stopped
    broken = folder / "checkpoints" / ("best-2/tensors.safetensors" if name == "best-2" else f"step-12/{name}")
    if name == "best-2":  # asked only where the checkpoint does not hold the best weights itself
        monkeypatch.setattr(checkpoints, "_holds_its_best", lambda progress: False)
    before = files(folder)

    def fail(path):
        if Path(path) == broken:
            raise OSError(number, os.strerror(number), str(path))
        return regular(path)

    regular = checkpoints._regular_file
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_regular_file", fail)
        for resumed in ("auto", folder / "checkpoints" / "step-12"):
            with pytest.raises(OSError, match=rf"{broken} cannot be read \({os.strerror(number)}\)") as error:
                resume(resumed)
            assert not isinstance(error.value, ValueError)
    assert "skipped" not in caplog.text
    assert files(folder) == before
    resume()
    assert same_weights(folder, straight.output_dir)


@pytest.mark.fault("old checkpoints cannot be removed", "one warning; removed after the next save", "none")
def test_a_failed_removal_stops_nothing(state, tmp_path, alone, monkeypatch, caplog):
    def fail(path):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))

    for state.step in (10, 20, 30):
        with monkeypatch.context() as patch:
            if state.step == 20:
                patch.setattr(checkpoints, "discard", fail)
            save_checkpoint(state, tmp_path, 1, alone)
        if state.step == 20:
            assert [number for number, _ in RunFolder(tmp_path).saved("step")] == [20, 10]
            assert "are not removed for now: [Errno 16] Device or resource busy" in caplog.text
    assert [number for number, _ in RunFolder(tmp_path).saved("step")] == [30]


# Strangers


@pytest.mark.fault("junk, links and pipes named like checkpoints", "left alone, never in the way", "none")
def test_what_the_run_did_not_write_is_left_alone(stopped, straight, tmp_path):
    folder, resume = stopped
    root = folder / "checkpoints"
    elsewhere = shutil.copytree(root / "step-6", tmp_path / "elsewhere")
    for name in ("step-0000099", "step-abc", "step-9.old", "step-٣", "best-007"):
        shutil.copytree(root / "step-6", root / name)
    (root / "step-5").write_text("a file")
    (root / "step-18").write_text("a file where the run will need the name")
    (root / "best-3").symlink_to(elsewhere)
    (root / "step-50").symlink_to(elsewhere)
    (root / "step-98").symlink_to("step-98")  # a loop
    (root / "step-97").symlink_to("nowhere")
    os.mkfifo(root / "step-96")
    (root / "step-95").mkdir()
    (root / "step-95" / "notes.txt").write_text("no manifest, so none of ours")
    (root / "step-3").mkdir()
    (root / "step-3" / "manifest.json").write_text('{"weights.bin": "00"}')
    (root / "best-77").mkdir()
    mine = {path: content for path, content in files(root).items()
            if path.parent.name not in ("step-6", "step-12", "best-1", "best-2")}  # fmt: skip
    links = {path: os.readlink(path) for path in root.iterdir() if path.is_symlink()}
    assert newest_checkpoint(folder) == root / "step-12"
    result = resume().result
    assert same_weights(folder, straight.output_dir)
    assert (root / "set-aside" / "step-18").read_text() == mine.pop(root / "step-18").decode()
    if result["best_epoch"] == 3:
        assert os.readlink(root / "set-aside" / "best-3") == links.pop(root / "best-3")
    assert {path: path.read_bytes() for path in mine} == mine
    assert {path: os.readlink(path) for path in links} == links
    assert files(elsewhere).keys() == {elsewhere / path.name for path in (root / "step-abc").iterdir()}
    assert (root / "step-96").is_fifo()
    assert (root / "best-77").is_dir()
    ours = {path.name for kind in ("step", "best") for _, path in RunFolder(folder).saved(kind)} - {"step-95", "step-3"}
    assert ours - {"best-77"} == {"step-18", "step-12", f"best-{result['best_epoch']}"} | {
        f"best-{json.loads((root / 'step-12' / 'state.json').read_text())['best_epoch']}"
    }


@pytest.mark.fault("a checkpoint of another run among its own", "refused by name, skipped by auto, left alone", "none")
def test_a_checkpoint_of_another_run(stopped, straight, tmp_path, caplog):
    folder, resume = stopped
    other = dataclasses.replace(straight, output_dir=tmp_path / "other", seed=7, epochs=1)
    run(other)
    foreign = shutil.copytree(other.output_dir / "checkpoints" / "step-6", folder / "checkpoints" / "step-50")
    with pytest.raises(ValueError, match=r"step-50 cannot be resumed from: another run wrote it, with other settings"):
        resume(foreign)
    resume()
    assert f"{foreign} is skipped: another run wrote it" in caplog.text
    assert same_weights(folder, straight.output_dir)
    assert foreign.is_dir()


def test_checkpoints_without_the_runs_settings_are_not_written_over(stopped, straight):
    folder, resume = stopped
    (folder / "config.json").unlink()
    before = files(folder)
    for resumed in ("", "auto"):
        with pytest.raises(ValueError, match=r"holds checkpoints, but no config\.json .*Restore it, move"):
            resume(resumed)
    with pytest.raises(ValueError, match=r"holds checkpoints, but no config\.json"):
        run(dataclasses.replace(straight, output_dir=folder, overwrite=True))
    assert files(folder) == before


def test_overwriting_removes_what_the_run_wrote_and_nothing_else(stopped, straight):
    folder, _ = stopped
    for name in ("step-abc", "set-aside"):
        (folder / "checkpoints" / name).mkdir()
        (folder / "checkpoints" / name / "mine").write_text("mine")
    run(dataclasses.replace(straight, output_dir=folder, overwrite=True, epochs=1))
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"step-abc", "set-aside", "step-6", "best-1"}


@pytest.mark.parametrize("calls", range(8))
def test_an_overwriting_that_is_broken_off_can_be_repeated(stopped, straight, monkeypatch, calls):
    folder, _ = stopped
    (folder / "adapter").mkdir()
    anew = dataclasses.replace(straight, output_dir=folder, overwrite=True, epochs=1)
    left = iter(range(calls))

    def broken_off(original):
        def remove(path, **options):
            if next(left, None) is None:
                raise KeyboardInterrupt
            original(path, **options)

        return remove

    with monkeypatch.context() as patch:
        patch.setattr("trainers.run_folder.discard", broken_off(discard))
        patch.setattr(Path, "unlink", broken_off(Path.unlink))
        with pytest.raises(KeyboardInterrupt):
            RunFolder(folder).remove()
    assert len(run(anew).epochs) == 1
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"step-6", "best-1"}


def test_set_aside_never_writes_over(tmp_path):
    kept = []
    for content in "abc":
        (tmp_path / "step-6").write_text(content)
        kept.append(set_aside(tmp_path / "step-6").relative_to(tmp_path).as_posix())
    assert kept == ["set-aside/step-6", "set-aside/step-6.1", "set-aside/step-6.2"]
    assert [(tmp_path / name).read_text() for name in kept] == ["a", "b", "c"]


# Signed, but no checkpoint


def sign(step):
    digests = {name: sha256_of_file(step / name) for name in checkpoints.FILES}
    (step / "manifest.json").write_text(json.dumps(digests))


@pytest.mark.parametrize("change", [
    lambda values: values.clear(),
    lambda values: values.pop("random"),
    lambda values: values.update(random=3),
    lambda values: values.update(random=[{}]),
    lambda values: values.update(scheduler=None),
    lambda values: values["random"][0].update(numpy=["MT19937", [1], 0, 0, 0.0]),
    lambda values: values["random"][0].update(python=[3, [2**70], None]),
])  # fmt: skip
def test_a_state_that_was_signed_but_holds_something_else(tiny, state, tmp_path, alone, change):
    save_checkpoint(state, tmp_path, 1, alone)
    step = tmp_path / "checkpoints" / "step-0"
    values = json.loads((step / "state.json").read_text())
    change(values)
    (step / "state.json").write_text(json.dumps(values))
    sign(step)
    with pytest.raises(ValueError, match=str(step)):
        load_checkpoint(new_state(tiny.build()), step, alone)


def test_tensors_that_were_signed_but_are_none(state, tmp_path, alone):
    save_checkpoint(state, tmp_path, 1, alone)
    step = tmp_path / "checkpoints" / "step-0"
    (step / "tensors.safetensors").write_bytes(b"\xff" * 100)
    sign(step)
    with pytest.raises(ValueError, match=r"does not hold what a checkpoint of this version holds \(SafetensorError"):
        load_checkpoint(state, step, alone)


# The best weights


@pytest.mark.fault("the best checkpoint is damaged", "found at the resume; written again, or an older is taken", "none")
def test_damaged_best_weights_are_written_again_from_a_checkpoint_that_holds_them(stopped, straight, caplog):
    folder, resume = stopped
    best = folder / "checkpoints" / "best-2"
    expected = {name: tensor.clone() for name, tensor in load_file(best / "tensors.safetensors").items()}
    flip_bit(best / "tensors.safetensors")
    step = folder / "checkpoints" / "step-12"
    assert json.loads((step / "state.json").read_text())["best_epoch"] == 2
    assert unusable(step) is None
    resume()
    assert f"{best} is written again from step-12: tensors.safetensors is not as it was written" in caplog.text
    assert all(tensor.equal(expected[name]) for name, tensor in load_file(best / "tensors.safetensors").items())
    assert same_weights(folder, straight.output_dir)


def test_damaged_best_weights_of_an_earlier_epoch_are_found_at_the_resume(state, tmp_path, alone, caplog):
    root = tmp_path / "checkpoints"
    for state.epoch, state.best_epoch, state.step in ((1, 1, 10), (2, 2, 20), (3, 2, 30)):
        if state.epoch == state.best_epoch:
            save_best(state, tmp_path, alone)
        save_checkpoint(state, tmp_path, 3, alone)
    (root / "best-2" / "tensors.safetensors").unlink()
    reason = r"best-2, which it refers to, is damaged: it is incomplete: tensors\.safetensors is missing"
    with pytest.raises(ValueError, match=rf"step-30 cannot be resumed from: {reason}"):
        load_checkpoint(state, root / "step-30", alone)
    assert newest_checkpoint(tmp_path) == root / "step-20"  # which holds them itself
    assert "step-30 is skipped: best-2, which it refers to, is damaged" in caplog.text
    state.best_epoch = 0
    load_checkpoint(state, root / "step-20", alone)
    assert checkpoints.damage(root / "best-2") is None
