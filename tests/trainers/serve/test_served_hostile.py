"""Folders that an enemy wrote: every reader refuses what it cannot use, at once, in a line that names the file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MUTATIONS = 60
"""Of each reader; some thousands were read by hand."""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What hostile_files.py reports."""
    folder = tmp_path_factory.mktemp("hostile")
    script = Path(__file__).resolve().parents[1] / "hostile_files.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(MUTATIONS)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "report.json").read_text())


READERS = ("adapter", "bert", "vit", "lstm", "index", "pickle", "onnx", "onnx adapter", "npz", "tokenizer.json",
           "vocab.txt", "merges.txt", "spm.model", "preprocessor")  # fmt: skip


@pytest.mark.fault("a model folder with mutated, re-signed files", "a line that names the file", "none")
@pytest.mark.parametrize("reader", READERS)
def test_only_documented_errors_leave_a_reader(report, reader):
    found = report[reader]
    assert not found["escaped"]
    assert found["read"] + found["refused"] == MUTATIONS
    assert found["refused"] >= MUTATIONS // 4  # the mutations do damage


def test_every_reader_was_tried(report):
    assert set(report) == set(READERS)
