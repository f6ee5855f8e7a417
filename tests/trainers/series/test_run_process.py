import os

import pytest
import torch

from trainers.series import run_process
from trainers.series.run_process import MEMORY_OF_A_RUN, usual_processes


@pytest.mark.parametrize(
    ("runs", "free", "gpu", "expected"),
    [
        (100, 64, False, 8),
        (5, 64, False, 5),
        (100, 2.5, False, 2),
        (100, 0.5, False, 1),
        (0, 64, False, 1),
        (9, 64, True, 1),
    ],
)
def test_so_many_runs_go_at_a_time_as_there_are_cores_and_memory(monkeypatch, caplog, runs, free, gpu, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(run_process, "free_bytes", lambda _: int(free * MEMORY_OF_A_RUN))
    assert usual_processes(runs) == expected
    lines = [record.getMessage() for record in caplog.records]
    limited = (
        f"{expected} run{'s' * (expected > 1)} at a time instead of 8: {3 * free:.1f} GB of memory are free, and each "
        "is given 3 (--processes says otherwise)"
    )
    assert lines == ([] if free == 64 else [limited])
