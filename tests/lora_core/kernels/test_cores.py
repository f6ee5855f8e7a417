"""Control groups as files in the layouts of versions 1 and 2, and a real one where there is the right to make it."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lora_core.export.session import usual_threads
from lora_core.kernels import cores

CPU_CONTROLLER = Path("/sys/fs/cgroup/cpu")


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Writes /proc/self/cgroup and the files below /sys/fs/cgroup, on a machine of 64 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(cores, "_OWN", tmp_path / "own")
    monkeypatch.setattr(cores, "_CONTROL_GROUPS", tmp_path / "groups")

    def write(own, files):
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 64),
        ("0::/\n", {}, 64),
        ("0::/a/b\n", {"cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "50000 50000\n"}, 1),
        ("0::/../other\n", {"cpu.max": "400000 100000\n"}, 4),
        (
            "3:cpuset:/\n2:cpu,cpuacct:/kubepods/pod1\n0::/\n",  # the path is the host's
            {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        ("2:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        (
            "4:memory:/x\n2:cpu:/x\n0::/\n",
            {"cpu/x/cpu.cfs_quota_us": "500000\n", "cpu/x/cpu.cfs_period_us": "100000\n", "memory/x/cpu.max": "1 1"},
            5,
        ),
    ],
)
def test_the_smallest_of_what_the_groups_give(groups, own, files, expected):
    groups(own, files)
    assert cores.usable_cores() == expected


def test_without_control_groups_it_is_the_affinity(groups):
    assert cores.usable_cores() == 64


def test_threads_are_lowered_once_and_it_is_said(groups, monkeypatch, caplog):
    caplog.set_level("INFO")
    groups("0::/\n", {"cpu.max": "200000 100000\n"})
    chosen = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 32)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert usual_threads() == 2
    cores.limit_threads()
    cores.limit_threads()
    assert chosen == [2]
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert [record.getMessage() for record in caplog.records] == [
        "computing with 2 threads: the control group gives this process the time of no more of the 64 cores "
        "(OMP_NUM_THREADS says otherwise)"
    ]


@pytest.mark.parametrize(("stated", "limit"), [("7", "200000 100000"), (None, "max 100000")])
def test_what_the_user_says_stands_and_no_limit_changes_nothing(groups, monkeypatch, stated, limit):
    groups("0::/\n", {"cpu.max": limit})
    monkeypatch.delenv("OMP_NUM_THREADS")
    if stated:
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
    before = torch.get_num_threads()
    cores.limit_threads()
    assert os.environ.get("OMP_NUM_THREADS") == stated
    assert torch.get_num_threads() == before


@pytest.fixture
def real_group():
    """A control group that is given the time of one core."""
    group = CPU_CONTROLLER / f"lora-core-tests-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text("100000")
    except OSError as error:
        pytest.skip(f"needs the right to make control groups of version 1: {error}")
    yield group
    with contextlib.suppress(OSError):
        group.rmdir()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_real_group_of_one_core(real_group):
    code = (
        f"import os, sys; open({str(real_group / 'cgroup.procs')!r}, 'w').write(str(os.getpid())); "
        "from trainers.cli import main, exit_on_user_error; exit_on_user_error(lambda: None); "
        "import torch; print(torch.get_num_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "1\n", done.stderr


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux")
def test_the_work_of_others_is_that_of_a_busy_process():
    """Others may be at work on this machine, too: only differences tell."""
    spin = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    with subprocess.Popen(spin, stdout=subprocess.PIPE) as busy:
        busy.stdout.readline()
        work = cores.OtherWork()
        time.sleep(2)
        found = work.cores()
        busy.kill()
    assert 0.3 < found < (os.cpu_count() or 1) + 0.1


def test_own_work_does_not_count(monkeypatch, tmp_path):
    monkeypatch.setattr(cores, "_STATISTICS", tmp_path / "stat")
    ticks = os.sysconf("SC_CLK_TCK")
    times = iter([100.0, 110.0])
    monkeypatch.setattr(cores.time, "monotonic", lambda: next(times))
    monkeypatch.setattr(os, "times", lambda: (0.0, 0.0, 0.0, 0.0, 0.0))
    (tmp_path / "stat").write_text(f"cpu  {1000 * ticks} 7 {200 * ticks} 9999 0 0 0 0 0 0\ncpu0 1 2 3\n")
    work = cores.OtherWork()
    monkeypatch.setattr(os, "times", lambda: (14.0, 1.0, 0.0, 0.0, 10.0))
    (tmp_path / "stat").write_text(f"cpu  {1020 * ticks} 999999 {205 * ticks} 9999 0 0 0 0 0 0\ncpu0 1 2 3\n")
    assert work.cores() == pytest.approx(1.0)
