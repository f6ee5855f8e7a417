import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy.stats import ttest_rel

from trainers.results.significance import mean_bootstrap_interval, paired_interval
from trainers.run_folder import read_run
from trainers.series.run_process import RunProcess
from trainers.series.study import Study, _score_name, run_study, study_results, study_table, write_study

FILE = """
seeds = 2
baseline = "full"
[settings]
model = {model}
data = {data}
epochs = 2
batch_size = 8
[recipes.full]
method = "full"
learning_rate = 5e-3
[recipes.lora]
learning_rate = 1e-2
target_modules = ["all-linear"]
"""


@pytest.fixture(scope="module")
def study_file(checkpoint, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "study.toml"
    path.write_text(FILE.format(model=json.dumps(str(checkpoint)), data=json.dumps(str(data))))
    return path


@pytest.fixture(scope="module")
def done(study_file):
    """A study that a signal interrupted, and its end."""
    folder = study_file.parent / "runs"
    program = (
        "import sys; from pathlib import Path; from trainers.series.study import Study, _score_name, run_study;"
        "run_study(Study.read(Path(sys.argv[1])), Path(sys.argv[2]), processes=2, threads=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, study_file, folder], stderr=subprocess.PIPE)
    while not any(folder.glob("*/seed-*/metrics.jsonl")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=200)
    assert process.returncode != 0
    study = Study.read(study_file)
    unfinished = [config for config in study.runs(folder) if not _is_done(config)]
    assert unfinished, "the signal came in time"
    assert run_study(study, folder, processes=2, threads=1) == []
    assert all(map(_is_done, study.runs(folder)))
    return study, folder


def _is_done(config):
    try:
        return bool(read_run(config.output_dir))
    except ValueError:
        return False


def test_the_results_are_those_of_the_runs(done):
    study, folder = done
    results = {result.recipe: result for result in study_results(study, folder)}
    assert list(results) == sorted(results, key=lambda name: -results[name].score)
    score = {
        name: [read_run(folder / name / f"seed-{seed}").result["validation"]["f1"] for seed in (42, 43)]
        for name in ("full", "lora")
    }
    for name, result in results.items():
        assert result.seeds == (42, 43)
        assert result.score == pytest.approx(np.mean(score[name]))
    lora = results["lora"]
    assert lora.difference == pytest.approx(100 * (np.mean(score["lora"]) - np.mean(score["full"])))
    low, high = lora.over_seeds
    assert low <= lora.difference <= high
    assert lora.over_examples[0] <= lora.over_examples[1]
    assert results["full"].difference is None
    assert lora.collapsed == 0


def test_side_by_side_a_run_is_what_it_is_alone(done, tmp_path):
    study, folder = done
    config = dataclasses.replace(study.runs(folder)[-1], output_dir=tmp_path / "alone")
    process = RunProcess(config, 1)
    while process.status is None:
        time.sleep(0.05)
    assert process.failure is None
    beside = read_run(study.runs(folder)[-1].output_dir).result
    assert read_run(config.output_dir).result["files"] == beside["files"]


def test_the_table_and_the_picture(done):
    study, folder = done
    table = study_table(study_results(study, folder), "validation")
    assert re.search(r"lora +\| +2 \|", table)
    assert "All together: 4 runs" in table
    paths = write_study(study_results(study, folder), folder, "validation")
    assert [path.name for path in paths] == ["study.validation.md", "study.validation.json", "study.validation.png"]
    assert {entry["recipe"] for entry in json.loads(paths[1].read_text())} == {"full", "lora"}
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_test_data_is_left_alone_until_recipes_are_named(done, tmp_path):
    study, folder = done[0], shutil.copytree(done[1], tmp_path / "runs")
    before = {name: read_run(folder / name / "seed-42") for name in study.recipes}
    for run in before.values():
        assert "test" not in run.result
        assert not run.files.predictions("test").exists()
    with pytest.raises(ValueError, match="holds no finished run"):
        study_results(study, folder, "test", ["full"])
    assert run_study(study, folder, test=["full"]) == []
    (full,) = study_results(study, folder, "test")
    assert full.recipe == "full"
    after = {name: read_run(folder / name / "seed-42") for name in study.recipes}
    assert after["lora"].result == before["lora"].result
    assert full.score == pytest.approx(
        np.mean([read_run(folder / "full" / f"seed-{seed}").result["test"]["f1"] for seed in (42, 43)])
    )
    for name in ("validation", "seconds", "tokens_per_second", "peak_memory_bytes", "memory"):
        assert after["full"].result[name] == before["full"].result[name]
    weights = "best/model.safetensors"
    assert after["full"].result["files"][weights] == before["full"].result["files"][weights]
    assert run_study(study, folder, test=["full"]) == []  # nothing is left to do
    assert read_run(folder / "full" / "seed-42").result == after["full"].result


def test_the_next_round_of_a_search_is_of_some_recipes_with_more_seeds(study_file, tmp_path):
    whole = Study.read(study_file)
    both = whole.part(["lora"], 3)
    assert [(config.output_dir.parent.name, config.seed) for config in both.runs(tmp_path)] == [
        (name, seed) for seed in (42, 43, 44) for name in ("full", "lora")
    ]
    assert [config.output_dir for config in whole.runs(tmp_path)] == [
        config.output_dir for config in both.runs(tmp_path) if config.seed < 44
    ]
    assert list(whole.part(["full"]).recipes) == ["full"]
    assert whole.part([]) == whole
    with pytest.raises(ValueError, match="'lore' is no recipe of the study; there are full, lora"):
        whole.part(["lore"])
    with pytest.raises(ValueError, match="seeds must be at least 1, but it is 0"):
        whole.part([], 0)


def test_a_run_that_fails_is_named_and_the_others_are_made(study_file, tmp_path):
    path = tmp_path / "study.toml"
    text = study_file.read_text().replace("epochs = 2", "epochs = 0").replace("seeds = 2", "seeds = 1")
    path.write_text(text.replace("[recipes.lora]", '[recipes.lora]\nmodel = "lstm"'))
    study = Study.read(path)
    (failed,) = run_study(study, tmp_path / "runs", processes=2, threads=1)
    assert "method full" in failed
    assert f"(status 2, {tmp_path / 'runs' / 'lora' / 'seed-42.log'})" in failed
    assert list(map(_is_done, study.runs(tmp_path / "runs"))) == [True, False]
    (result,) = study_results(study, tmp_path / "runs")
    assert (result.recipe, result.seeds, result.half_width) == ("full", (42,), None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds = 2", "seeds = 0", "seeds is 0, expected how many"),
        ('baseline = "full"', 'baseline = "fill"', "the baseline 'fill' is no recipe; there are full, lora"),
        ("epochs = 2", "epoch = 2", "recipes.full: unknown setting 'epoch'. Did you mean 'epochs'"),
        ("epochs = 2", "score_test = true", "recipes.full: score_test is set by the study"),
        ("epochs = 2", "seed = 2", "recipes.full: seed is set by the study"),
        ("[settings]", "[setting]", "unknown entry 'setting'; a study has baseline, recipes, seeds, settings"),
        ("learning_rate = 1e-2", "learning_rate = ", "is not TOML"),
        ("[recipes.lora]", '[recipes."x/lora"]', "recipes.x/lora: a recipe has a folder of its name"),
        ("[recipes.lora]", '[recipes.".."]', "recipes...: a recipe has a folder of its name"),
    ],
)
def test_a_file_that_is_no_study(study_file, tmp_path, old, new, message):
    path = tmp_path / "study.toml"
    path.write_text(study_file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=re.escape(message)):
        Study.read(path)


@pytest.mark.parametrize("metric", ["f1", "loss", "pearson"])
def test_a_regression_is_compared_by_its_correlation(make_run, metric):
    run = make_run("runs/a", metric=metric)
    assert _score_name(run) == ("f1" if metric != "pearson" else "pearson")
    run.result["validation"] = {"loss": 0.2, "pearson": 0.7, "spearman": 0.6}
    assert _score_name(run) == "pearson"


def test_intervals():
    one, other = np.array([70.1, 71.0, 69.5]), np.array([69.0, 70.5, 69.1])
    expected = ttest_rel(one, other).confidence_interval(0.95)
    assert paired_interval(one - other) == pytest.approx((expected.low, expected.high))
    assert paired_interval([1.0]) is None
    generator = np.random.default_rng(0)
    counts = [generator.integers(0, 3, (200, 1, 3)) for _ in range(3)]
    assert mean_bootstrap_interval(counts, counts, macro=False) == (0.0, 0.0)
    worse = [np.maximum(each - [1, 0, 0], 0) for each in counts]
    low, high = mean_bootstrap_interval(counts, worse, macro=False)
    assert 0 < low < high
