"""What a running service answers: the pipeline's own predictions, in every form that clients send."""

import asyncio
import base64
import io
import json
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import numpy as np
import pytest
from huggingface_hub import InferenceClient
from PIL import Image

from trainers.serve import pipeline
from trainers.service.app import Service, create_app
from trainers.service.settings import ServiceSettings


def picture(seed, size=(16, 20)):
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def encoded(content):
    return base64.b64encode(content).decode()


def texts(tiny, count, seed=0, most=40):
    chance = random.Random(seed)
    known = [word for words in tiny.WORDS.values() for word in words]
    return [" ".join(chance.choices(known, k=chance.randint(1, most))) for _ in range(count)]


def multipart(fields, files, boundary="--boundary--"):
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
             for name, value in fields.items()]  # fmt: skip
    for content in files:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
        parts.append(head.encode() + content + b"\r\n")
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


@pytest.mark.parametrize("options", [{}, {"aggregation_strategy": "max"}, {"strict": True}])
def test_entities_are_the_pipelines(service, exported, tiny, options):
    inputs = [*texts(tiny, 20), "", ["nfkb", "binds", "the", "promoter"], []]
    expected = pipeline(None, exported["ner"] / "model.onnx", **options)(inputs)
    found = service.predict("ner", inputs, **options)
    assert found == json.loads(json.dumps(expected))
    assert any(found)


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_k": None}])
def test_labels_are_the_pipelines(service, exported, tiny, options):
    inputs = texts(tiny, 20)
    assert service.predict("text", inputs, **options) == pipeline(None, exported["text"] / "model.onnx", **options)(
        inputs
    )
    assert service.predict("text", [{"text": inputs[0]}], **options) == service.predict("text", inputs[:1], **options)


def test_images_in_base64_and_as_files_of_a_form_are_the_pipelines(service, exported):
    files = [picture(seed) for seed in range(3)]
    expected = pipeline(None, exported["image"] / "model.onnx", top_k=2)(files)
    assert service.predict("image", list(map(encoded, files)), top_k=2) == expected
    assert service.predict("image", [f"data:image/png;base64,{encoded(files[0])}"], top_k=2) == expected[:1]
    body, kind = multipart({"options": '{"top_k": 2}'}, files)
    answer = service.request("POST", "/v1/models/image:predict", body, {"Content-Type": kind})
    assert (answer.status, answer.json) == (200, {"predictions": expected})


def test_concurrent_requests_share_batches_and_get_what_they_get_alone(service, exported, tiny):
    jobs = [texts(tiny, count, seed) for seed, count in enumerate([1, 2, 30, 1, 1, 5, 1, 64] * 8)]
    alone = pipeline(None, exported["ner"] / "model.onnx")
    before = service.figures()
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda job: service.predict("ner", job), jobs))
    after = service.figures()
    for job, answers in zip(jobs, found, strict=True):
        for text, entities in zip(job, answers, strict=True):
            expected = alone(text)
            assert [{**entity, "score": 0} for entity in entities] == [{**entity, "score": 0} for entity in expected]
            assert np.allclose([e["score"] for e in entities], [e["score"] for e in expected], atol=1e-5)
    batches, requests = (
        after[f"lora_core_batch_requests_{part}"] - before.get(f"lora_core_batch_requests_{part}", 0)
        for part in ("count", "sum")
    )
    assert requests > 1.5 * batches
    inputs = after["lora_core_batch_inputs_sum"] - before.get("lora_core_batch_inputs_sum", 0)
    assert inputs == sum(map(len, jobs))
    assert after["lora_core_queue_inputs"] == 0


def test_the_toolkits_form(service, exported, tiny):
    ner = pipeline(None, exported["ner"] / "model.onnx")
    text = pipeline(None, exported["text"] / "model.onnx")
    one, two = texts(tiny, 2)
    asked = {"inputs": one, "parameters": {"aggregation_strategy": "simple"}, "options": {"wait_for_model": True}}
    assert service.post("/models/ner", asked).json == ner(one)
    assert service.post("/models/text", {"inputs": one}).json == text(one)
    assert service.post("/models/text", {"inputs": [one, two]}).json == text([one, two])
    answer = service.post("/", {"inputs": one})
    assert answer.status == 404
    assert "several models" in answer.json["error"]


def test_the_hubs_own_client(service, exported, tiny):
    address = f"http://127.0.0.1:{service.port}/models"
    (text,) = texts(tiny, 1)
    found = InferenceClient(f"{address}/ner").token_classification(text)
    expected = pipeline(None, exported["ner"] / "model.onnx")(text)
    assert [(e.entity_group, e.word, e.start, e.end) for e in found] == [
        (e["entity_group"], e["word"], e["start"], e["end"]) for e in expected
    ]
    content = picture(1)
    best = pipeline(None, exported["image"] / "model.onnx", top_k=2)(content)
    client = InferenceClient(f"{address}/image")
    assert [(e.label, e.score) for e in client.image_classification(content)] == [(best[0]["label"], best[0]["score"])]
    assert [e.label for e in client.image_classification(content, top_k=2)] == [e["label"] for e in best]


