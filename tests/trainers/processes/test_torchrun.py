"""Under torchrun: a process that is killed, the agent that is killed, and starts again after either."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from threading import Thread

import pytest
import torch.distributed as dist
from safetensors.torch import load_file

from trainers.processes.distributed import World
from trainers.processes.torchrun import meet


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def straight(start, folders):
    """The folder of a run of two processes that nothing interrupts."""
    folder = folders / "straight"
    if not folder.exists():
        assert start(folder).wait()[0] == [0, 0]
    return folder


def same(one, other):
    """Whether two runs trained the same, bit for bit, and scored the same."""
    adapters = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (one, other)]
    assert adapters[0].keys() == adapters[1].keys()
    results = [json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1]) for folder in (one, other)]
    assert results[0]["event"] == results[1]["event"] == "result"
    return (
        all(adapters[0][key].equal(adapters[1][key]) for key in adapters[0])
        and results[0]["test"] == results[1]["test"]
    )


@pytest.mark.fault(
    "kill -9 of rank 1, torchrun --max-restarts 1, 2 nodes", "starts again, equal bit for bit", "to the last checkpoint"
)
def test_a_killed_rank_is_started_again_and_nothing_is_different(start, straight, folders):
    """On two nodes, whose agents meet on this machine. On one node everything of this happens too, but for the agents
    that count their restarts apart."""
    folder = folders / "killed"
    ranks = start(folder, fault="kill", torchrun=["--max-restarts", "1"], nodes=2)
    assert ranks.wait()[0] == [0, 0]
    assert (ranks.starts(0), ranks.starts(1)) == (2, 2)
    assert "continues from its newest checkpoint" in (ranks.notes / "error-0").read_text()
    assert same(straight, folder)


@pytest.mark.fault(
    "kill -9 of torchrun itself", "all processes end; resumed equal bit for bit", "to the last checkpoint"
)
def test_processes_end_with_torchrun_and_free_the_folder(start, straight, folders, tiny, checkpoint, data):
    folder = folders / "orphans"
    ranks = start(folder, "--workers", "1", fault="pause", torchrun=[])
    ranks.until(lambda: (ranks.notes / "paused").exists())
    pids = [ranks.pid(0), ranks.pid(1)]
    pids += [child for pid in pids for child in ranks.children(pid)]
    assert len(pids) == 4, "two ranks with a loader each"
    refused = subprocess.run(
        [sys.executable, "-m", "trainers", *tiny.arguments(checkpoint, data, folder, "--resume", "auto")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}, capture_output=True, text=True,
    )  # fmt: skip
    assert refused.returncode == 2
    assert f"error: The run folder {folder} is in use by process {pids[0]} on host " in refused.stderr
    ranks.launchers[0].kill()
    ranks.until(lambda: not any(map(ranks.is_alive, pids)), seconds=10)
    assert (folder / "run.lock").exists()
    assert start(folder, "--resume", "auto", torchrun=[]).wait()[0] == [0]
    assert not (folder / "run.lock").exists()
    assert same(straight, folder)


def test_an_earlier_start_does_not_disturb_a_meeting(tmp_path):
    """Three processes meet in a store where an earlier three met, and one where they did not all come."""
    store, wait = dist.FileStore(str(tmp_path / "store"), -1), timedelta(seconds=20)
    store.set("meeting", "unfinished")
    store.set("unfinished/1", "dead")
    prefixes, met = [], {}
    for _ in range(2):
        threads = [
            Thread(target=lambda rank: met.update({rank: meet(store, rank, 3, wait)}), args=(rank,))
            for rank in (2, 1, 0)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert met[0] == met[1] == met[2]
        prefixes.append(met[0])
    assert prefixes[0] != prefixes[1]


def test_who_does_not_come_to_the_meeting_is_named(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), -1)
    with pytest.raises(TimeoutError, match=r"rank 1 has not come within 0\.1 s.*--timeout"):
        meet(store, 0, 2, timedelta(seconds=0.1))
    with pytest.raises(TimeoutError, match=r"[Aa]nother process has not come within 0\.1 s.*--timeout"):
        meet(store, 1, 2, timedelta(seconds=0.1))


def test_a_note_outlives_a_start_under_torchrun_alone(alone):
    assert not alone.remembers("run in a")
    alone.remember("run in a")
    assert not alone.remembers("run in a")
    store = dist.HashStore()
    one, other = (World(0, 1, alone.device, store=store) for _ in range(2))
    one.remember("run in a")
    assert other.remembers("run in a")
    assert not other.remembers("run in b")
