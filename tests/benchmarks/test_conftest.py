"""Which runs replace a benchmark's table."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[2] / "benchmarks" / "conftest.py"
FILE = """
import pytest

@pytest.mark.parametrize("size", [1, 2])
def test_speed(table, size):
    table.append(f"speed {size}")

def test_size(publish):
    publish(["the size"])

@pytest.mark.skip
def test_elsewhere(publish):
    publish(["never"])

@pytest.mark.xfail(strict=True)
def test_memory(publish):
    publish(["the memory"])
    assert False
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "toy.txt").write_text("the table of before\n")
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "test_toy.py").write_text(FILE)
    (tmp_path / "test_other.py").write_text(FILE.replace("speed", "other"))
    return tmp_path


def run(folder: Path, *arguments: str) -> tuple[str, str]:
    """What pytest prints, and the table then."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "LORA_BENCHMARK_SIZE": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.stdout, (folder / "tables" / "toy.txt").read_text()


def test_a_whole_run_of_a_file_replaces_its_table(folder: Path) -> None:
    printed, table = run(folder, "test_toy.py", "test_other.py::test_size")
    assert table.splitlines()[1:] == ["", "the size", "", "the memory", "", "speed 1", "speed 2"]
    assert "threads, Python" in table
    assert not (folder / "tables" / "other.txt").exists()
    assert "other.txt is not written: 4 tests of test_other.py did not run; run the whole file" in printed


@pytest.mark.parametrize("arguments", [["-k", "speed and 2 or size"], ["-x", "--runxfail"]], ids=["chosen", "stopped"])
def test_a_part_of_a_file_prints_its_table_and_leaves_the_old_one(folder: Path, arguments: list[str]) -> None:
    (folder / "test_toy.py").write_text(FILE + "\ndef test_last(publish):\n    publish(['late'])\n")
    printed, table = run(folder, "test_toy.py", *arguments)
    assert table == "the table of before\n"
    assert "the size" in printed
    assert "speed 2" in printed
    assert "toy.txt is not written: " in printed
