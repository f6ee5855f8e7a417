"""Finished means finished: what a run wrote is on disk, has digests, and is written again where it is lost."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lora_core.files import sha256_of_file
from trainers.config import RunConfig
from trainers.experiment import run
from trainers.finished import FinishedRun, evaluate_run
from trainers.run_folder import RunFolder, read_run


@pytest.fixture
def copy_of(finished, tmp_path, monkeypatch):
    """Factory: (a copy of a finished run, the function that resumes it); training an epoch more is an error."""

    def copy(method):
        folder = shutil.copytree(finished[method], tmp_path / "run")
        config = RunConfig.from_dict(read_run(folder).config, "config.json")
        return folder, lambda: run(dataclasses.replace(config, output_dir=folder, resume="auto"))

    monkeypatch.setattr("trainers.loop.take_step", None)
    return copy


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WEIGHTS = {"lora": "adapter/adapter_model.safetensors", "full": "best/model.safetensors"}
LOSSES = {
    "the folder is gone": lambda folder, weights: shutil.rmtree((folder / weights).parent),
    "weights are gone": lambda folder, weights: (folder / weights).unlink(),
    "weights are empty": lambda folder, weights: os.truncate(folder / weights, 0),
    "weights are cut": lambda folder, weights: os.truncate(folder / weights, 100),
    "the tokenizer is gone": lambda folder, weights: (folder / weights).with_name("tokenizer.json").unlink(),
    "predictions are gone": lambda folder, weights: shutil.rmtree(folder / "predictions"),
}


@pytest.mark.fault(
    "a finished run's adapter, model or predictions are lost",
    "written again from the best checkpoint, bit for bit",
    "none",
)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("method", WEIGHTS)
def test_what_a_finished_run_lost_is_written_again(copy_of, method, loss, caplog):
    folder, resume = copy_of(method)
    before, result = files(folder), read_run(folder).result
    LOSSES[loss](folder, WEIGHTS[method])
    damaged = files(folder)
    again = resume().result
    (said,) = [message for message in caplog.messages if "is finished, but" in message]
    lost = sorted(name for name in before if damaged.get(name) != before[name] and not name.endswith("/README.md"))
    what = "empty" if loss.endswith("empty") else "changed" if loss.endswith("cut") else "gone"
    assert f"is finished, but {', '.join(f'{name} is {what}' for name in lost)}: it is written again from" in said
    if what == "changed":  # what is there may be somebody's
        assert (folder / "set-aside" / WEIGHTS[method]).read_bytes() == damaged[WEIGHTS[method]]
        shutil.rmtree(folder / "set-aside")
    after = files(folder)
    assert after.keys() == before.keys()
    (card,) = (name for name in after if name.endswith("/README.md"))  # which bears the name of the run's folder
    assert after.pop(card).replace(b"run", method.encode()) == before[card].replace(b"run", method.encode())
    assert {name for name in after if after[name] != before[name]} == set()
    assert again == result
    assert [json.loads(line)["event"] for line in RunFolder(folder).metrics.read_text().splitlines()] == [
        *["epoch"] * 3, "result",
    ]  # fmt: skip
    caplog.clear()
    resume()
    assert "is finished; nothing is left to do" in caplog.text


def test_the_result_holds_digests_of_all_that_was_written(finished):
    for method, weights in WEIGHTS.items():
        named = read_run(finished[method]).result["files"]
        names = {name for name in files(finished[method]) if name.split("/")[0] in ("adapter", "best", "predictions")}
        names = {name for name in names if not name.endswith("/README.md")}  # the card is its user's to change
        assert named.keys() == names
        assert {weights, "predictions/test.npz", "predictions/validation.npz"} < names
        assert named == {name: sha256_of_file(finished[method] / name) for name in names}


def test_a_lost_adapter_without_a_checkpoint_is_refused_with_what_to_do(copy_of):
    folder, resume = copy_of("lora")
    shutil.rmtree(folder / "checkpoints")
    resume()  # the adapter is there: nothing is left to do
    (folder / "adapter" / "adapter_model.safetensors").unlink()
    before = files(folder)
    with pytest.raises(ValueError, match="is finished, but ") as error:
        resume()
    assert str(error.value).endswith(
        "is finished, but adapter/adapter_model.safetensors is gone, and there is no checkpoint to write it again "
        "from. Copy it back, train again with --overwrite, or choose another --output-dir."
    )
    assert files(folder) == before


def test_a_lost_adapter_with_a_damaged_checkpoint_is_refused_too(copy_of):
    folder, resume = copy_of("lora")
    shutil.rmtree(folder / "adapter")
    (checkpoint,) = folder.glob("checkpoints/step-*")
    (checkpoint / "tensors.safetensors").unlink()
    before = files(folder)
    with pytest.raises(
        ValueError, match=r"tokenizer_config\.json is gone: copy it back\. None of the checkpoints"
    ) as error:
        resume()
    assert "it is incomplete: tensors.safetensors is missing. Restore one of them, or begin anew" in str(error.value)
    assert files(folder) == before


def test_a_run_that_is_older_than_the_digests(copy_of, caplog):
    folder, resume = copy_of("lora")
    *epochs, result = RunFolder(folder).metrics.read_text().splitlines()
    values = json.loads(result)
    del values["files"]
    RunFolder(folder).metrics.write_text("\n".join([*epochs, json.dumps(values)]) + "\n")
    resume()
    assert "nothing is left to do" in caplog.text
    shutil.rmtree(folder / "adapter")
    resume()
    assert "is finished, but adapter/ is gone: it is written again from" in caplog.text
    assert "files" in read_run(folder).result


# On disk


def test_weights_and_result_are_flushed_before_they_count(checkpoint, data, tmp_path, monkeypatch):
    """Every file and its folder, in an order in which a power cut leaves no result without its weights."""
    flushed = []

    def note(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        flushed.append((path, path.read_bytes() if path.is_file() else b""))
        fsync(descriptor)

    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", note)
    folder = tmp_path / "new" / "run"
    run(RunConfig(model=str(checkpoint), data=str(data), output_dir=folder, epochs=1, batch_size=8))
    contents = files(folder)
    contents_flushed = [content for _, content in flushed]
    order = {}
    for name in (*read_run(folder).result["files"], "metrics.jsonl", "config.json", "inputs.json"):
        places = [index for index, content in enumerate(contents_flushed) if content == contents[name]]
        assert places, f"{name} was not flushed as it is"
        order[name] = places[-1]
    assert order["metrics.jsonl"] == max(order.values())
    before_the_result = {path for path, _ in flushed[: order["metrics.jsonl"]]}
    assert {tmp_path, folder.parent, folder, folder / "adapter", folder / "predictions", folder / "checkpoints"} <= (
        before_the_result
    )


@pytest.mark.fault("kill -9 while the adapter is written", "its unfinished file is gone at the next start", "none")
def test_what_a_killed_writer_left_is_removed_at_the_next_start(finished, tmp_path, caplog):
    folder = shutil.copytree(finished["lora"], tmp_path / "run")
    code = (
        "import os, signal, sys; from contextlib import ExitStack; from lora_core.files import replacing\n"
        "with ExitStack() as stack:\n"
        "    for name in sys.argv[1:]: stack.enter_context(replacing(name)).write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    places = ["config.json", "adapter/adapter_model.safetensors", "predictions/test.npz", "checkpoints/step-99"]
    done = subprocess.run([sys.executable, "-c", code, *(str(folder / place) for place in places)], check=False)
    assert done.returncode == -signal.SIGKILL
    left = {path for path in folder.rglob(".*") if path.is_file()}
    assert len(left) == 4
    alive = folder / "adapter" / f".adapter_model.safetensors.{socket.gethostname()}-{os.getppid()}-1"
    elsewhere = folder / ".config.json.another-machine-123456-1"
    mine = folder / "adapter" / ".notes"
    for path in (alive, elsewhere, mine):
        path.write_text("")
    config = RunConfig.from_dict(read_run(folder).config, "config.json")
    with caplog.at_level("INFO", "trainers"):
        run(dataclasses.replace(config, output_dir=folder, resume="auto"))
    assert {path for path in folder.rglob(".*") if path.is_file()} == {alive, elsewhere, mine}
    assert all(path.relative_to(folder).as_posix() in caplog.text for path in left)


def test_a_run_whose_weights_are_there_and_whose_result_is_not(copy_of):
    folder, resume = copy_of("lora")
    lines = RunFolder(folder).metrics.read_text().splitlines(keepends=True)
    expected = files(folder)
    for torn in ("", lines[-1][:40]):
        RunFolder(folder).metrics.write_text("".join(lines[:-1]) + torn)
        assert not RunFolder(folder).is_finished()
    RunFolder(folder).metrics.write_text("".join(lines[:-1]))
    for opened in (FinishedRun.open, FinishedRun.open_fast, evaluate_run):
        with pytest.raises(
            ValueError, match=r"has not finished: its last finished epoch is 3, .*--resume auto, which does "
        ):
            opened(folder)
    resume()
    assert FinishedRun.open(folder).model is not None
    after = files(folder)
    assert {name for name in after if after[name] != expected[name]} == {"metrics.jsonl"}
