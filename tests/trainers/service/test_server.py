"""The processes of a service: signals under load, workers that die, starts that fail."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainers.serve import pipeline
from trainers.service.server import _listening, serve
from trainers.service.settings import ServiceSettings

TEXTS = ["nfkb binds the promoter of il2 in the cells"] * 4


@pytest.mark.fault("SIGTERM to a service under load", "every request taken is answered; exit 0", "nothing")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stopped_service_answers_what_it_took(start, exported, workers):
    service = start(f"ner={exported['ner'] / 'model.onnx'}", "--threads", 1, "--workers", workers)
    service.wait_until_ready(workers)
    load = service.load(8)
    service.wait_until(lambda: load.answers.count(200) > 100)
    assert service.stop() == 0
    load.end()
    assert set(load.answers) <= {200, 503}
    assert load.answers.count(200) > 100
    assert load.unanswered == []
    assert "Traceback" not in service.log
    with pytest.raises(ConnectionRefusedError):
        service.get("/healthz")


@pytest.mark.fault("SIGHUP or SIGUSR1 to a service", "stops as by SIGTERM", "nothing")
@pytest.mark.parametrize(("sig", "workers"), [(signal.SIGHUP, 2), (signal.SIGUSR1, 1)])
def test_other_signals_stop_it_as_well(start, exported, sig, workers):
    service = start(f"ner={exported['ner'] / 'model.onnx'}", "--threads", 1, "--workers", workers)
    service.wait_until_ready(workers)
    load = service.load(4)
    service.wait_until(lambda: load.answers.count(200) > 20)
    assert service.stop(sig) == 0
    load.end()
    assert load.unanswered == []
    assert "Traceback" not in service.log


@pytest.mark.fault("SIGKILL to a service's first process", "the others stop and free the port", "nothing")
def test_without_a_supervisor_the_processes_stop(start, exported):
    service = start(f"ner={exported['ner'] / 'model.onnx'}", "--threads", 1, "--workers", 2).wait_until_ready(2)
    service.stop(signal.SIGKILL)
    service.wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in service.workers), 30)
    with pytest.raises(ConnectionRefusedError):
        service.get("/healthz")


def test_processes_that_serve_older_files_than_another_are_started_anew(start, exported, tmp_path):
    path = tmp_path / "model.onnx"
    shutil.copy(exported["ner"] / "model.onnx", path)
    service = start(f"ner={path}", "--threads", 1, "--workers", 2).wait_until_ready(2)
    shutil.copy(path, tmp_path / "new.onnx")
    (tmp_path / "new.onnx").rename(path)
    os.kill(service.workers[0], signal.SIGKILL)
    service.wait_until(lambda: len(service.workers) == 4)
    assert "files that were replaced since the others started" in service.log
    assert service.post("/v1/models/ner:predict", {"inputs": TEXTS}).status == 200
    assert service.stop() == 0


def test_a_connection_without_a_request_is_closed(start, exported):
    service = start(f"ner={exported['ner'] / 'model.onnx'}", "--threads", 1, "--timeout", 1).wait_until_ready()
    for sent in (b"", b"POST /v1/models/ner:predict HTTP/1.1\r\nHost: x\r\n"):
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as waiting:
            waiting.sendall(sent)
            assert waiting.recv(1) == b""
    with contextlib.closing(service.connect()) as kept:  # a second head on a connection that is kept open, too
        kept.request("GET", "/healthz")
        assert kept.getresponse().read()
        kept.sock.sendall(b"GET /healthz HTTP/1.1\r\n")
        kept.sock.settimeout(20)
        assert kept.sock.recv(1) == b""
    assert service.request("HEAD", "/healthz").status == service.request("HEAD", "/readyz").status == 200
    assert service.stop() == 0


def test_a_stopped_service_ends_within_its_grace(start, exported):
    service = start(f"ner={exported['ner'] / 'model.onnx'}", "--threads", 1, "--max-tokens", 24, "--grace", 2)
    service.wait_until_ready()
    endless = {"inputs": ["nfkb binds the promoter of il2 " * 1200] * 200}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(service.post, "/v1/models/ner:predict", endless)
        service.wait_until(lambda: service.figures()["lora_core_queue_inputs"] > 0)
        begin = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - begin < 6
        answer = waiting.result(10)
    assert answer.status == 503
    assert "being stopped" in answer.json["error"]


@pytest.mark.fault("SIGKILL to one of two processes of a service", "another takes its place", "requests in it")
def test_a_killed_process_is_replaced(start, exported, base):
    service = start(
        f"ner={exported['ner'] / 'model.onnx'}", f"base={base / 'base.onnx'}", "--threads", 1, "--workers", 2
    )
    service.wait_until_ready(2)
    bearer = {"Authorization": "Bearer a token of the tests", "Content-Type": "application/json"}
    body = f'{{"path": "{base / "a.onnx_adapter"}"}}'
    assert service.request("PUT", "/v1/models/base/adapters/a", body, bearer).status == 200
    victim = service.workers[0]
    load = service.load(4)
    service.wait_until(lambda: load.answers.count(200) > 50)
    os.kill(victim, signal.SIGKILL)
    service.wait_until(lambda: len(service.workers) == 3)
    before = len(load.answers)
    service.wait_until(lambda: len(load.answers) > before + 50)
    load.end()
    assert set(load.answers) == {200}
    assert len(load.unanswered) <= 4  # those that the dead process had taken
    assert f"process {victim} ended with status -9" in service.log
    # Every process has the adapter, the new one too; the figures are those of all.
    os.kill(service.workers[1], signal.SIGSTOP)
    try:
        assert service.post("/v1/models/base+a:predict", {"inputs": TEXTS}).status == 200
    finally:
        os.kill(service.workers[1], signal.SIGCONT)
    for _ in range(20):
        assert service.post("/v1/models/base+a:predict", {"inputs": TEXTS}).status == 200
    assert service.figures()["lora_core_requests_total"] >= len(load.answers)
    assert service.stop(signal.SIGINT) == 0


@pytest.mark.fault("a model's file is gone when a process dies", "the other processes go on", "requests in it")
def test_a_process_that_cannot_be_replaced_does_not_end_the_others(start, exported, tmp_path):
    path = tmp_path / "model.onnx"
    shutil.copy(exported["ner"] / "model.onnx", path)
    service = start(f"ner={path}", "--threads", 1, "--workers", 2).wait_until_ready(2)
    path.rename(tmp_path / "away.onnx")
    os.kill(service.workers[0], signal.SIGKILL)
    service.wait_until(lambda: "ended with status 2; another takes its place in 1 s" in service.log)
    assert service.post("/v1/models/ner:predict", {"inputs": TEXTS}).status == 200
    (tmp_path / "away.onnx").rename(path)
    service.wait_until(lambda: len(service.workers) == 3)
    assert service.stop() == 0


def test_processes_map_the_weights_of_one_file(start, exported):
    path = exported["ner"] / "model.onnx"
    service = start(f"ner={path}", "--threads", 1, "--workers", 2).wait_until_ready(2)
    mapped = []
    for process in service.workers:
        lines = Path(f"/proc/{process}/maps").read_text().splitlines()
        mapped.append({line.split()[4] for line in lines if line.endswith("/weights")})  # inodes
    assert mapped[0] == mapped[1]
    assert len(mapped[0]) == 1
    assert service.predict("ner", TEXTS) == pipeline(None, path)(TEXTS)
    assert service.stop() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_that_is_not_there_ends_the_start_with_a_line(start, tmp_path, workers):
    service = start(tmp_path / "model.onnx", "--workers", workers)
    assert service.process.wait(200) == 2
    errors = [line for line in service.log.splitlines() if line.startswith("error: ")]
    assert errors
    assert all("does not exist" in line for line in errors)
    assert "Traceback" not in service.log


def test_answers_are_not_held_back_by_the_network():
    listening = _listening(ServiceSettings(("x",), port=0))
    with listening as listener, socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_that_is_taken_ends_the_start_with_a_line(exported):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=rf"cannot listen on 127.0.0.1 port {port} .*give another --port"):
            serve(ServiceSettings((str(exported["ner"]),), port=port))


@pytest.mark.parametrize(
    ("given", "why"), [("--port=70000", "at most 65535"), ("--host=no.such.host.invalid", "no address of this machine")]
)
def test_an_address_that_cannot_be_is_told_in_a_line(exported, given, why):
    command = [sys.executable, "-m", "trainers", "serve", str(exported["ner"] / "model.onnx"), given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert why in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_the_unit(tmp_path):
    unit = Path(__file__).resolve().parents[3] / "examples" / "deploy" / "lora-core-serve.service"
    path = tmp_path / unit.name
    path.write_text(unit.read_text().replace("/opt/serve/bin/lora-core", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=200)
    assert [line for line in done.stderr.splitlines() if unit.name in line] == []
