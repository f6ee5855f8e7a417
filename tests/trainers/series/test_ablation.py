import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from trainers.config import RunConfig
from trainers.run_folder import Run, read_run
from trainers.series import ablation
from trainers.series.ablation import Variant, ablation_row, ablation_table, estimate, run_ablation, write_ablation


def finished(config, f1):
    """A finished run of two labels; `f1` also tells its other scores."""
    confusion = [[8, 2], [1, round(10 * f1)]]
    scores = {"accuracy": f1 + 0.01, "f1": f1, "loss": 1 - f1, "confusion": confusion}
    result = {"labels": ["cat", "dog"], "validation": {**scores, "f1": 0.1}, "test": scores, "trainable": 443_906,
              "total": 86_244_100, "seconds": 100 * f1, "peak_memory_bytes": int(1e9 * f1)}  # fmt: skip
    return Run(Path(config.output_dir), "run", {}, [], result)


def variant(method="lora", seeds=(1, 2, 3), **settings):
    shared = {"method": method, "data": "sets/pets", **settings}
    return Variant("ViT", [RunConfig(seed=seed, output_dir=Path(f"seed-{seed}"), **shared) for seed in seeds])


def row(*f1, **settings):
    chosen = variant(seeds=range(len(f1)), **settings)
    return ablation_row(chosen, [finished(config, score) for config, score in zip(chosen.configs, f1, strict=True)])


@pytest.mark.parametrize("values", [[0.8, 0.9], [0.7, 0.75, 0.9], [0.5, 0.5, 0.5], list(np.linspace(0, 1, 9) ** 2)])
def test_the_interval_is_the_t_interval(values):
    found = estimate(values)
    if len(set(values)) == 1:
        assert (found.mean, found.half_width) == (0.5, 0)
        return
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert found.mean - found.half_width == pytest.approx(low)
    assert found.mean + found.half_width == pytest.approx(high)


def test_a_single_seed_has_no_interval():
    assert estimate([0.5]) == ablation.Estimate(0.5, None)
    assert "±" not in ablation_table([row(0.8)])
    assert "interval" not in ablation_table([row(0.8)])


def test_a_row_is_the_mean_over_seeds_on_the_test_split():
    found = row(0.7, 0.8, 0.9, r=8, lora_alpha=16.0)
    assert found.f1.mean == pytest.approx(0.8)
    assert found.accuracy.mean == pytest.approx(0.81)
    assert found.loss.mean == pytest.approx(0.2)
    assert found.seconds == pytest.approx(80)
    assert found.peak_memory_bytes == 900_000_000
    assert found.confusion == [[24, 6], [3, 24]]
    assert found.folders == (Path("seed-0"), Path("seed-1"), Path("seed-2"))
    assert (found.split, found.method, found.r, found.lora_alpha) == ("test", "LoRA", 8, 16.0)


def test_without_a_test_split_validation_counts():
    chosen = variant(seeds=[1])
    run = finished(chosen.configs[0], 0.8)
    del run.result["test"]
    found = ablation_row(chosen, [run])
    assert (found.split, found.f1.mean) == ("validation", 0.1)


def test_the_table():
    table = ablation_table([row(0.7, 0.8, r=8, lora_alpha=None), row(0.9, 0.9, method="full")], "A note.")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    assert lines[0] == ["model", "training", "r", "alpha", "trainable", "accuracy", "F1", "loss", "time", "peak memory"]
    assert lines[2] == ["ViT", "LoRA", "8", "8", "443,906 (0.51%)", "76.00 ± 63.53", "75.00 ± 63.53", "0.250 ± 0.635",
                        "1 min 15 s", "0.80 GB"]  # fmt: skip
    assert lines[3][:4] == ["ViT", "full", "", ""]
    assert table.endswith("pets, test split. Accuracy and macro F1 in percent. Mean and 95 % t-interval of 2 seeds; "
                          "time is that of one. A note.\n")  # fmt: skip


def test_every_variant_runs_with_every_seed(monkeypatch, alone):
    started = []
    monkeypatch.setattr(ablation, "run", lambda config: started.append(config) or finished(config, 0.5))
    variants = [variant("full"), variant("lora", seeds=(4,))]
    rows = run_ablation(variants, dataclasses.replace(alone, size=2))
    assert started == [*variants[0].configs, *variants[1].configs]
    assert [len(found.folders) for found in rows] == [3, 1]


def test_a_run_has_a_process_of_its_own(finished_text, alone, tmp_path):
    settings = {**read_run(finished_text).config, "output_dir": str(tmp_path / "run")}
    config = RunConfig.from_dict(settings, "here")
    ballast = torch.ones(100_000_000)  # 400 MB that are none of the run's
    (found,) = run_ablation([Variant("BERT", [config])], alone)
    assert found.folders == (tmp_path / "run",)
    assert found.peak_memory_bytes < 4 * ballast.numel() + 100_000_000
    with pytest.raises(ValueError, match=r"holds a run already\. Add --resume auto"):
        run_ablation([Variant("BERT", [config])], alone)


def test_what_is_written(tmp_path):
    rows = [row(0.7, 0.8), row(0.9, 0.9, method="head")]
    table, figures, picture = write_ablation(rows, tmp_path / "new", "A note.")
    assert table.read_text() == ablation_table(rows, "A note.")
    read = json.loads(figures.read_text())
    assert [found["method"] for found in read] == ["LoRA", "head only"]
    assert read[0]["f1"] == {"mean": pytest.approx(0.75), "half_width": pytest.approx(0.6353, abs=1e-4)}
    assert picture.read_bytes().startswith(b"\x89PNG")
