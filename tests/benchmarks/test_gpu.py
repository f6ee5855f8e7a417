"""benchmarks/gpu.sh from end to end on the CPU, and what it does when its parts fail."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("machine", "CUDA tests", "MiniLM-L6, LoRA, bf16, ours", "ViT-base, LoRA, fp16, peers", "unpadded", "ONNX")


@pytest.fixture(scope="module")
def gpu():
    """benchmarks/gpu.py as a module."""
    spec = importlib.util.spec_from_file_location("gpu", ROOT / "benchmarks" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu"]


def test_from_end_to_end_on_the_cpu(tmp_path):
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "flash_attn.py").write_text("")  # found there, and of no use on a CPU
    command = [ROOT / "benchmarks" / "gpu.sh", "--device", "cpu", "--out", tmp_path, "--seconds", "280"]
    environment = {**os.environ, "PYTHON": sys.executable, "GPU_PYTHONPATH": str(packages)}
    done = subprocess.run([*command, "--only", *PARTS], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    rows = {row["name"]: row for row in report["parts"]}
    assert len(rows) == 7
    assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(rows, "ok"), done.stdout
    assert set(rows["machine"]["product_rates"]) == {"fp32", "bf16", "fp16"}
    assert rows["CUDA tests"]["passed"] > 0
    assert rows["CUDA tests"]["failed"] == 0
    assert "not installed" in rows["BERT-base, LoRA, bf16, peers, unpadded"]["skipped"]
    trained = [row for row in rows.values() if row["measure"] == "training" and "skipped" not in row]
    assert {(row["size"], row["ours"], row.get("compile", False)) for row in trained} == {
        ("MiniLM-L6", True, False),
        ("MiniLM-L6", True, True),
        ("ViT-base", False, False),
    }
    assert all(row["rate"] > 0 and row["operations"] > 0 for row in trained)
    table = (tmp_path / "gpu.txt").read_text()
    assert all(row["name"] in table for row in trained)
    assert table.strip() in done.stdout


@pytest.mark.parametrize(
    ("code", "status", "found"),
    [
        ("print('noise'); print('{\"rate\": 3}')", "ok", {"rate": 3}),
        ("import os, signal; print('{\"rate\": 3}', flush=True); os.kill(os.getpid(), signal.SIGSEGV)",
         f"failed with status -{signal.SIGSEGV.value}", {"rate": 3}),
        ("raise MemoryError('no room')", "failed with status 1", {}),
        ("print('no result')", "failed: it printed no result", {}),
        ("", "failed: it printed no result", {}),
    ],
)  # fmt: skip
def test_how_a_part_ends(gpu, code, status, found):
    row = gpu.run([sys.executable, "-c", code], 60)
    assert row["status"] == status
    assert {name: row[name] for name in found} == found
    assert ("no room" in row.get("errors", "")) is ("no room" in code)


def test_a_part_that_hangs_is_ended_with_all_that_it_started(gpu, tmp_path):
    code = (
        "import subprocess, sys, time; from pathlib import Path; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid)); time.sleep(60)"
    )
    started = time.monotonic()
    row = gpu.run([sys.executable, "-c", code], 5)
    assert row["status"] == "took more than 5 s"
    assert time.monotonic() - started < 20
    child = Path("/proc") / (tmp_path / "pid").read_text()
    until = time.monotonic() + 10
    while child.exists() and "\nState:\tZ" not in (child / "status").read_text() and time.monotonic() < until:
        time.sleep(0.05)
    assert not child.exists() or "\nState:\tZ" in (child / "status").read_text()


def test_what_is_known_is_kept_after_every_part(gpu, tmp_path, monkeypatch, capsys):
    """One part fails, one finds that no time is left, and the table has the ratio to the peer."""
    seen, clock = [], [0.0]
    results = iter([
        {"status": "ok", "machine": "a GPU", "product_rates": {"bf16": 1e12}},
        {"status": "failed with status 1", "errors": "out of memory"},
        {"status": "ok", "rate": 300.0, "operations": 5e11, "peak_bytes": 2e9, "padding": 0.25},
        {"status": "ok", "rate": 100.0, "operations": 2e11, "peak_bytes": 4e9, "padding": 0.25},
    ])  # fmt: skip

    def run(command, limit):
        if (tmp_path / "gpu.json").is_file():
            seen.append(len(json.loads((tmp_path / "gpu.json").read_text())["parts"]))
        clock[0] += 25
        return next(results)

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])
    only = ["machine", "CUDA tests", "BERT-base, LoRA, bf16"]
    assert gpu.main(["--out", str(tmp_path), "--seconds", "100", "--only", *only]) == 0
    assert seen == [1, 2, 3]
    rows = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert [row["status"] for row in rows[:4]] == ["ok", "failed with status 1", "ok", "ok"]
    assert {row["status"] for row in rows[4:]} == {"no time was left"}
    table = (tmp_path / "gpu.txt").read_text()
    assert "a GPU" in table
    (ours,) = (line for line in table.splitlines() if line.startswith("BERT-base, LoRA, bf16, ours "))
    assert ours.split()[4:] == ["300", "3.00", "50%", "2,000", "25%"]
    assert "CUDA tests: failed with status 1" in table
    assert "no time was left" in table
    assert capsys.readouterr().out


def test_the_most_worthy_parts_fit_in_nine_minutes_and_names_differ(gpu):
    assert len({part.name for part in gpu.PARTS}) == len(gpu.PARTS)
    wanted = {"machine", "CUDA tests", "BERT-base, LoRA, bf16, ours", "BERT-base, LoRA, bf16, peers"}
    limits = 0
    for part in gpu.PARTS:
        wanted.discard(part.name)
        limits += part.seconds
        if not wanted:
            break
    assert limits < 530, "even if all of them take as long as they may"


def test_an_unknown_part_lists_the_known(gpu, capsys, tmp_path):
    with pytest.raises(SystemExit):
        gpu.main(["--only", "nothing", "--out", str(tmp_path)])
    assert "BERT-base, LoRA, bf16, ours;" in capsys.readouterr().err
