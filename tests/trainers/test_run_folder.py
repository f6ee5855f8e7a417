import json

import numpy as np
import pytest

from trainers.run_folder import RunFolder, read_predictions, read_run, save_predictions

EPOCHS = [{"event": "epoch", "epoch": number, "validation": {"f1": number / 10}} for number in (1, 2)]
STEP = {"event": "step", "step": 1, "loss": 2.0}
RESULT = {"event": "result", "best_epoch": 2}


@pytest.fixture
def write_run(tmp_path):
    def write(*events, config='{"data": "bionlp2004"}'):
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(config)
        lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
        (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
        return folder

    return write


def test_reads_a_finished_run(write_run):
    folder = write_run(STEP, *EPOCHS, RESULT)
    run = read_run(str(folder))
    assert (run.folder, run.name) == (folder, "run")
    assert run.config == {"data": "bionlp2004"}
    assert run.epochs == EPOCHS
    assert run.result == RESULT


def test_name_of_the_current_folder(write_run, monkeypatch):
    monkeypatch.chdir(write_run(*EPOCHS, RESULT))
    assert read_run(".").name == "run"


def test_an_epoch_repeated_after_a_resume_counts_once(write_run):
    again = {**EPOCHS[1], "validation": {"f1": 0.9}}
    assert read_run(write_run(*EPOCHS, again, RESULT)).epochs == [EPOCHS[0], again]


@pytest.mark.parametrize("missing", ["config.json", "metrics.jsonl"])
def test_a_folder_that_is_no_run(write_run, missing):
    folder = write_run(*EPOCHS, RESULT)
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=f"not the folder of a run: it has no {missing}"):
        read_run(folder)


@pytest.mark.parametrize(
    ("events", "reached"),
    [
        ([], "it has finished no epoch"),
        ([STEP], "it has finished no epoch"),
        (EPOCHS, "its last finished epoch is 2"),
        ([EPOCHS[0], RESULT, EPOCHS[1]], "its last finished epoch is 2"),
    ],
)
def test_an_unfinished_run(write_run, events, reached):
    with pytest.raises(ValueError, match=f"has not finished: {reached}"):
        read_run(write_run(*events))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"event": "st', "metrics.jsonl:2 is not valid JSON"),
        ("[1]", "metrics.jsonl:2 holds list instead of a JSON object"),
        ('{"step": 1}', r"metrics.jsonl:2 has the keys \['step'\]"),
        ('{"event": "epoch"}', r"metrics.jsonl:2 has the keys \['event'\]"),
    ],
)
def test_a_damaged_line_is_named(write_run, line, message):
    with pytest.raises(ValueError, match=message):
        read_run(write_run(STEP, line, RESULT))


def test_a_damaged_config_is_named(write_run):
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        read_run(write_run(RESULT, config="{"))


@pytest.mark.parametrize(
    "last", ["", "{", "[1]", "3", "null", '{"step": 1}', '{"event": "resu', "\x00" * 20, "[" * 100_000]
)
def test_a_run_is_finished_only_by_a_whole_result(write_run, last):
    assert not RunFolder(write_run(*EPOCHS, last)).is_finished()
    assert RunFolder(write_run(*EPOCHS, RESULT)).result() == RESULT


def test_a_run_without_a_log_or_with_bytes_that_are_no_text(tmp_path):
    assert not RunFolder(tmp_path).is_finished()
    RunFolder(tmp_path).metrics.write_bytes(b"\xff\xfe\n")
    assert not RunFolder(tmp_path).is_finished()


def test_the_checkpoints_of_a_folder_are_the_exact_names(tmp_path):
    root = tmp_path / "checkpoints"
    assert RunFolder(tmp_path).saved("step") == []
    for name in (
        "step-0",
        "step-9",
        "step-10",
        "best-3",
        "step-010",
        "step-",
        "step--1",
        "step-1.0",
        "step-٣",
        " step-3",
    ):
        (root / name).mkdir(parents=True)
    (root / "step-11").touch()
    (root / "step-12").symlink_to(root / "step-9")
    (root / "step-13").symlink_to("step-13")
    assert RunFolder(tmp_path).saved("step") == [(number, root / f"step-{number}") for number in (10, 9, 0)]
    assert RunFolder(tmp_path).saved("best") == [(3, root / "best-3")]


def test_predictions_come_back_example_by_example(tmp_path):
    predicted = [np.array([1, 2, 3]), np.array([], dtype=np.int64), np.array([4])]
    gold = [np.array([0, 2, 3]), np.array([], dtype=np.int64), np.array([9])]
    save_predictions(tmp_path, "test", predicted, gold)
    for found, expected in zip(read_predictions(tmp_path), (predicted, gold), strict=True):
        assert [values.tolist() for values in found] == [values.tolist() for values in expected]
    with pytest.raises(ValueError, match=r"validation\.npz does not exist: repeat the run"):
        read_predictions(tmp_path, "validation")
