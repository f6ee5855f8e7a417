"""One run, one folder, with real processes."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from trainers.processes.run_lock import NAME, locked

HOLD = """
import os, sys, time
from pathlib import Path
from trainers.processes.run_lock import locked
with locked(Path(sys.argv[1])):
    if "fork" not in sys.argv or not os.fork():
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold():
    """Factory: a process that holds the lock of a folder, and the number of its child."""
    started = []

    def hold(folder, *more):
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, folder, *more], stdout=subprocess.PIPE, text=True, env=env
        )
        started.append(process)
        return process, int(process.stdout.readline())

    yield hold
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def free(folder):
    with locked(folder):
        return True


@pytest.mark.fault("a second run in the folder of a live one", "refused; names process, host and start", "none")
def test_a_live_process_keeps_others_out_until_it_dies(hold, tmp_path):
    process, _ = hold(tmp_path / "run")
    expected = rf"in use by process {process.pid} on host {socket.gethostname()}, started \d{{4}}-.*--output-dir"
    with pytest.raises(ValueError, match=expected), locked(tmp_path / "run"):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "run" / NAME).exists()
    assert free(tmp_path / "run")


def test_a_forked_child_does_not_keep_the_lock_of_a_dead_process(hold, tmp_path):
    process, child = hold(tmp_path / "run", "fork")
    process.kill()
    process.wait()
    try:
        os.kill(child, 0)
        assert free(tmp_path / "run")
    finally:
        os.kill(child, signal.SIGKILL)


def test_it_is_held_once_in_a_process_and_free_afterwards(tmp_path):
    for _ in range(2):
        with locked(tmp_path), pytest.raises(ValueError, match=f"process {os.getpid()} on"), locked(tmp_path):
            pass
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    assert free(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_folders_are_made_for_it_and_taken_away_when_nothing_came_into_them(tmp_path):
    assert free(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "other").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["other"]


def test_what_another_wrote_into_the_file_is_no_obstacle(tmp_path):
    (tmp_path / NAME).write_text("[1")
    with locked(tmp_path):
        pass
    descriptor = os.open(tmp_path / NAME, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="in use by another process"), locked(tmp_path):
            pass
    finally:
        os.close(descriptor)


def test_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("text")
    (tmp_path / NAME).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=NAME), locked(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "text"


@pytest.mark.fault("a file system without locks", "a warning, once; the run goes on", "none")
def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path):
        (tmp_path / "file").touch()
    assert [record.getMessage() for record in caplog.records] == [
        f"The file system of {tmp_path} has no locks (Operation not supported): see to it that no second run uses the "
        "folder."
    ]
