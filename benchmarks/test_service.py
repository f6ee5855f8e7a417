"""The HTTP service under load on loopback: MiniLM in int8, one sentence a request, 1, 8 and 64 clients at once.

    pytest benchmarks/test_service.py          # LORA_DATA_DIR=folder: sentences of BioNLP2004, else made ones

Against the same service without batches across requests, and against transformers' pipeline behind FastAPI. Every
client sends its next request when it has the answer to the last. The head is not trained: speed does not depend on it.
It takes two minutes on 2 idle cores; LORA_BENCHMARK_SIZE=small tries the file.
"""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_core.export import export_onnx, quantize_onnx
from lora_core.models import load_pretrained, resolve, save_pretrained
from lora_core.models.task_model import TaskModel
from trainers.data.tokenizer import TOKENIZER_FILE
from trainers.serve import pipeline

pytestmark = pytest.mark.timeout(1200)

SMALL = os.environ.get("LORA_BENCHMARK_SIZE") == "small"
CLIENTS = (1, 8, 64)
REQUESTS = {1: 100, 8: 200, 64: 512} if SMALL else {1: 300, 8: 1600, 64: 4000}
LABELS = ["O", *(f"{prefix}-{kind}" for kind in ("DNA", "RNA", "cell_line", "cell_type", "protein") for prefix in "BI")]
LEAST_BATCHED, LEAST_TRANSFORMERS, MOST_LATENCY = 2.0, 5.0, 1.3
"""Aims: requests a second at 64 clients against one at a time, and against transformers; p50 against the pipeline."""

