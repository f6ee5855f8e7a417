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


@pytest.fixture(scope="module")
def publish(request: pytest.FixtureRequest) -> Callable[[list[str]], None]:
    """Prints the lines of a table past pytest's capture, and writes them to tables/FILE.txt under a line that says
    what was measured where; not for the small sizes of a trial."""
    capture: Any = request.config.pluginmanager.getplugin("capturemanager")
    lines: list[str] = []

    def write(text: list[str]) -> None:
        with capture.global_and_fixture_disabled():
            print("\n" + "\n".join(text))
        lines.extend([*text, ""])
        if os.environ.get("LORA_BENCHMARK_SIZE") != "small":
            TABLES.mkdir(exist_ok=True)
            content = "\n".join([provenance(), "", *lines]).rstrip() + "\n"
            (TABLES / f"{request.path.stem.removeprefix('test_')}.txt").write_text(content, encoding="utf-8")

    return write


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
