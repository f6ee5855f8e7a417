"""What export and bench have left in the folder of a run, as the report shows it."""

import dataclasses
import json
import shutil

import pytest

from trainers.finished import FinishedRun
from trainers.report.evidence import Evidence, Options
from trainers.report.system import environment_section, serving_section
from trainers.serve.bench import Comparison, Measured, write_bench

PYTORCH = Measured(
    "PyTorch", "cpu", 90_000_000, 1.0, 200_000_000, 400_000_000, None, 8.0, 9.0, 100.0, 150.0, None, {"f1": 0.7}, 50
)


@pytest.fixture
def evidence(finished_image, tmp_path):
    folder = shutil.copytree(finished_image, tmp_path / "run")
    return Evidence(FinishedRun.open(folder), Options())


def test_without_files_it_says_how_they_are_made(evidence):
    assert "lora-core export RUN" in serving_section(evidence).missing


def test_the_figures_of_bench_are_shown_for_images(evidence):
    onnx = dataclasses.replace(PYTORCH, name="ONNX fp32", examples_per_second_sorted=300.0, identical=49)
    write_bench(Comparison("run", "data", "test", "f1", 60, 50, 50, 2, False, (PYTORCH, onnx)), evidence.run.run.folder)
    table, picture = serving_section(evidence).blocks
    assert "images/s" in table.header
    factors = [row[table.header.index("factor")] for row in table.rows]
    assert factors == [1.5, 3.0]  # against PyTorch in batches as the data comes
    assert [row[-1] for row in table.rows] == [50, 49]
    assert "ONNX fp32" in picture.alt


def test_figures_of_another_version_are_refused_with_a_remedy(evidence):
    path = evidence.run.run.folder / "bench.json"
    path.write_text(json.dumps({"variants": [{"name": "PyTorch"}]}))
    with pytest.raises(ValueError, match=r"bench\.json is of another version .* lora-core bench"):
        serving_section(evidence)


def test_images_a_second(evidence):
    names = [row[0] for row in environment_section(evidence).blocks[0].rows]
    assert "images a second" in names
    assert "tokens a second" not in names
