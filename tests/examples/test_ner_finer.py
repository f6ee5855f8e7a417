"""The example on the sample with a tiny model: every step."""

import importlib.util
import json
import re
import runpy
import sys
from pathlib import Path

import onnx
import pytest

from trainers.data.tokens.reader import load_token_datasets
from trainers.run_folder import read_run

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "ner_finer.py"


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("tiny", ROOT / "tests" / "trainers" / "tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "finer"


@pytest.fixture(scope="module")
def flags(tiny_model, folder):
    return ["--model", str(tiny_model), "--output-dir", str(folder), "--epochs", "1", "--fresh-head"]


def run_here(patch, capture, *arguments):
    patch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    return capture.readouterr().out


def test_from_raw_data_to_int8(folder, flags, monkeypatch, capsys):
    out = run_here(monkeypatch, capsys, *flags)
    assert out.startswith("This is the sample")
    for command, recipe in re.findall(r"torchrun (examples/\S+) --config (\S+)", out.split("|")[0]):
        assert (ROOT / command).is_file()
        assert (ROOT / recipe).is_file()
    order = ["entities of each type", "| full ", "| lora ", "ONNX int8", "Alder Point Holdings", "wrote "]
    assert sorted(order, key=out.index) == order
    assert {path.name for path in folder.iterdir()} >= {
        "data", "full", "lora", "comparison.md", "comparison.png", "confusion_words.png", "confusion_entities.png",
    }  # fmt: skip
    assert {path.name for path in (folder / "lora").iterdir()} >= {"adapter", "model.onnx", "model.int8.onnx"}
    for path in re.findall(r"^wrote (.*)$", out, flags=re.MULTILINE):
        assert Path(path).stat().st_size

    entries = {entry.key: entry.value for entry in onnx.load(folder / "lora" / "model.int8.onnx").metadata_props}
    assert json.loads(entries["parity"])["allowed"] == 10  # points of F1: the sample is small

    datasets = load_token_datasets(folder / "data")
    assert sum(map(len, datasets.values())) == 536
    for method in ("full", "lora"):
        finished = read_run(folder / method)
        assert finished.config["data"] == str(folder / "data")
        assert finished.result["labels"] == list(datasets["train"].labels)


def test_other_data_and_types(tiny_model, tmp_path, monkeypatch):
    """The choices reach the preparation: here, one type, with names of FiNER-139's own splits."""
    seen = {}

    def prepare(source, folder, preparation, **more):
        seen.update(source=source, folder=folder, preparation=preparation, **more)
        raise ValueError("far enough")

    monkeypatch.setattr("trainers.corpus.prepare.prepare", prepare)
    flags = [
        "--data",
        "some/where",
        "--label-file",
        "names.txt",
        "--types",
        "Rate",
        "--keep-empty",
        "0.25",
        "--resplit",
        "--oversample",
        "0.5",
    ]
    arguments = ["--model", str(tiny_model), "--output-dir", str(tmp_path / "out"), *flags, "--on-bad-row", "skip"]
    arguments += ["--columns", "1,3", "--encoding", "cp1252"]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    preparation = seen["preparation"]
    assert (seen["source"], seen["folder"], seen["on_bad_row"]) == ("some/where", tmp_path / "out" / "data", "skip")
    assert seen["label_file"] == "names.txt"
    assert (seen["reading"].columns, seen["reading"].encoding) == ("1,3", "cp1252")
    assert (preparation.types, preparation.top, preparation.keep_empty) == (("Rate",), None, 0.25)
    assert (preparation.resplit, preparation.oversample, preparation.seed) == (True, 0.5, 42)


def test_the_recipe_is_that_of_the_issue():
    example = runpy.run_path(str(EXAMPLE))
    recipes = set(re.findall(r"--config (\S+)", example["__doc__"]))
    assert recipes == {path.relative_to(ROOT).as_posix() for path in EXAMPLE.parent.glob("ner_finer_*.toml")}
    config = example["parse_run"](["--config", str(ROOT / recipes.pop())], example["SAMPLE_RECIPE"])
    expected = {"full_learning_rate": 2e-5, "warmup": 0.1, "batch_size": 128, "epochs": 8, "weight_decay": 0.01,
                "precision": "fp16", "metric": "f1", "keep_checkpoints": 2, "seed": 42, "resplit": True,
                "model": "distilbert-base-uncased", "data": "nlpaueb/finer-139"}  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected
    sample = json.loads((EXAMPLE.parent / "data" / "financial" / "sentences.jsonl").read_text().split("\n")[0])
    assert len(config.types) == 4
    assert {tag[2:] for tag in sample["ner_tags"] if tag != "O"} <= set(config.types)
