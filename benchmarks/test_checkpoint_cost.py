"""What it costs to be ready to stop: `pytest benchmarks/test_checkpoint_cost.py`.

MiniLM-L6 with LoRA trains through `trainers.loop.fit` on random windows of 40 tokens in batches of 16, in one process
and in two over gloo, one thread each. Every call of `CheckpointSchedule.after_step`, in which the processes agree
whether to stop, is timed in that run, and so is every checkpoint that it writes, on the disk that holds temporary
files. LORA_BENCHMARK_SIZE=small trains fewer steps.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainers.config import RunConfig
from trainers.data.tokens.windows import TokenWindows
from trainers.loop import fit
from trainers.model import build
from trainers.processes.distributed import distributed
from trainers.tasks.token import TokenClassification
from trainers.training import checkpoint_schedule
from trainers.training.checkpoint_schedule import CheckpointSchedule

pytestmark = [pytest.mark.timeout(900)]

STEPS = 6 if os.environ.get("LORA_BENCHMARK_SIZE") == "small" else 40
BATCH, TOKENS = 16, 40
LABELS = ("O", "B-protein", "I-protein")
APART = 600.0
"""Seconds between two checkpoints."""
MOST = 0.005
"""Share of the time that either may cost."""


@pytest.fixture(scope="module")
def runs() -> dict[int, dict[str, Any]]:
    """Figures by number of processes."""
    return {processes: launch(processes) for processes in (1, 2)}


def test_the_agreement_after_every_step(runs, table):
    table.append(f"{'':<34}{'one process':>14}{'two processes':>16}")
    shares = {processes: run["agreement"] / run["step"] for processes, run in runs.items()}
    table.append(f"{'a step, ms':<34}{1e3 * runs[1]['step']:>14.1f}{1e3 * runs[2]['step']:>16.1f}")
    table.append(f"{'agreement whether to stop, ms':<34}{1e3 * runs[1]['agreement']:>14.4f}"
                 f"{1e3 * runs[2]['agreement']:>16.4f}")  # fmt: skip
    table.append(f"{'  of a step':<34}{shares[1]:>14.4%}{shares[2]:>16.4%}")
    assert max(shares.values()) < MOST


def test_a_checkpoint_every_ten_minutes(runs, table):
    shares = {processes: run["checkpoint"] / APART for processes, run in runs.items()}
    table.append(f"{'a checkpoint, ms':<34}{1e3 * runs[1]['checkpoint']:>14.1f}{1e3 * runs[2]['checkpoint']:>16.1f}")
    table.append(f"{'  in steps':<34}{runs[1]['checkpoint'] / runs[1]['step']:>14.2f}"
                 f"{runs[2]['checkpoint'] / runs[2]['step']:>16.2f}")  # fmt: skip
    table.append(f"{'  of ten minutes':<34}{shares[1]:>14.4%}{shares[2]:>16.4%}")
    table.append(f"{'  MB':<34}{runs[1]['bytes'] / 1e6:>14.1f}{runs[2]['bytes'] / 1e6:>16.1f}")
    assert max(shares.values()) < MOST


def launch(processes: int) -> dict[str, Any]:
    """Train in so many processes; the figures of the first."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
                   __file__, folder]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run(command, env=environment, capture_output=True, check=True)
        return json.loads(Path(folder, "figures.json").read_text())


def windows(count: int) -> TokenWindows:
    """Random windows, every position labelled."""
    generator = np.random.default_rng(0)
    ids = generator.integers(1000, 30_000, count * TOKENS).astype(np.int32)
    labels = generator.integers(0, len(LABELS), count * TOKENS)
    offsets = np.arange(count + 1) * TOKENS
    return TokenWindows(ids, labels, np.zeros_like(ids), offsets, np.arange(count, dtype=np.int32), pad_token_id=0)


def timed(owner: Any, name: str) -> list[float]:
    """The seconds that each call will take."""
    function: Callable[..., Any] = getattr(owner, name)
    seconds: list[float] = []

    def replacement(*arguments: Any) -> Any:
        started = time.perf_counter()
        result = function(*arguments)
        seconds.append(time.perf_counter() - started)
        return result

    setattr(owner, name, replacement)
    return seconds


def main(folder: Path) -> None:
    agreements = timed(CheckpointSchedule, "after_step")
    saves = timed(checkpoint_schedule, "save_checkpoint")
    every = max(2, STEPS // 4)
    config = RunConfig(
        epochs=1, batch_size=BATCH, target_modules=("qv",), bias="all", metric="loss", checkpoint_steps=every
    )
    with distributed() as world:
        model, data = build(config, LABELS), windows(BATCH * STEPS)
        state = fit(model, TokenClassification(LABELS), data, windows(2), config, world, folder)
        if world.is_main:
            without_save = [seconds for step, seconds in enumerate(agreements, start=1) if step % every]
            newest = folder / "checkpoints" / f"step-{state.step}"
            figures = {
                "step": state.seconds / state.step,
                "agreement": statistics.mean(without_save),
                "checkpoint": statistics.median(saves),
                "bytes": sum(path.stat().st_size for path in newest.iterdir()),
            }
            (folder / "figures.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
