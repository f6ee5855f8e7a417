"""Four adapters of one model, one after the other or side by side: `pytest benchmarks/test_study.py`.

`lora-core study` trains recipes as processes with a thread each, as many as there are cores. Against it stands the same
run after run with all cores: learning rates of LoRA on MiniLM-L6, texts of random words, batches of 16. Wall time from
the first start to the last end, tokens of training in that time, and the most memory of all processes together, of
what they share each its part (PSS). That side by side each run equals what it is alone is tested in
tests/trainers/series/test_study.py. LORA_BENCHMARK_SIZE=small trains fewer texts.
"""

import dataclasses
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from trainers.config import RunConfig
from trainers.run_folder import read_run
from trainers.series.run_process import RunProcess
from trainers.series.study import Study, run_study

pytestmark = [pytest.mark.timeout(1800)]

SMALL = os.environ.get("LORA_BENCHMARK_SIZE") == "small"
TEXTS = 64 if SMALL else 1500
ROUNDS = 1 if SMALL else 3
RATES = (2e-4, 5e-4, 1e-3, 2e-3)
CORES = len(os.sched_getaffinity(0))


class Figures(NamedTuple):
    """Of all runs together."""

    seconds: float
    tokens: float
    megabytes: float


@pytest.fixture
def study(tmp_path: Path) -> Study:
    generator = random.Random(0)
    words = ["the", "of", "cells", "protein", "report", "market", "shares", "team", "season", "game", "software"]
    rows = (
        f"{number % 4},{' '.join(generator.choices(words, k=generator.randint(15, 60)))}" for number in range(TEXTS)
    )
    data = tmp_path / "texts.csv"
    data.write_text("label,text\n" + "\n".join(rows))
    shared = RunConfig(data=str(data), task="text-classification", epochs=1, target_modules=("qv",), max_length=128)
    recipes = {f"rate-{rate:g}": dataclasses.replace(shared, learning_rate=rate) for rate in RATES}
    return Study(recipes, seeds=1, baseline=next(iter(recipes)))


def test_side_by_side(study, table, tmp_path):
    def one_after_the_other(folder: Path) -> None:
        for config in study.runs(folder):
            process = RunProcess(config, CORES)
            while process.status is None:
                time.sleep(0.05)
            assert process.failure is None

    def side_by_side(folder: Path) -> None:
        assert run_study(study, folder) == []

    ways = {"one after the other, all cores": one_after_the_other, "side by side, a core each": side_by_side}
    found: dict[str, list[Figures]] = {name: [] for name in ways}
    for number in range(ROUNDS):
        for name, way in ways.items():
            found[name].append(measured(way, study, tmp_path / f"{name}-{number}"))
    table.append(f"{'LoRA on MiniLM-L6, four learning rates':<40}{'seconds':>9}{'tokens/s':>10}{'MB, PSS':>9}")
    medians = {name: sorted(figures)[len(figures) // 2] for name, figures in found.items()}
    for name, figures in medians.items():
        table.append(f"{name:<40}{figures.seconds:>9.1f}{figures.tokens:>10,.0f}{figures.megabytes:>9,.0f}")
    one, other = medians.values()
    table.append(f"{'ratio':<40}{one.seconds / other.seconds:>9.2f}{other.tokens / one.tokens:>10.2f}"
                 f"{other.megabytes / one.megabytes:>9.2f}")  # fmt: skip


def measured(way: Callable[[Path], None], study: Study, folder: Path) -> Figures:
    """What it takes to make the runs of ``study`` in ``folder``."""
    most, started = [0.0], time.perf_counter()
    with watched(most):
        way(folder)
    seconds = time.perf_counter() - started
    results = [read_run(config.output_dir).result for config in study.runs(folder)]
    tokens = sum(result["tokens_per_second"] * result["seconds"] for result in results)
    return Figures(seconds, tokens / seconds, most[0] / 1e6)


@contextmanager
def watched(most: list[float]) -> Iterator[None]:
    """Keeps in ``most`` the largest number of bytes that this process's children held together."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            most[0] = max(most[0], sum(map(proportional_bytes, children(os.getpid()))))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def children(pid: int) -> list[int]:
    """A process's children, theirs, and so on."""
    try:
        lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it has ended
        return []
    found = [int(child) for text in lists for child in text.split()]
    return found + [other for child in found for other in children(child)]


def proportional_bytes(pid: int) -> int:
    """Bytes that a process holds, shared ones divided among those that share them; 0: it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return 1024 * int(re.findall(r"^Pss: +(\d+) kB", text, re.MULTILINE)[0])
