import dataclasses
import json
import re
import subprocess
import sys
import time

import pytest

from trainers.cli import read_toml
from trainers.config import RunConfig
from trainers.experiment import run
from trainers.run_folder import read_run
from trainers.series.tune import Search, best_settings, open_search, run_search, search_table, write_search

optuna = pytest.importorskip("optuna")

FILE = """
[settings]
model = {model}
data = {data}
epochs = 1
batch_size = 8
[ranges.learning_rate]
low = 1e-3
high = 1e-1
log = true
[ranges.target_modules]
values = [["qv"], ["all-linear"]]
"""
WORKER = (
    "import sys; from pathlib import Path; from trainers.series.tune import *\n"
    "search, folder = Search.read(Path(sys.argv[1])), Path(sys.argv[2])\n"
    "run_search(search, open_search(search, folder), folder, 4, threads=1)"
)


@pytest.fixture(scope="module")
def search_file(checkpoint, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("tune") / "tune.toml"
    path.write_text(FILE.format(model=json.dumps(str(checkpoint)), data=json.dumps(str(data))))
    return path


@pytest.fixture(scope="module")
def done(search_file):
    """Two processes search together, and one of them is killed within its first trial."""
    folder = search_file.parent / "runs"
    command = [sys.executable, "-c", WORKER, search_file, folder]
    killed, other = (subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2))
    while not any(folder.glob("trial-*.log")):
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    assert other.wait(timeout=240) == 0
    search = Search.read(search_file)
    return search, open_search(search, folder), folder


def test_processes_share_a_search_and_what_a_dead_one_began_is_taken_up(done):
    _, study, folder = done
    complete = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    pruned = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.PRUNED]
    assert len(complete) + len(pruned) == 4
    assert not [trial for trial in study.trials if not trial.state.is_finished()]
    folders = [trial.user_attrs["folder"] for trial in complete]
    assert len(set(folders)) == len(folders)
    for trial in complete:
        finished = read_run(folder / trial.user_attrs["folder"])
        assert finished.result["validation"]["f1"] == trial.value
        assert finished.config["learning_rate"] == trial.params["learning_rate"]
        assert finished.config["target_modules"] == json.loads(trial.params["target_modules"])
        assert 1e-3 <= trial.params["learning_rate"] <= 1e-1


def test_the_best_is_a_file_that_train_reads(done, tmp_path):
    search, study, folder = done
    paths = write_search(search, study, folder)
    assert [path.name for path in paths] == ["search.md", "search.json", "search.png", "run.toml"]
    config = read_toml(folder / "run.toml", RunConfig())
    assert config == best_settings(search, study)
    again = run(dataclasses.replace(config, output_dir=tmp_path / "again"))
    assert again.result["validation"]["f1"] == study.best_value
    table = search_table(search, study)
    first = table.splitlines()[2]
    assert f"{100 * study.best_value:.2f}" in first
    assert "trials ended in full" in table
    assert (folder / "search.png").read_bytes().startswith(b"\x89PNG")


def test_another_search_is_not_mixed_with_it(done, search_file, tmp_path):
    _, _, folder = done
    path = tmp_path / "tune.toml"
    path.write_text(search_file.read_text().replace("high = 1e-1", "high = 1e-2"))
    with pytest.raises(ValueError, match=r"with other settings or ranges than .*tune\.toml"):
        open_search(Search.read(path), folder)
    assert len(open_search(Search.read(search_file), folder).trials) >= 4


def test_weak_trials_are_ended_early(search_file, tmp_path, monkeypatch):
    """With a pruner that ends all, every trial stops after its first epoch, with a checkpoint."""
    path = tmp_path / "tune.toml"
    path.write_text(search_file.read_text().replace("epochs = 1", "epochs = 200"))
    search = Search.read(path)
    study = open_search(search, tmp_path / "runs")
    study.pruner = optuna.pruners.ThresholdPruner(lower=2.0)
    run_search(search, study, tmp_path / "runs", 1, threads=1)
    (trial,) = study.trials
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert list((tmp_path / "runs" / "trial-0" / "checkpoints").glob("step-*"))
    with pytest.raises(ValueError, match=r"No trial of .* has ended yet"):
        best_settings(search, study)


def test_trials_that_all_fail_end_the_search(search_file, tmp_path):
    path = tmp_path / "tune.toml"
    path.write_text(re.sub('model = ".*"', 'model = "nowhere/at-all"', search_file.read_text()))
    search = Search.read(path)
    study = open_search(search, tmp_path / "runs", f"sqlite:///{tmp_path}/search.db")
    with pytest.raises(ValueError, match=r"5 trials in a row have failed. The last: .*nowhere/at-all"):
        run_search(search, study, tmp_path / "runs", 9, processes=2, threads=1)
    failed = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.FAIL]
    assert len(failed) == 5
    assert all("nowhere/at-all" in trial.user_attrs["error"] for trial in failed)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("low = 1e-3", "low = 1", "low must be below high"),
        ("low = 1e-3", "low = -1.0", "above 0 on a log scale"),
        ("low = 1e-3", "lowest = 1e-3", "expected low and high (and log or step), or values"),
        ("low = 1e-3", "", "low is None, expected a number"),
        ("learning_rate", "learning_rates", "unknown setting 'learning_rates'. Did you mean 'learning_rate'"),
        ('[["qv"], ["all-linear"]]', "[3]", "target_modules"),
        ("[settings]", "[settings]\nlearning_rate = 1.0", "has a value in [settings] and a range"),
        ("[settings]", "[settings]\noutput_dir = 'x'", "output_dir is set by the search"),
        ("[ranges.", "[range.", "unknown entry 'range'; a search has [settings] and [ranges.NAME]"),
    ],
)
def test_a_file_that_is_no_search(search_file, tmp_path, old, new, message):
    path = tmp_path / "tune.toml"
    path.write_text(search_file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=re.escape(message)):
        Search.read(path)
