"""Two gloo processes against one, LoRA and full fine-tuning: `pytest benchmarks/test_ddp.py`.

Both train MiniLM-L6 through `trainers.loop.fit` on random windows of JNLPBA's lengths, in the same global batches of
16, one thread a process, so that two processes have twice the machine of one. Scaling efficiency is the useful tokens
a second of two processes over twice those of one. A hook of DistributedDataParallel counts the bytes that it hands to
all-reduce; they must be those of the trained parameters' gradients. LORA_BENCHMARK_SIZE=small trains fewer steps.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

import lora_core
from trainers.config import RunConfig
from trainers.data.tokens.windows import IGNORED_LABEL, TokenWindows
from trainers.loop import fit
from trainers.model import build
from trainers.processes.distributed import World, distributed
from trainers.tasks.token import TokenClassification

pytestmark = [pytest.mark.timeout(900)]

STEPS = 2 if os.environ.get("LORA_BENCHMARK_SIZE") == "small" else 8
ROUNDS = 3
BATCH = 16
LABELS = ("O", *(f"{prefix}-{kind}" for kind in ("DNA", "RNA", "cell_line", "cell_type", "protein") for prefix in "BI"))
METHODS = ("lora", "full")
FLOAT_BYTES = 4


@dataclass(frozen=True)
class CountingWorld(World):
    """A world that notes the size of every exchange of gradients."""

    counted: list[int] = field(default_factory=list)
    """Bytes of each bucket."""

    def wrap(self, model: nn.Module) -> nn.Module:
        parallel = super().wrap(model)
        if isinstance(parallel, nn.parallel.DistributedDataParallel):
            parallel.register_comm_hook(None, self._count)
        return parallel

    def _count(self, _, bucket) -> torch.futures.Future[torch.Tensor]:
        assert dist.group.WORLD is not None, "torchrun started this process"
        self.counted.append(bucket.buffer().numel() * bucket.buffer().element_size())
        return allreduce_hook(dist.group.WORLD, bucket)


@pytest.fixture(scope="module")
def runs() -> dict[int, list[dict[str, dict[str, float]]]]:
    """Figures of each round by method, for one and for two processes, measured in turn."""
    found: dict[int, list[Any]] = {1: [], 2: []}
    for _ in range(ROUNDS):
        for processes, rounds in found.items():
            rounds.append(launch(processes))
    return found


def test_bytes_that_are_exchanged_are_those_of_the_trained_gradients(runs, table):
    table.append(f"{'a step':<12}{'trained':>14}{'bytes exchanged':>18}{'all-reduce alone, ms':>22}")
    for method in METHODS:
        figures = [run[method] for run in runs[2]]
        for run in figures:
            assert run["bytes"] == FLOAT_BYTES * run["trainable"]
        milliseconds = min(run["all_reduce"] for run in figures) * 1e3
        table.append(f"{method:<12}{figures[0]['trainable']:>14,.0f}{figures[0]['bytes']:>18,.0f}{milliseconds:>22.2f}")
    full, lora = (runs[2][0][method]["bytes"] for method in ("full", "lora"))
    table.append(f"LoRA exchanges 1/{full / lora:.0f} of what full fine-tuning does")


def test_scaling(benchmark, runs, table):
    table.append(f"\n{'tokens a second':<17}{'one process':>20}{'two processes':>20}{'efficiency':>12}")
    for method in METHODS:
        one, two = ([run[method]["tokens_per_second"] for run in runs[processes]] for processes in (1, 2))
        benchmark.extra_info[method] = efficiency = max(two) / max(one) / 2
        table.append(f"{method:<17}{spread(one):>20}{spread(two):>20}{efficiency:>12.0%}")
    benchmark.pedantic(launch, (2,), rounds=1)


def spread(values: list[float]) -> str:
    return f"{min(values):.0f} to {max(values):.0f}"


def launch(processes: int) -> dict[str, dict[str, float]]:
    """Train with both methods in so many processes; the figures of the first."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
                   __file__, folder]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run(command, env=environment, capture_output=True, check=True)
        return json.loads(Path(folder, "figures.json").read_text())


def train(method: str, world: World, folder: Path) -> dict[str, float]:
    config = RunConfig(method=method, epochs=1, batch_size=BATCH, target_modules=("qv",), bias="all", metric="loss")  # type: ignore[arg-type]
    model = build(config, LABELS)
    counting = CountingWorld(world.rank, world.size, world.device)
    state = fit(model, TokenClassification(LABELS), windows(BATCH * STEPS), windows(2), config, counting, folder)
    trainable, _ = lora_core.parameter_counts(model)
    return {
        "tokens_per_second": state.tokens / state.seconds,
        "bytes": sum(counting.counted) / state.step,
        "trainable": trainable,
        "all_reduce": all_reduce_seconds(trainable) if world.size > 1 else 0.0,
    }


def windows(count: int) -> TokenWindows:
    """Random windows with the lengths of JNLPBA's sentences, every third position labelled."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.gamma(3.5, 11, count).astype(int), 5, 200)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labels = np.full(offsets[-1], IGNORED_LABEL)
    labels[::3] = generator.integers(0, len(LABELS), len(labels[::3]))
    word_ids = np.where(labels == IGNORED_LABEL, -1, 0).astype(np.int32)
    input_ids = generator.integers(1000, 30_000, offsets[-1]).astype(np.int32)
    return TokenWindows(input_ids, labels, word_ids, offsets, np.arange(count, dtype=np.int32), pad_token_id=0)


def all_reduce_seconds(elements: int, repeats: int = 5) -> float:
    """Best time of one exchange of so many floats."""
    tensor = torch.zeros(elements)
    times = []
    for _ in range(repeats):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(tensor)
        times.append(time.perf_counter() - start)
    return min(times)


def main(folder: Path) -> None:
    with distributed() as world:
        figures = {method: train(method, world, folder / method) for method in METHODS}
        if world.is_main:
            (folder / "figures.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
