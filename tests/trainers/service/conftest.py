"""Real processes of `lora-core serve` on loopback, over tiny models."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import lora_core
from lora_core.export import export_onnx_base, save_onnx_adapter
from trainers.serve.export import export_run
from trainers.service.settings import TOKEN_VARIABLE

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "a token of the tests"
LOAD = ["nfkb binds the promoter of il2 in the cells"] * 4


@dataclass
class Answer:
    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Load:
    """Clients that ask one request after another, each on a connection of its own, until told to stop."""

    def __init__(self, service, clients):
        self.service = service
        self.stopped = threading.Event()
        self.answers = []
        self.unanswered = []
        self.pool = ThreadPoolExecutor(clients)
        self.clients = [self.pool.submit(self._ask) for _ in range(clients)]

    def _ask(self):
        while not self.stopped.is_set():
            try:
                answer = self.service.post("/v1/models/ner:predict", {"inputs": LOAD})
                self.answers.append(answer.status)
                time.sleep(float(answer.headers.get("retry-after", 0)))
            except ConnectionRefusedError:  # the service is gone, and took nothing
                return
            except (OSError, http.client.IncompleteRead) as error:  # the second: killed between its head and its body
                self.unanswered.append(repr(error))

    def end(self):
        self.stopped.set()
        for client in self.clients:
            client.result(30)
        self.pool.shutdown()


class Running:
    """A service in a process of its own."""

    def __init__(self, folder, *arguments, first_on_path=""):
        self.log_path = folder / "service.log"
        places = os.pathsep.join(filter(None, [str(first_on_path), str(ROOT)]))
        environment = {**os.environ, "PYTHONPATH": places, TOKEN_VARIABLE: TOKEN}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "trainers", "serve", *map(str, arguments), "--port", "0"],
                stdout=log,
                stderr=log,
                cwd=folder,
                env=environment,
            )
        self.port = None

    @property
    def log(self):
        return self.log_path.read_text()

    @property
    def workers(self):
        """Process ids that the log says answer."""
        return [int(number) for number in re.findall(r"in process (\d+)", self.log)]

    def wait_until_ready(self, workers=1, seconds=60):
        until = time.monotonic() + seconds
        while len(self.workers) < workers:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < until, self.log
            time.sleep(0.05)
        self.port = int(re.findall(r"at http://127.0.0.1:(\d+)", self.log)[0])
        return self

    def load(self, clients):
        """Clients that ask the model ner until they are told to stop."""
        return Load(self, clients)

    def wait_until(self, true, seconds=60):
        until = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < until, self.log
            time.sleep(0.05)

    def connect(self, timeout=30):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def request(self, method, path, body=None, headers=None, timeout=30):
        connection = self.connect(timeout)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was sent
                connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def get(self, path):
        return self.request("GET", path)

    def post(self, path, value, timeout=30, **headers):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.request("POST", path, body, {"Content-Type": "application/json", **headers}, timeout)

    def predict(self, model, inputs, **options):
        answer = self.post(f"/v1/models/{model}:predict", {"inputs": inputs, "options": options})
        assert answer.status == 200, answer
        return answer.json["predictions"]

    def figures(self):
        """The sums that /metrics tells, by name without labels."""
        found = {}
        for line in self.get("/metrics").body.decode().splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = name.split("{")[0]
                found[name] = found.get(name, 0) + float(value)
        return found

    def stop(self, sig=signal.SIGTERM, seconds=30):
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="session")
def exported(finished, finished_text, finished_image, tmp_path_factory):
    """The folders of runs by task, with their ONNX files."""
    root = tmp_path_factory.mktemp("exported")
    runs = {"ner": finished["full"], "text": finished_text, "image": finished_image}
    folders = {task: shutil.copytree(run, root / task) for task, run in runs.items()}
    for folder in folders.values():
        export_run(folder, points_lost=100)
    return folders


@pytest.fixture(scope="session")
def base(tiny, checkpoint, tmp_path_factory):
    """A folder with base.onnx and its adapters a and b."""
    folder = tmp_path_factory.mktemp("base")
    metadata = {"tokenizer.json": (checkpoint / "tokenizer.json").read_text()}
    model = tiny.build(seed=1)
    for seed, name in enumerate("ab"):
        lora_core.inject_lora(model, adapter_name=name, r=2, target_modules="all-linear")
        lora_core.set_adapter(model, name)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape))
    export_onnx_base(model, folder / "base.onnx", metadata=metadata)
    for name in "ab":
        save_onnx_adapter(model, name, folder / f"{name}.onnx_adapter")
    return folder


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Starts a service with these arguments; what a test leaves running is killed."""
    started = []

    def begin(*arguments, **options):
        running = Running(tmp_path_factory.mktemp("service"), *arguments, **options)
        started.append(running)
        return running

    yield begin
    for running in started:
        running.process.kill()
        running.process.wait()


@pytest.fixture(scope="session")
def service(start, exported, base):
    """A service of all tasks in fp32 on one thread, with the models ner, text, image and base."""
    models = [f"{task}={folder / 'model.onnx'}" for task, folder in exported.items()]
    models.append(f"base={base / 'base.onnx'}")
    adapter = f"base+a={base / 'a.onnx_adapter'}"
    return start(*models, "--adapters", adapter, "--threads", "1").wait_until_ready()
