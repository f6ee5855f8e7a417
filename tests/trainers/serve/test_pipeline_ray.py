import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import trainers

pytest.importorskip("ray")

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "predict_ray.py"


def workers(mark):
    """Processes of Ray that hold the model, of the cluster whose driver has ``mark`` in its environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command, environment = ((entry / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:
            continue
        if b"MapWorker" in command and mark.encode() in environment:
            found.append(int(entry.name))
    return found


def test_every_row_has_its_line_in_order_though_a_worker_is_killed(finished, tmp_path):
    rows = [{"id": number, "text": f"the il2 gene binds nfkb in cells {number % 7}"} for number in range(400)]
    for part in range(2):
        lines = [json.dumps(row) + "\n" for row in rows[200 * part : 200 * (part + 1)]]
        (tmp_path / f"part-{part}.jsonl").write_text("".join(lines))
    output, mark = tmp_path / "found.jsonl", f"MARK={tmp_path}"
    command = [sys.executable, EXAMPLE, finished["lora"], tmp_path / "part-*.jsonl", "--output", output]
    environment = {**os.environ, "MARK": str(tmp_path), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    process = subprocess.Popen(
        [*map(str, command), "--batch-size", "10"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    killed = []
    while process.poll() is None and not killed:
        killed = workers(mark)[:1]
        time.sleep(0.05)
    assert killed, process.communicate()[0].decode()[-2000:]
    os.kill(killed[0], signal.SIGKILL)
    said = process.communicate(timeout=240)[0].decode()
    assert process.returncode == 0, said[-2000:]
    assert f"400 rows in {output}" in said

    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in found] == list(range(400))
    pipeline = trainers.pipeline(model=finished["lora"])
    expected = pipeline([row["text"] for row in rows[:7]])
    for row in found:
        wanted = expected[row["id"] % 7]
        assert [entity["word"] for entity in row["predicted"]] == [entity["word"] for entity in wanted]


def test_a_column_that_is_not_there_is_named(finished, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"body": "il2"}\n')
    command = [sys.executable, EXAMPLE, finished["lora"], tmp_path / "in.txt", "--output", tmp_path / "out.jsonl"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 2
    assert "the files end in .txt: expected one of .jsonl" in done.stderr
