import mmap
import resource
import sys

import pytest
import torch

from trainers.training import memory
from trainers.training.memory import free_bytes, peak_memory, peak_memory_bytes, reset_peak_memory

CPU = torch.device("cpu")
SIZE = 64 * 2**20


def touch():
    """Use SIZE bytes for a moment; a mapping of its own is given back to the system at once."""
    with mmap.mmap(-1, SIZE) as block:
        for page in range(0, SIZE, mmap.PAGESIZE):
            block[page] = 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can reset the peak of a process")
def test_counts_what_was_used_since_the_reset():
    touch()
    reset_peak_memory(CPU)
    start = peak_memory_bytes(CPU)
    touch()
    assert SIZE * 0.9 < peak_memory_bytes(CPU) - start < SIZE * 1.5
    reset_peak_memory(CPU)
    assert peak_memory_bytes(CPU) < start + SIZE // 2


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1), ("freebsd", 1024)])
def test_systems_without_proc(monkeypatch, tmp_path, platform, unit):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "missing")
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "no folder" / "missing")
    monkeypatch.setattr(sys, "platform", platform)
    reset_peak_memory(CPU)
    assert peak_memory_bytes(CPU) == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def test_a_container_that_forbids_the_reset(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CLEAR", tmp_path)  # a folder cannot be written, not even by root
    reset_peak_memory(CPU)
    assert peak_memory_bytes(CPU) > 0


def test_peaks_of_a_process_without_a_gpu():
    peaks = peak_memory(CPU)
    assert peaks.keys() == {"resident"}
    assert peaks["resident"] == pytest.approx(peak_memory_bytes(CPU), rel=0.05)


@pytest.mark.parametrize(
    ("limit", "expected"), [("max", 5000 * 1024), ("4000000", 4000000 - 1500000 + 200000), ("1000", 0)]
)
@pytest.mark.parametrize(
    "files",
    [
        {"memory.max": "{limit}", "memory.current": "1500000", "memory.stat": "anon 1300000\ninactive_file 200000"},
        {
            "memory/memory.limit_in_bytes": "{limit}",
            "memory/memory.usage_in_bytes": "1500000",
            "memory/memory.stat": "inactive_file 7\ntotal_inactive_file 200000",
        },
    ],
    ids=["control groups 2", "control groups 1"],
)
def test_a_containers_memory_is_its_limit_less_what_it_holds(monkeypatch, tmp_path, files, limit, expected):
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  5000 kB\n")
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text.format(limit=limit) + "\n")
    monkeypatch.setattr(memory, "_SYSTEM", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CONTROL_GROUPS", tmp_path)
    assert free_bytes(CPU) == expected