OPPONENT = """
import sys
import transformers
import uvicorn
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool

ner = transformers.pipeline("token-classification", sys.argv[1], aggregation_strategy="simple", device="cpu")
app = FastAPI()

def found(inputs):
    return [[{**entity, "score": float(entity["score"])} for entity in entities] for entities in ner(inputs)]

@app.post("/predict")
async def predict(request: Request):
    return {"predictions": await run_in_threadpool(found, (await request.json())["inputs"])}

uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""


@dataclass
class Load:
    """What a number of clients got."""

    seconds: float
    latencies: np.ndarray
    refused: list[str]
    """Requests that were not answered with 200, each with what came instead; the others went on."""

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.latencies) / self.seconds

    @property
    def row(self) -> str:
        """Rate, and percentiles in milliseconds."""
        p50, p95, p99 = 1000 * np.percentile(self.latencies, [50, 95, 99])
        return f"{self.rate:8.1f} {p50:8.1f} {p95:8.1f} {p99:8.1f}"


async def ask(port: int, path: str, bodies: list[bytes], clients: int) -> Load:
    """Send the bodies from so many clients, each over one connection."""
    left = iter(bodies)
    latencies, refused = [], []

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for body in left:
            begin = time.perf_counter()
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            writer.write(f"{head}\r\n\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", answer.lower())
            assert length is not None
            content = await reader.readexactly(int(length[1]))
            if answer.startswith(b"HTTP/1.1 200"):
                latencies.append(time.perf_counter() - begin)
            else:
                status = answer.split(b"\r\n")[0].decode()
                refused.append(f"{status} {content[:100]!r} for {body[:80]!r}")
        writer.close()
        await writer.wait_closed()

    begin = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return Load(time.perf_counter() - begin, np.array(latencies), refused)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with MiniLM in transformers' layout and as model.int8.onnx."""
    folder = tmp_path_factory.mktemp("model")
    minilm = load_pretrained("embedded", "token-classification", labels=LABELS)
    assert isinstance(minilm, TaskModel)
    with torch.no_grad():  # as many entities as a trained model finds: few
        minilm.classifier.bias[0] += 0.5  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
    save_pretrained(minilm, folder / "transformers")
    tokenizer = (resolve("embedded") / TOKENIZER_FILE).read_text(encoding="utf-8")
    (folder / "transformers" / TOKENIZER_FILE).write_text(tokenizer, encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizerFast", "model_max_length": 512}
    (folder / "transformers" / "tokenizer_config.json").write_text(json.dumps(settings))
    export_onnx(minilm, folder / "model.onnx", metadata={TOKENIZER_FILE: tokenizer})
    quantize_onnx(folder / "model.onnx", folder / "model.int8.onnx")
    return folder


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    """Sentences of BioNLP2004's test split where it is at hand; else made ones of like lengths."""
    path = Path(os.environ.get("LORA_DATA_DIR", "/nowhere"), "bionlp2004", "test.json")
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        return [" ".join(json.loads(line)["tokens"]) for line in lines]
    random = np.random.default_rng(0)
    words = ["the", "expression", "of", "gene", "receptor", "in", "cells", "was", "activation", "protein", "binding"]
    lengths = np.clip(random.lognormal(3.1, 0.5, 2000), 3, 120).astype(int)
    return [" ".join(random.choice(words, length)) for length in lengths]


@contextmanager
def serving(command: list[str], port: int) -> Iterator[None]:
    """A process that answers on a port."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            assert process.poll() is None, command
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_requests_a_second_and_latency(model: Path, sentences: list[str], table: list[str], tmp_path: Path) -> None:
    def bodies(count: int) -> list[bytes]:
        return [json.dumps({"inputs": [sentences[n % len(sentences)]]}).encode() for n in range(count)]

    opponent = tmp_path / "opponent.py"
    opponent.write_text(OPPONENT)
    # A machine that stalls for a while is not to end the run: the limit of a request is ten times the usual one.
    serve = [sys.executable, "-m", "trainers", "serve", f"ner={model / 'model.int8.onnx'}", "--timeout", "300"]
    ports = [free_port() for _ in range(3)]
    servers = {
        "service": ([*serve, "--port", str(ports[0])], "/v1/models/ner:predict"),
        "service, one at a time": (
            [*serve, "--port", str(ports[1]), "--batch-tokens", "1", "--batch-wait-ms", "0"],
            "/v1/models/ner:predict",
        ),
        "transformers behind FastAPI": (
            [sys.executable, str(opponent), str(model / "transformers"), str(ports[2])],
            "/predict",
        ),
    }
    ner = pipeline("ner", model / "model.int8.onnx")
    alone = []
    for sentence in sentences[: REQUESTS[1]]:
        begin = time.perf_counter()
        ner(sentence)
        alone.append(time.perf_counter() - begin)
    bare = float(np.median(alone))
    found: dict[tuple[str, int], Load] = {}
    table += [f"{'requests a second, latency in ms':36} {'clients':>7} {'rate':>8} {'p50':>8} {'p95':>8} {'p99':>8}"]
    table += [f"{'pipeline, without HTTP':36} {1:7} {1 / np.mean(alone):8.1f} {1000 * bare:8.1f}"]
    for (name, (command, path)), port in zip(servers.items(), ports, strict=True):
        with serving(command, port):
            asyncio.run(ask(port, path, bodies(20), 2))
            for clients in CLIENTS:
                count = REQUESTS[clients] // (4 if name.startswith("transformers") else 1)
                found[name, clients] = asyncio.run(ask(port, path, bodies(count), clients))
                table.append(f"{name:36} {clients:7} {found[name, clients].row}")
                table += [f"  not answered: {line}" for line in found[name, clients].refused[:5]]
    rate = {name: found[name, 64].rate for name in servers}
    ours, one, theirs = rate.values()
    latency = float(np.median(found["service", 1].latencies)) / bare
    table += [
        f"at 64 clients against one at a time: {ours / one:.2f} (aim {LEAST_BATCHED})",
        f"at 64 clients against transformers: {ours / theirs:.2f} (aim {LEAST_TRANSFORMERS})",
        f"p50 at 1 client against the pipeline: {latency:.2f} (aim at most {MOST_LATENCY})",
    ]
    refused = {key: load.refused for key, load in found.items() if load.refused}
    assert not refused  # after the table, which names them too
    if not SMALL:
        assert ours > one
        assert ours > 2 * theirs
