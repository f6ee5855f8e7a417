"""What a service refuses: one line, a status that fits, and it goes on."""

import base64
import io
import json
import os
import random
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from trainers.service.inputs import RequestReader
from trainers.service.settings import Refusal, ServiceSettings


@pytest.fixture(scope="module")
def limited(start, exported):
    """A service with small limits."""
    models = [f"{task}={folder / 'model.onnx'}" for task, folder in exported.items()]
    limits = {"max-body-mb": 2, "max-inputs": 100, "max-characters": 20_000, "max-pixels": 10_000, "max-queue": 100,
              "timeout": 1, "batch-tokens": 512, "max-tokens": 24, "threads": 1}  # fmt: skip
    flags = [part for name, value in limits.items() for part in (f"--{name}", value)]
    return start(*models, *flags).wait_until_ready()


def png(width, height):
    """A file that says it has so many pixels, and has none."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def base64_of(content):
    return base64.b64encode(content).decode()


def eps():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "EPS")
    return buffer.getvalue()


REFUSED = {
    "no JSON": ("ner", b"{", 400, "not JSON"),
    "nothing": ("ner", b"", 400, "not JSON"),
    "not UTF-8": ("ner", b'{"inputs": ["\xff"]}', 400, "UTF-8"),
    "nested": ("ner", b"[" * 100_000, 400, "nested too deeply"),
    "a huge number": ("ner", b'{"inputs": [' + b"9" * 10_000 + b"]}", 400, "not JSON"),
    "a list": ("ner", [], 422, 'expected a JSON object with "inputs", got a list'),
    "no inputs": ("ner", {"texts": []}, 422, """expected a JSON object with "inputs", got an object with ['texts']"""),
    "another field": ("ner", {"inputs": [], "input": 1}, 422, "unknown field 'input'"),
    "one text": ("ner", {"inputs": "a"}, 422, '"inputs" is a text; expected a list'),
    "a number": ("ner", {"inputs": ["a", 7]}, 422, "input 1: a number; expected a text or a list of words"),
    "null": ("text", {"inputs": [None]}, 422, "input 0: null"),
    "words": ("text", {"inputs": [["a"]]}, 422, "input 0: a list"),
    "numbers for words": ("ner", {"inputs": [["a", 1]]}, 422, "input 0: a list"),
    "half a pair": ("text", {"inputs": [{"text_pair": "a"}]}, 422, "input 0: an object"),
    "half a character": ("ner", b'{"inputs": ["\\ud800"]}', 422, "half of a character"),
    "pairs for single texts": ("text", {"inputs": [{"text": "a", "text_pair": "b"}]}, 422, "trained on single texts"),
    "too many": ("ner", {"inputs": ["a"] * 101}, 413, "101 inputs; this service takes at most 100"),
    "too long": ("ner", {"inputs": ["a" * 20_001]}, 413, "20001 characters"),
    "too long in words": ("ner", {"inputs": [["a"] * 12_000]}, 413, "23999 characters"),
    "too large": ("ner", b" " * 2_000_001, 413, "exceeds 2 MB"),
    "options": ("ner", {"inputs": [], "options": 1}, 422, "the options are a number"),
    "another option": ("ner", {"inputs": [], "options": {"top_k": 1}}, 422, "has no option 'top_k'"),
    "option of another type": ("text", {"inputs": ["a"], "options": {"top_k": "1"}}, 422, "the option top_k is '1'"),
    "true for a number": ("text", {"inputs": ["a"], "options": {"top_k": True}}, 422, "the option top_k is True"),
    "option out of range": ("text", {"inputs": ["a"], "options": {"top_k": 0}}, 422, "expected at least 1"),
    "unknown strategy": ("ner", {"inputs": ["a"], "options": {"aggregation_strategy": "x"}}, 422, "first, average"),
    "threshold": ("text", {"inputs": ["a"], "options": {"threshold": 0.5}}, 422, "multi_label"),
    "NaN": ("text", b'{"inputs": ["a"], "options": {"threshold": NaN}}', 422, "the option threshold is nan"),
    "an adapter that is none": ("ner", {"inputs": ["a"], "options": {"adapter": "x"}}, 404, "no adapter 'x'"),
    "an adapter by number": ("ner", {"inputs": ["a"], "options": {"adapter": 1}}, 422, "adapter is a number"),
    "another model": ("other", {"inputs": []}, 404, "no model 'other'"),
    "a path": ("image", {"inputs": ["/etc/machine"]}, 422, "not a picture"),
    "no base64": ("image", {"inputs": ["!"]}, 422, "not base64"),
    "no image": ("image", {"inputs": [base64_of(b"hello")]}, 422, "not a picture"),
    "an image that starts programs": ("image", {"inputs": [base64_of(eps())]}, 422, "not a picture"),
    "an empty image": ("image", {"inputs": [""]}, 422, "empty"),
    "a bomb": ("image", {"inputs": [base64_of(png(60_000, 60_000))]}, 422, "limit"),
    "a large image": ("image", {"inputs": [base64_of(png(200, 200))]}, 413, "40000 pixels; this service takes"),
    "an image without pixels": ("image", {"inputs": [base64_of(png(20, 20))]}, 422, "damaged"),
    "a text for an image": ("image", {"inputs": [{"text": "a"}]}, 422, "an object; expected the base64"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_requests_get_one_line(limited, case):
    model, body, status, message = REFUSED[case]
    answer = limited.post(f"/v1/models/{model}:predict", body)
    assert answer.status == status, answer
    assert list(answer.json) == ["error"]
    assert message in answer.json["error"]
    assert "\n" not in answer.json["error"]
    assert len(answer.json["error"]) < 400


FORM = b'--a\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n--a--\r\n'


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("", b'{"inputs": []}', 415),
        ("text/plain", b'{"inputs": []}', 415),
        ("application/x-www-form-urlencoded", b"inputs=a", 415),
        ("application/x-www-form-urlencoded", b'{"inputs": []}', 200),  # curl -d
        ("application/x-www-form-urlencoded", b'{"inputs": 1}', 422),
        ("image/png", png(8, 8), 415),
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=a", b"--b\r\n", 400),
        (
            "multipart/form-data; boundary=a",
            b'--a\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n--a--\r\n',
            422,
        ),
        ("application/json; charset=utf-8", b'{"inputs": []}', 200),
    ],
)
def test_content_types(limited, kind, body, status):
    answer = limited.request("POST", "/v1/models/ner:predict", body, {"Content-Type": kind} if kind else {})
    assert answer.status == status, answer
    assert list(answer.json) == (["predictions"] if status == 200 else ["error"])


def test_addresses_and_methods(limited):
    assert limited.get("/nowhere").status == 404
    answer = limited.request("DELETE", "/v1/models")
    assert answer.status == 405
    assert "Method Not Allowed" in answer.json["error"]


def test_a_request_that_takes_too_long_is_answered_and_dropped(limited):
    slow = {"inputs": ["nfkb binds the promoter of il2 " * 600] * 100}
    answer = limited.post("/v1/models/ner:predict", slow)
    assert answer.status == 504, answer
    assert "no answer within 1 s" in answer.json["error"]
    assert limited.post("/v1/models/ner:predict", {"inputs": ["nfkb"]}).status == 200


def test_a_body_that_does_not_arrive_is_refused(limited):
    connection = limited.connect()
    connection.putrequest("POST", "/v1/models/ner:predict")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "100")
    connection.endheaders(b"{")
    response = connection.getresponse()
    assert response.status == 408
    assert b"did not arrive" in response.read()
    connection.close()


@pytest.mark.fault("more requests than may wait", "429 with Retry-After; the others are answered", "nothing accepted")
def test_a_full_queue_refuses(limited):
    job = {"inputs": ["nfkb binds the promoter of il2 " * 3] * 24}
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: limited.post("/v1/models/ner:predict", job), range(48)))
    refused = [answer for answer in answers if answer.status == 429]
    assert refused
    assert all(answer.headers["retry-after"] == "1" for answer in refused)
    assert all(len(answer.json["predictions"]) == 24 for answer in answers if answer.status == 200)
    assert {answer.status for answer in answers} <= {200, 429, 504}
    assert any(answer.status == 200 for answer in answers)


def test_texts_are_not_logged(limited):
    limited.post("/v1/models/ner:predict", {"inputs": ["a secret text"]})
    limited.post("/v1/models/ner:predict", {"inputs": ["a secret text", 7]})
    limited.post("/v1/models/ner:predict", b'{"inputs": ["a secret text"')
    assert "secret" not in limited.log


def test_pairs_of_texts():
    reader = RequestReader("text-classification", ServiceSettings(("x",)), ("top_k", "threshold"), longest=50)
    read = reader.of_json({"inputs": [{"text": "a", "text_pair": "b"}], "options": {"top_k": 2, "adapter": "x"}})
    assert (read.inputs, read.kind, read.options, read.adapter) == ([("a", "b")], "pair", {"top_k": 2}, "x")
    assert reader.of_json({"inputs": [{"text": "a"}, "b" * 1000]}).inputs == ["a", "b" * 1000]
    assert reader.of_json({"inputs": ["b" * 1000]}).costs == [50]  # the rest is cut
    with pytest.raises(Refusal, match="one kind at a time"):
        reader.of_json({"inputs": [{"text": "a", "text_pair": "b"}, "c"]})


FUZZED = int(os.environ.get("LORA_FUZZED_REQUESTS", "300"))
"""Requests that are sent; LORA_FUZZED_REQUESTS=10000 for a longer look."""
PIECES = (b"null", b"{}", b"[]", b"-1", b'"', b"\\ud800", b"1e999", b"\x00", b",")


def mutated(chance, seeds):
    """A request near a right one: bytes changed, cut, doubled, or values of other types put in."""
    body = bytearray(json.dumps(chance.choice(seeds)).encode())
    for _ in range(chance.choice([0, 1, 1, 2, 5])):
        place = chance.randrange(len(body) + 1)
        match chance.randrange(4):
            case 0:
                del body[place : place + chance.randint(1, 8)]
            case 1:
                body[place:place] = chance.choice(
                    [b"null", b"{}", b"[]", b"-1", b'"', b"\\ud800", b"1e999", b"\x00", b","]
                )
            case 2:
                body[place : place + 1] = chance.randbytes(1)
            case 3:
                body += body[place:][: chance.randint(1, 50)]
    return bytes(body)


def fuzz(service, count, seed):
    """Send so many requests near right ones; statuses with how often each came."""
    chance = random.Random(seed)
    seeds = [
        {"inputs": ["nfkb binds", ["il2", "gene"]], "options": {"strict": True, "aggregation_strategy": "max"}},
        {"inputs": ["nfkb binds", {"text": "il2"}], "options": {"top_k": 2, "threshold": 0.5}},
        {"inputs": [base64_of(png(8, 8))], "options": {"top_k": None}},
        {"inputs": "nfkb", "parameters": {"aggregation_strategy": "simple"}},
    ]
    paths = [f"/v1/models/{name}:predict" for name in ("ner", "text", "image", "ner+x")] + [
        "/models/ner",
        "/models/text",
    ]
    kinds = ["application/json"] * 8 + ["multipart/form-data; boundary=x", "image/png", "text/html", ""]
    statuses = {}
    for _ in range(count):
        kind = chance.choice(kinds)
        body = mutated(chance, seeds)
        answer = service.request("POST", chance.choice(paths), body, {"Content-Type": kind})
        statuses[answer.status] = statuses.get(answer.status, 0) + 1
        assert answer.status < 500, (answer, kind, body)
        assert answer.status == 200 or list(answer.json) == ["error"]
    return statuses


def memory_of(service):
    """Resident bytes of the service's process."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


@pytest.mark.timeout(120 + FUZZED // 10)
def test_requests_near_right_ones_never_break_it(limited):
    statuses = fuzz(limited, 150, seed=0)
    before = memory_of(limited)
    for status, number in fuzz(limited, FUZZED, seed=1).items():
        statuses[status] = statuses.get(status, 0) + number
    assert {200, 400, 415, 422} <= set(statuses)
    assert memory_of(limited) < before + 20e6
    assert limited.get("/readyz").status == 200
    assert limited.figures().get("lora_core_errors_total", 0) == 0


def test_curl_that_sends_no_json_is_told_the_flag(limited):
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = limited.request("POST", "/v1/models/ner:predict", b"inputs=a", headers)
    assert (answer.status, "add -H 'Content-Type: application/json'" in answer.json["error"]) == (415, True)
