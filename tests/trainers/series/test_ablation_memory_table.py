import json

import pytest

from trainers.config import RunConfig
from trainers.run_folder import read_run
from trainers.series.ablation import Variant, ablation_row, memory_table


@pytest.fixture
def row(tmp_path):
    """Makes the row of a variant whose runs took so much memory."""

    def make(name, *memories):
        runs = []
        for seed, memory in enumerate(memories):
            folder = tmp_path / name / str(seed)
            folder.mkdir(parents=True)
            scores = {"accuracy": 0.5, "f1": 0.5, "loss": 1.0, "confusion": [[1]]}
            result = {"event": "result", "validation": scores, "labels": ["x"], "trainable": 1, "total": 2,
                      "seconds": 1.0, "peak_memory_bytes": 1}  # fmt: skip
            result |= {} if memory is None else {"memory": memory}
            (folder / "config.json").write_text("{}")
            (folder / "metrics.jsonl").write_text(json.dumps(result) + "\n")
            runs.append(read_run(folder))
        config = RunConfig(task="text-classification", data="d", method="full" if name == "full" else "lora")
        return ablation_row(Variant(name, [config] * len(runs)), runs)

    return make


def test_peaks_of_all_seeds_against_the_reference(row):
    rows = [row("full", {"resident": int(2e9), "allocated": int(8e9), "reserved": int(10e9)}),
            row("lora", {"resident": int(1e9), "allocated": int(3e9), "reserved": int(4e9)},
                {"resident": int(1.5e9), "allocated": int(2e9), "reserved": int(5e9)})]  # fmt: skip
    table = memory_table(rows)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[:4]]
    assert lines[0] == ["model", "training", "GPU allocated", "GPU reserved", "peak RSS"]
    assert lines[2] == ["full", "full", "8.00 GB (100%)", "10.00 GB (100%)", "2.00 GB (100%)"]
    assert lines[3] == ["lora", "LoRA", "3.00 GB (38%)", "5.00 GB (50%)", "1.50 GB (75%)"]
    assert "against full." in table
    assert "1.50 GB (100%)" in memory_table(rows, reference=1)


def test_without_a_gpu_and_from_older_runs(row):
    assert "GPU" not in memory_table([row("full", {"resident": 5})])
    with pytest.raises(ValueError, match="has no figures of its memory: repeat it"):
        memory_table([row("lora", None)])
