"""A run in a process of its own, with the settings and a log beside its folder."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli
import torch

from lora_core.files import make_folder, write_text
from lora_core.kernels.cores import usable_cores
from trainers.config import RunConfig
from trainers.processes import interrupt
from trainers.processes.parent import end_with_parent
from trainers.run_folder import RunFolder
from trainers.training.memory import free_bytes

logger = logging.getLogger("trainers")

MEMORY_OF_A_RUN = 3 * 10**9
"""Bytes that must be free for each run at a time: MiniLM-L6 in full takes half of it."""


class RunProcess:
    """Starts at once, and continues the run if it was begun before.

    Beside the run folder NAME lie NAME.toml, the settings as --config reads them, and NAME.log, what the run prints.
    """

    def __init__(self, config: RunConfig, threads: int) -> None:
        """
        Args:
            threads: of the process.
        """
        self.config = config
        folder = make_folder(config.output_dir.parent)
        settings = write_text(folder / f"{config.output_dir.name}.toml", config.to_toml())
        self.log = folder / f"{config.output_dir.name}.log"
        command = [sys.executable, "-m", "trainers", "train", "--config", str(settings)]
        command += ["--output-dir", str(config.output_dir), "--resume", "auto"]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=end_with_parent,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                start_new_session=True,  # Ctrl-C is this process's to pass on
            )

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll()

    @property
    def failure(self) -> str | None:
        """What went wrong, in one line; None where it ended well."""
        if not self.status:
            return None
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        said = lines[-1][:300] if lines else "it said nothing"
        return f"{self.config.output_dir}: {said} (status {self.status}, {self.log})"

    def epochs(self) -> list[dict[str, Any]]:
        """The `epoch` events so far."""
        return RunFolder(self.config.output_dir).epochs()

    @property
    def most_epochs(self) -> int:
        """Epochs that it trains, if nothing ends it before; once it has begun to train."""
        return RunFolder(self.config.output_dir).read_settings()["epochs"]

    def stop(self) -> None:
        """Ask it to end, with a checkpoint, and wait until it has."""
        if self.status is None:
            self._process.terminate()
        self._process.wait()


@contextmanager
def stopped_at_the_end(running: Iterable[RunProcess]) -> Iterator[None]:
    """Ends what still runs when the block is left, as it is by a signal."""
    try:
        with interrupt.raising():
            yield
    finally:
        for process in list(running):
            process.stop()


def usual_processes(runs: int) -> int:
    """How many of ``runs`` go at a time where nobody says it: one where there is a GPU, else one for each core, as long
    as there are `MEMORY_OF_A_RUN` for each.

    Two threads did 1.7 times the work of one with MiniLM's batches, so that runs of one thread each lose less.
    """
    if torch.cuda.is_available():
        return 1
    wanted = min(runs, usable_cores())
    free = free_bytes(torch.device("cpu"))
    fit = max(1, free // MEMORY_OF_A_RUN)
    if fit < wanted:
        logger.warning(
            "%d run%s at a time instead of %d: %.1f GB of memory are free, and each is given %.0f (--processes says "
            "otherwise)",
            fit, "" if fit == 1 else "s", wanted, free / 1e9, MEMORY_OF_A_RUN / 1e9,
        )  # fmt: skip
    return max(1, min(wanted, fit))


def threads_for(processes: int, threads: int | None) -> int:
    """Threads of each of so many processes: those that are given, or the cores shared out.

    Raises:
        ValueError: there are no processes.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, but it is {processes}.")
    return threads or max(1, usable_cores() // processes)


def read_plan(path: Path, kind: str) -> dict[str, Any]:
    """The content of a TOML file that says what runs to make.

    Args:
        kind: what it is, for messages: "a study is a TOML file of recipes".

    Raises:
        ValueError: the file is not there, or is not TOML.
    """
    try:
        return tomli.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist: {kind}.") from error
    except (tomli.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}.") from error


def selecting_score(config: RunConfig, scores: dict[str, Any]) -> float:
    """The validation score by which a run selects its best epoch."""
    metric = config.metric if config.metric in scores else "pearson"  # a regression's, in the place of f1
    return scores[metric]
