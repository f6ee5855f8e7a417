"""Processes that make one run and meet without torchrun, at a port of this machine."""

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

PORTS = range(15_000, 32_000)
"""Below those that the system gives to whoever asks for any: tests beside this one take those, also in the moment
between a look at whether a port is free and its use."""


def free_port():
    while True:
        port = random.SystemRandom().choice(PORTS)  # no test's seed leads two of them to one port
        with socket.socket() as free:
            try:
                free.bind(("", port))
            except OSError:
                continue
            return port


def place(processes):
    """Where so many processes meet, as torchrun would say it in their environment."""
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}


def run_ranks(*command, folders=(None, None), status=0, timeout=300):
    """Run a command of Python's as one process in each of the folders; what each wrote to standard error."""
    shared = {**os.environ, **place(len(folders)), "OMP_NUM_THREADS": "1"}
    shared["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank, folder in enumerate(folders)
    ]
    errors = [process.communicate(timeout=timeout)[1] for process in processes]
    assert [process.returncode for process in processes] == [status] * len(folders), "\n".join(errors)
    return errors
