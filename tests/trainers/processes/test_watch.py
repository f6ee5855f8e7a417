"""Two real processes of a run, of which one fails, dies or stands still: the user reads once which, and why."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1]
MORE_TIME = "If it only needs longer, raise --timeout; else --resume auto continues the run."


@pytest.fixture(scope="module")
def failing(checkpoint, data, tmp_path_factory):
    """The folder that failing_ranks.py has filled, and its report."""
    root = tmp_path_factory.mktemp("failing")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "LORA_CACHE_DIR": str(root / "c")}
    command = [sys.executable, HERE / "failing_ranks.py", checkpoint, data, root]
    done = subprocess.run(command, env=env, cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root, json.loads((root / "report.json").read_text())


@pytest.fixture
def end(failing):
    """Of a case: exit statuses, and what each process wrote to its standard error beside its progress."""
    root, report = failing

    def read(case):
        texts = [(root / case / f"error-{rank}").read_text() for rank in range(2)]
        lines = [
            [line for line in re.split(r"[\r\n]", text) if line.strip() and not re.match(r"epoch|evaluate", line)]
            for text in texts
        ]
        return [status for status, _ in report[case]], lines

    return read


@pytest.mark.fault(
    "an error of a reader on rank 1", "both end, status 2; one line with rank, file, line", "to the last checkpoint"
)
def test_a_value_error_of_rank_1_is_told_once_by_rank_0(end):
    statuses, lines = end("ValueError of rank 1")
    assert statuses == [2, 2]
    assert len(lines[0]) == 1
    assert re.fullmatch(
        r"error: rank 1: ValueError at \S*faulty_rank\.py:\d+: row 3 of news\.csv has no label", lines[0][0]
    )
    assert lines[1] == []


@pytest.mark.fault(
    "OSError on one rank", "both end, status 2; one line with rank, file, line", "to the last checkpoint"
)
@pytest.mark.parametrize("rank", [0, 1])
def test_an_os_error_of_either_rank_is_told_once(end, rank):
    statuses, lines = end(f"OSError of rank {rank}")
    assert statuses == [2, 2]
    assert len(lines[0]) == 1
    assert re.fullmatch(
        rf"error: rank {rank}: OSError at \S*faulty_rank\.py:\d+: .*Input/output error: 'news\.csv'", lines[0][0]
    )
    assert lines[1] == []


@pytest.mark.fault(
    "a full disk under rank 0 when it saves", "both end, status 2; one line names the file", "to the last checkpoint"
)
def test_rank_0_that_fails_while_saving_ends_both(end):
    statuses, lines = end("full disk")
    assert statuses == [4, 4]
    assert re.fullmatch(
        r"error: rank 0: DiskFullError at \S+: .*best-1 could not be written: no space left on device; .*", lines[0][0]
    )
    assert (len(lines[0]), lines[1]) == (1, [])


@pytest.mark.fault(
    "an unexpected exception on rank 1", "both end, status 1; its traceback, once", "to the last checkpoint"
)
def test_an_unexpected_error_shows_the_traceback_of_the_rank_that_met_it(end):
    statuses, lines = end("KeyError of rank 1")
    assert statuses == [1, 1]
    assert lines[0][0] == "Traceback (most recent call last):"
    assert sum(line.startswith("Traceback") for line in lines[0]) == 1
    assert lines[0][-2] == "KeyError: 'surprise'"
    assert re.fullmatch(r"error: rank 1: KeyError at \S*faulty_rank\.py:\d+: 'surprise'", lines[0][-1])
    assert not any("gloo" in line for line in lines[0])
    assert lines[1] == []


def test_what_all_processes_meet_is_told_as_by_one(end):
    assert end("ValueError of both") == ([2, 2], [["error: row 3 of news.csv has no label"], []])


@pytest.mark.fault("kill -9 of rank 1", "rank 0 ends, status 1; names rank 1 and its step", "to the last checkpoint")
def test_a_killed_rank_is_named(end):
    statuses, lines = end("rank 1 is killed")
    assert statuses == [1, -9]
    assert lines[0] == [
        "error: rank 1 has ended without a word at step 7: it was killed, perhaps for want of memory. "
        "--resume auto continues the run."
    ]


@pytest.mark.fault("kill -9 of rank 0", "rank 1 ends, status 1; names rank 0", "to the last checkpoint")
def test_if_the_main_process_is_killed_another_tells(end):
    statuses, lines = end("rank 0 is killed")
    assert statuses == [-9, 1]
    told = [line for line in lines[1] if line.startswith("error: ")]
    assert told == ["error: rank 0, or the torchrun that started it, has ended. --resume auto continues the run."]


@pytest.mark.fault(
    "a rank that sleeps", "both end after --timeout; names the rank and its step", "to the last checkpoint"
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_stands_still_is_named(end, failing, rank):
    case = f"rank {rank} stands still"
    statuses, lines = end(case)
    assert statuses == [1, 1]
    line = f"error: rank {rank} has not answered for 5 s: its last sign of life was at step 7. {MORE_TIME}"
    assert lines == [[line], []]
    assert all(5 < seconds < 60 for _, seconds in failing[1][case])


@pytest.mark.fault(
    "SIGSTOP of rank 1", "rank 0 ends after --timeout; names rank 1 and its step", "to the last checkpoint"
)
def test_a_stopped_rank_is_named(end):
    statuses, lines = end("rank 1 is stopped")
    assert statuses == [1, -9]
    assert lines[0] == [f"error: rank 1 has not answered for 5 s: its last sign of life was at step 7. {MORE_TIME}"]


def test_torchrun_shows_the_line_too(start, tmp_path):
    ranks = start(tmp_path / "run", fault="ValueError", torchrun=[])
    statuses, out = ranks.wait()
    assert statuses == [1]
    line = r"rank 1: ValueError at \S*faulty_rank\.py:\d+: row 3 of news\.csv has no label"
    assert [bool(re.fullmatch(f"error: {line}", error)) for error in ranks.errors(0)] == [True]
    assert ranks.errors(1) == []
    assert re.search(rf"Root Cause[^*]*traceback : {line}\n", out)
