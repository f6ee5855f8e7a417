"""A run folder, an interrupted one, a checkpoint, an adapter and ONNX files that version 0.1.0 wrote, before the rooms:
all verbs read them, and the interrupted run ends as the other one did.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lora_core.export import OnnxSession
from lora_core.kernels.native import build
from trainers.cli import main
from trainers.finished import evaluate_run
from trainers.run_folder import read_predictions, read_run
from trainers.serve import pipeline

OLD = Path(__file__).with_name("run_of_0_1_0")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A copy to work in; its settings name the model and the data relative to it."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def test_it_is_read_and_scored_as_it_was(here):
    run = read_run("run")
    assert run.result["step"] == 18
    scores = evaluate_run("run")
    for name in ("f1", "loss", "accuracy"):
        assert scores[name] == pytest.approx(run.result["test"][name], abs=1e-6)
    predicted, gold = read_predictions("run")
    assert np.mean(np.concatenate(predicted) == np.concatenate(gold)) == pytest.approx(run.result["test"]["accuracy"])


def test_an_interrupted_run_goes_on_to_the_same_end(here, monkeypatch):
    monkeypatch.setattr(build, "_found", [None])  # torch drew its masks of dropout
    settings = json.loads((here / "interrupted" / "config.json").read_text())
    values = {name: value for name, value in settings.items() if name not in ("resume", "output_dir")}
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items() if value is not None]
    (here / "run.toml").write_text("\n".join(lines))
    main(["train", "--config", "run.toml", "--output-dir", "interrupted", "--resume", "auto"])
    assert len(read_run("interrupted").epochs) == len(read_run("run").epochs)
    if torch.__version__.split(".")[:2] != read_run("run").result["torch"].split(".")[:2]:
        pytest.skip("another version of torch draws other numbers for dropout")
    whole, resumed = (load_file(Path(name, "adapter", "adapter_model.safetensors")) for name in ("run", "interrupted"))
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-5, atol=1e-6)
    assert read_run("interrupted").epochs[-1]["train_loss"] == pytest.approx(read_run("run").epochs[-1]["train_loss"])


def test_the_exported_files_serve_and_agree_with_the_run(here):
    words = [json.loads(line)["tokens"] for line in (here / "data" / "test.json").read_text().splitlines()]
    served = {file: pipeline("ner", f"run{file}") for file in ("", "/model.onnx", "/model.int8.onnx")}
    (ids, scores), of_file, of_int8 = (
        tuple(np.concatenate(part) for part in zip(*ner.word_predictions(words), strict=True))
        for ner in served.values()
    )
    assert np.array_equal(ids, of_file[0])
    np.testing.assert_allclose(scores, of_file[1], atol=1e-4)
    assert np.mean(ids == of_int8[0]) > 0.9
    int8 = served["/model.int8.onnx"].served.model
    assert isinstance(int8, OnnxSession)
    assert int8.activations == "dynamic"
    assert {ner.served.labels for ner in served.values()} == {tuple(read_run("run").result["labels"])}


def test_the_other_verbs_read_it(here, capsys):
    shutil.copytree("run", "again")
    main(["compare", "run", "again", "--output-dir", "comparison"])
    main(["report", "run"])
    main(["export", "run", "--points-lost", "100"])
    assert (here / "comparison" / "comparison.json").is_file()
    assert (here / "run" / "report.html").stat().st_size > 10_000
    main(["train", "--data", "data", "--model", "model", "--output-dir", "new", "--epochs", "1"])
    assert "F1" in capsys.readouterr().out
