"""The same input gives the same output, however the model is named and whoever asks."""

import json
import shutil

import numpy as np
import pytest

from trainers.cli import main
from trainers.run_folder import RunFolder
from trainers.serve import pipeline
from trainers.serve.export import export_run

TEXTS = ["il2 gene of the junb promoter", "", "  two  spaces\tand a tab ", "Ünïcode (IL2)", "a b c d e f g h " * 8]


@pytest.fixture(scope="module", params=["ner", "text"])
def ways(request, finished, finished_text, tmp_path_factory):
    """The sources of one model by name; the ONNX files lie alone, under other names, without their run."""
    alone = tmp_path_factory.mktemp("alone")
    run = shutil.copytree({"ner": finished["full"], "text": finished_text}[request.param], alone / "run")
    export_run(run, points_lost=100)
    found = {"run": run}
    for name, path in (("onnx", RunFolder(run).onnx), ("int8", RunFolder(run).int8_onnx)):
        found[name] = shutil.copy(path, alone / f"{name}-moved.onnx")
    if request.param == "ner":
        found["folder"] = shutil.copytree(run / "best", alone / "checkpoint")
    return found


def rounded(results):
    """Results with scores to four digits, as JSON has them."""
    return json.loads(json.dumps(results), parse_float=lambda number: round(float(number), 4))


def test_all_ways_give_the_same(ways, tmp_path):
    expected = pipeline(None, ways["run"], device="cpu")(TEXTS)
    one_by_one = [pipeline(None, ways["run"], device="cpu")([text])[0] for text in TEXTS]
    assert rounded(one_by_one) == rounded(expected)
    lines = tmp_path / "in.jsonl"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    for name in ways.keys() - {"int8"}:
        served = pipeline(None, ways[name], device="cpu")
        assert rounded(served(TEXTS)) == rounded(expected), name
        assert served.labels == pipeline(None, ways["run"], device="cpu").labels
        main(["predict", str(ways[name]), str(lines), "--device", "cpu", "--output", str(tmp_path / "out.jsonl")])
        written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        results = [row[served.result_name] for row in written]
        assert rounded(results) == rounded([x if isinstance(x, list) else [x] for x in expected]), name


@pytest.mark.parametrize("way", ["run", "onnx", "int8"])
def test_a_text_run_alone_has_one_result(way, ways):
    """With max_tokens=1 bit for bit, also in int8."""
    served = pipeline(None, ways[way], device="cpu", max_tokens=1)
    words = ["il2", "gene", "of", "the", "junb", "promoter", "binds", "a", "b", "c", "d"]
    texts = [" ".join(np.random.default_rng(seed).choice(words, 3 + seed % 7)) for seed in range(30)]
    assert served(texts) == [served([text])[0] for text in texts] == served(texts[::-1])[::-1]