def test_the_examples_of_the_description_are_answered(service):
    described = service.get("/openapi.json").json
    content = described["paths"]["/v1/models/{name}:predict"]["post"]["requestBody"]["content"]
    examples = {name: example["value"] for name, example in content["application/json"]["examples"].items()}
    models = {"texts": "ner", "words": "ner", "labels": "text"}
    for name, model in models.items():
        answer = service.post(f"/v1/models/{model}:predict", examples[name])
        assert answer.status == 200, (name, answer)
        assert len(answer.json["predictions"]) == len(examples[name]["inputs"])


def test_health_models_and_figures(service):
    assert service.get("/healthz").status == service.get("/readyz").status == 200
    models = {model["name"]: model for model in service.get("/v1/models").json["models"]}
    assert list(models) == ["ner", "text", "image", "base"]
    assert models["ner"]["task"] == "token-classification"
    assert models["text"]["labels"] == ["DNA", "protein"]
    assert models["base"]["takes_adapters"]
    assert not models["ner"]["takes_adapters"]
    answer = service.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    for name in ("requests_total", "request_seconds_bucket", "batch_inputs_bucket", "queue_inputs"):
        assert f"lora_core_{name}" in answer.body.decode()


def test_adapters_are_chosen_by_option_or_name_and_come_and_go(service, base, tiny):
    (text,) = texts(tiny, 1)
    bearer = {"Authorization": "Bearer a token of the tests"}
    plain = service.predict("base", [text])
    with_a = service.predict("base", [text], adapter="a")
    assert with_a != plain
    assert service.predict("base+a", [text]) == with_a
    assert service.post("/v1/models/base:predict", {"inputs": [text], "options": {"adapter": "b"}}).status == 404

    address, asked = "/v1/models/base/adapters/b", json.dumps({"path": str(base / "b.onnx_adapter")})
    assert service.request("PUT", address, asked).status == 401
    assert service.request("PUT", address, asked, {"Authorization": "Bearer wrong"}).status == 401
    loaded = service.request("PUT", address, asked, bearer)
    assert (loaded.status, loaded.json["bytes"]) == (200, (base / "b.onnx_adapter").stat().st_size)
    with_b = service.predict("base+b", [text])
    assert with_b not in (plain, with_a)
    names = [model["adapters"] for model in service.get("/v1/models").json["models"] if model["name"] == "base"]
    assert [adapter["name"] for adapter in names[0]] == ["a", "b"]

    # Another file under the name takes its place.
    other = json.dumps({"path": str(base / "a.onnx_adapter")})
    assert service.request("PUT", address, other, bearer).status == 200
    assert service.predict("base+b", [text]) == with_a
    assert service.request("DELETE", address, headers=bearer).status == 200
    assert service.request("DELETE", address, headers=bearer).status == 404
    assert service.post("/v1/models/base+b:predict", {"inputs": [text]}).status == 404
    assert service.predict("base+a", [text]) == with_a

    for path, status in [("/nowhere", 422), (str(base / "base.onnx"), 422), (7, 422)]:
        answer = service.request("PUT", address, json.dumps({"path": path}), bearer)
        assert answer.status == status
        assert "\n" not in answer.json["error"]
    wrong = service.request("PUT", "/v1/models/ner/adapters/b", asked, bearer)
    assert "takes no adapters" in wrong.json["error"]
    assert service.request("PUT", f"/v1/models/base/adapters/{quote('a b')}", asked, bearer).status == 422


def test_work_for_a_client_that_left_is_dropped(service, tiny):
    before = service.figures()
    many = json.dumps({"inputs": [" ".join(texts(tiny, 60, most=200))[:40000]] * 256}).encode()
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        head = "POST /v1/models/ner:predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(many)}\r\n\r\n".encode() + many)
        time.sleep(0.5)
    until = time.monotonic() + 20
    while service.figures().get("lora_core_cancelled_total", 0) == before.get("lora_core_cancelled_total", 0):
        assert time.monotonic() < until
        time.sleep(0.1)
    begin = time.monotonic()
    assert len(service.predict("ner", ["nfkb binds"])) == 1
    assert time.monotonic() - begin < 10
    done = service.figures()["lora_core_batch_inputs_sum"] - before["lora_core_batch_inputs_sum"]
    assert done < 200


def test_an_error_that_nobody_expected_is_one_line_and_its_message_is_not_logged(exported, tmp_path, caplog):
    service = Service(ServiceSettings((f"ner={exported['ner'] / 'model.onnx'}",)), tmp_path)

    def breaks(job):
        raise RuntimeError("a secret text")

    service.models.by_name["ner"].queue.submit = breaks
    sent, body = [], b'{"inputs": ["il2"]}'

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/v1/models/ner:predict",
             "raw_path": b"", "query_string": b"", "headers": [(b"content-type", b"application/json")]}  # fmt: skip
    asyncio.run(create_app(service)(scope, receive, send))
    service.abandon()
    assert sent[0]["status"] == 500
    assert json.loads(sent[1]["body"]) == {"error": "an error inside the service; its log says where"}
    assert "RuntimeError at " in caplog.text
    assert "secret" not in caplog.text
