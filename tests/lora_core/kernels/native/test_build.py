"""Building the C++ operators where something is missing, broken, killed or done twice: real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_core.kernels.native import build

ROOT = Path(__file__).resolve().parents[4]
CODE = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)
import torch
from lora_core.kernels.native.build import ops
assert ops() is ops()
print("found" if ops() is not None else "none")
if ops() is not None:
    q, scale = ops().quantize_rows(torch.tensor([[127.0, -3.0]]))
    assert q.tolist() == [[255, 125]]
"""


def start(cache, **environment):
    known = {**os.environ, "PYTHONPATH": str(ROOT), "TORCH_EXTENSIONS_DIR": str(cache), **environment}
    known = {name: value for name, value in known.items() if value is not None}
    return subprocess.Popen([sys.executable, "-W", "error", "-c", CODE], env=known, stdout=subprocess.PIPE, text=True)


def lines(process):
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    return out.splitlines()


@pytest.fixture
def compiler(tmp_path):
    """A compiler that takes a second, and whose library is the one that this machine has built already."""
    if build.ops() is None:
        pytest.skip("no C++ kernels here: no compiler, or LORA_CORE_NATIVE=0")
    script = tmp_path / "compiler"
    script.write_text(
        f"""#!{sys.executable}
import shutil, sys, time
from pathlib import Path
if "-o" in sys.argv:
    target = Path(sys.argv[sys.argv.index("-o") + 1])
    target.touch()
    with open({str(tmp_path / "calls")!r}, "a") as calls:
        print(target.name, file=calls)
    time.sleep(1)
    if target.suffix == ".so":
        shutil.copyfile({str(build._library())!r}, target)
"""
    )
    script.chmod(0o755)
    return script


@pytest.mark.fault("the compiler fails", "torch's operators, one line says so", "none")
def test_a_compiler_that_fails(tmp_path):
    said, answer = lines(start(tmp_path, CXX="false"))[-2:]
    assert answer == "none"
    assert said.startswith("WARNING The C++ kernels cannot be used (building them failed: ")
    assert "LORA_CORE_NATIVE=0" in said
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_no_compiler_and_no_ninja(tmp_path):
    environments = {"CXX": "/no/such/compiler"}, {"PATH": str(tmp_path)}
    for process in [start(tmp_path, **environment) for environment in environments]:
        said, answer = lines(process)[-2:]
        assert (answer, said.split()[0]) == ("none", "WARNING")


@pytest.mark.fault("the cache cannot be written", "torch's operators, one line says so", "none")
def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    said, answer = lines(start(tmp_path / "file" / "below"))
    assert answer == "none"
    assert "WARNING" in said
    assert str(tmp_path / "file") in said


def test_the_switch_is_silent(tmp_path):
    assert lines(start(tmp_path, LORA_CORE_NATIVE="0")) == ["none"]
    assert not list(tmp_path.iterdir())


def test_processes_that_start_together_build_once(tmp_path, compiler):
    cache = tmp_path / "cache"
    together = [start(cache, CXX=str(compiler)) for _ in range(2)]
    assert [lines(process)[-1] for process in together] == ["found"] * 2
    calls = (tmp_path / "calls").read_text().split()
    assert sorted(Path(name).suffix for name in calls) == [".o", ".o", ".so"]
    assert sorted(path.suffix for path in cache.iterdir()) == [".lock", ".so"]


@pytest.mark.fault("killed while it builds the C++ kernels", "the next process builds them", "none")
def test_a_process_that_is_killed_while_it_builds(tmp_path, compiler):
    cache = tmp_path / "cache"
    process = start(cache, CXX=str(compiler))
    while not (tmp_path / "calls").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(cache.glob("*.build/lock")), "torch's own lock file is left behind"
    assert lines(start(cache, CXX=str(compiler)))[-1] == "found"


def test_a_library_of_another_kind_of_cpu_is_not_taken(monkeypatch):
    own = build._fingerprint()
    monkeypatch.setattr(build.Path, "read_text", lambda path: "flags : sse2")
    assert build._fingerprint() != own
