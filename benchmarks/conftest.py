"""What the benchmarks share: the table of each file, printed and kept with the commit, the machine and the date."""

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

TABLES = Path(__file__).with_name("tables")
FINISHED = pytest.StashKey[set[str]]()
"""The tests of a file that ran to an end, however they ended."""


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Note each test that ran, or that its setup skipped or failed."""
    if call.when == "call" or (call.when == "setup" and call.excinfo is not None):
        file = item.getparent(pytest.Module)
        assert file is not None
        file.stash.setdefault(FINISHED, set()).add(item.nodeid)


@pytest.fixture(scope="module")
def publish(request: pytest.FixtureRequest) -> Iterator[Callable[[list[str]], None]]:
    """Prints the lines of a table past pytest's capture; at the end of the file they are written to tables/FILE.txt,
    under a line that says what was measured where. A part of the file's tests, or a run that stopped before its end,
    replaces no table, nor do the small sizes of a trial."""
    capture: Any = request.config.pluginmanager.getplugin("capturemanager")
    lines: list[str] = []

    def say(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{text}")

    def write(text: list[str]) -> None:
        say("\n".join(text))
        lines.extend([*text, ""])

    yield write
    if not lines or os.environ.get("LORA_BENCHMARK_SIZE") == "small":
        return
    file = request.node
    path = TABLES / f"{request.path.stem.removeprefix('test_')}.txt"
    missing = {item.nodeid for item in file.collect()} - file.stash.get(FINISHED, set())
    if missing:
        say(f"{path.name} is not written: {len(missing)} tests of {request.path.name} did not run; run the whole file")
        return
    TABLES.mkdir(exist_ok=True)
    path.write_text("\n".join([provenance(), "", *lines]).rstrip() + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def table(publish: Callable[[list[str]], None]) -> Iterator[list[str]]:
    """Lines that are published when all is measured."""
    lines: list[str] = []
    yield lines
    if lines:
        publish(lines)


def provenance() -> str:
    """Commit, date, processor, cores, threads and versions of a measurement."""
    commit = git("rev-parse", "--short", "HEAD")
    changed = " with changes" if git("status", "--porcelain", "--", "lora_core", "trainers") else ""
    names = (
        re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else []
    )
    cpu = names[0] if names else platform.processor()
    return (
        f"commit {commit}{changed}, {datetime.date.today()}, {cpu}, {os.cpu_count()} cores, "
        f"torch {torch.__version__} with {torch.get_num_threads()} threads, Python {platform.python_version()}"
    )


def git(*arguments: str) -> str:
    """What a git command prints; nothing outside a checkout."""
    done = subprocess.run(["git", *arguments], cwd=TABLES.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip()
