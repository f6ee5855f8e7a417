"""Runs of several real processes, of which one meets a fault (tests/trainers/faulty_rank.py)."""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1]


@dataclass
class Ranks:
    """Two processes that train, under torchrun or alone."""

    launchers: list[subprocess.Popen]
    notes: Path

    def wait(self):
        """Exit statuses of what was launched, and all that it printed itself."""
        out = [launcher.communicate(timeout=200)[0] for launcher in self.launchers]
        return [launcher.returncode for launcher in self.launchers], "".join(out)

    def pid(self, rank):
        """The number of the process with this rank, once it has started."""
        self.until(
            lambda: (self.notes / f"rank-{rank}").exists() and (self.notes / f"rank-{rank}").read_text().endswith("\n")
        )
        return int((self.notes / f"rank-{rank}").read_text().split()[-1])

    @staticmethod
    def until(condition, seconds=60):
        """Wait until something holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it does not come"
            time.sleep(0.05)

    @staticmethod
    def is_alive(pid):
        """Whether a process runs; one that has ended and was not waited for does not."""
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return False

    @staticmethod
    def children(pid):
        """Numbers of the processes that a process has started."""
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def starts(self, rank):
        """How often that rank was started."""
        return len((self.notes / f"rank-{rank}").read_text().split())

    def errors(self, rank):
        """The lines that the rank wrote to its standard error, without progress bars and what is no error."""
        lines = re.split(r"[\r\n]", (self.notes / f"error-{rank}").read_text())
        return [line for line in lines if line.strip() and not re.match(r" *(epoch|evaluate)|INFO|WARNING", line)]


@pytest.fixture
def start(meeting, tiny, checkpoint, data, tmp_path):
    """Factory: start the two processes of a run into a folder; at the test's end none is left."""
    started = []

    def start(folder, *settings, fault="none", rank=1, torchrun=None, nodes=1):
        """``torchrun``: its flags; None: the processes stand alone."""
        notes = tmp_path / f"notes-{len(started)}"
        notes.mkdir()
        command = [str(HERE / "faulty_rank.py"), fault, str(rank), *tiny.arguments(checkpoint, data, folder, *settings)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "NOTES": str(notes),
               "LORA_CACHE_DIR": str(tmp_path / "cache")}  # fmt: skip
        if torchrun is None:
            place = meeting.place(2)
            each = [([sys.executable, *command], {**place, "RANK": str(rank)}) for rank in range(2)]
        else:
            endpoint = f"localhost:{meeting.free_port()}"
            where = ["--standalone"] if nodes == 1 else [
                "--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]  # fmt: skip
            agent = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                *where,
                "--nproc-per-node",
                str(2 // nodes),
                *torchrun,
            ]
            each = [([*agent, *command], {})] * nodes
        launchers = [
            subprocess.Popen(
                line, env={**env, **more}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
            )
            for line, more in each
        ]
        started.append(Ranks(launchers, notes))
        return started[-1]

    yield start
    for ranks in started:
        for launcher in ranks.launchers:
            launcher.kill()
            launcher.wait()
            launcher.stdout.close()
