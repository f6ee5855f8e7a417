import json

import numpy as np
import pytest

from trainers.config import RunConfig
from trainers.results.significance import half_width
from trainers.series.seeds import means, run_seeds, seeds_report, write_seeds


def test_a_run_for_each_seed_and_their_mean(checkpoint, data, tmp_path):
    config = RunConfig(
        model=str(checkpoint), data=str(data), output_dir=tmp_path, epochs=1, batch_size=8, learning_rate=1e-2, seed=5
    )
    runs = run_seeds(config, 3)
    assert [run.folder.name for run in runs] == ["seed-5", "seed-6", "seed-7"]
    losses = [run.result["test"]["loss"] for run in runs]
    assert len(set(losses)) == 3
    found = means(runs)
    assert found["loss"].mean == pytest.approx(np.mean(losses))
    assert found["loss"].deviation == pytest.approx(np.std(losses, ddof=1))
    assert found["loss"].half_width == half_width(losses)
    f1 = np.mean([run.result["test"]["f1"] for run in runs])
    report = seeds_report(runs)
    assert f"{100 * f1:.2f}" in report
    assert "seed 6" in report
    table, figures = write_seeds(runs, tmp_path)
    assert table.read_text() == report
    assert json.loads(figures.read_text())["scores"]["f1"]["mean"] == pytest.approx(f1)


def test_without_a_seed(tmp_path):
    with pytest.raises(ValueError, match="seeds must be at least 1, but it is 0"):
        run_seeds(RunConfig(output_dir=tmp_path), 0)


def test_a_single_seed_has_no_interval(checkpoint, data, tmp_path):
    runs = run_seeds(RunConfig(model=str(checkpoint), data=str(data), output_dir=tmp_path, epochs=0), 1)
    assert means(runs)["f1"].half_width is None
    assert "±" not in seeds_report(runs)
