"""ONNX files are served, and predicted with, where what only training and export need is not installed."""

import io
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tomli
from PIL import Image

from trainers.serve import pipeline

ROOT = Path(__file__).resolve().parents[3]
REQUIREMENTS = runpy.run_path(str(ROOT / "examples" / "deploy" / "requirements.py"))
# huggingface_hub is installed with tokenizers, scikit-learn is imported as sklearn.
MISSING = {"sklearn" if name == "scikit-learn" else name for name in REQUIREMENTS["TRAINING"]} | {"transformers"}
BLOCK = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        package = name.split(".")[0]
        if package in {MISSING!r}:
            raise ModuleNotFoundError(f"No module named {{package!r}}", name=package)

sys.meta_path.insert(0, Missing())
"""
TEXT = "nfkb binds the il2 promoter in junb cells"


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    """A folder that, first on the path of Python, makes it one without torch."""
    folder = tmp_path_factory.mktemp("without_torch")
    (folder / "sitecustomize.py").write_text(BLOCK)
    return folder


def run(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    return subprocess.run([sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True)


def test_torch_is_missing_there(without_torch):
    assert "No module named 'torch'" in run(without_torch, "-c", "import torch").stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_all_tasks_are_served_as_with_torch(start, without_torch, exported, base, workers):
    models = [f"{task}={folder / 'model.onnx'}" for task, folder in exported.items()]
    adapter = f"base+a={base / 'a.onnx_adapter'}"
    service = start(*models, f"base={base / 'base.onnx'}", "--adapters", adapter, "--threads", 1, "--workers", workers,
                    first_on_path=without_torch).wait_until_ready(workers)  # fmt: skip
    for task in ("ner", "text"):
        with_torch = pipeline(None, exported[task] / "model.onnx")
        texts = [TEXT, "", "gene of il2 " * 30]
        assert service.predict(task, texts) == [with_torch.predict([text])[0] for text in texts]
        of_run = pipeline(None, exported[task]).predict(texts)  # torch computes this one
        for found, expected in zip(service.predict(task, texts), of_run, strict=True):
            pairs = zip(*(one if isinstance(one, list) else [one] for one in (found, expected)), strict=True)
            for ours, theirs in pairs:
                assert ours == {**theirs, "score": pytest.approx(theirs["score"], abs=1e-4)}
    picture = png()
    answer = service.request("POST", "/models/image", picture, {"Content-Type": "image/png"})
    assert answer.json == pipeline(None, exported["image"] / "model.onnx")(picture)
    assert service.predict("base+a", [TEXT]) != service.predict("base", [TEXT])
    assert service.stop() == 0
    assert "Traceback" not in service.log


def png():
    """A picture of noise."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 16, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_command_line_predicts(without_torch, exported, tmp_path):
    (tmp_path / "texts.txt").write_text(TEXT + "\n")
    path = exported["ner"] / "model.onnx"
    done = run(without_torch, "-m", "trainers", "predict", path, tmp_path / "texts.txt")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["entities"] == pipeline(None, path)(TEXT)


def test_a_run_says_what_it_needs(without_torch, exported, tmp_path):
    (tmp_path / "texts.txt").write_text(TEXT + "\n")
    done = run(without_torch, "-m", "trainers", "predict", exported["ner"], tmp_path / "texts.txt", "--device", "cpu")
    # The folder holds exports too, but it is a run.
    assert done.returncode == 2
    assert re.search(r"needs torch: pip install torch, or give .*model\.int8\.onnx", done.stderr), done.stderr


def test_the_requirements_are_those_of_the_package_without_training(monkeypatch):
    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"]
    assert REQUIREMENTS["TRAINING"] < {re.match(r"[\w.-]+", line)[0] for line in lines}
    extras = project["optional-dependencies"]
    written = [f"{line}; extra == '{extra}'" for extra in ("serve", "test") for line in extras[extra]]
    serving = REQUIREMENTS["serving_requirements"]
    monkeypatch.setitem(serving.__globals__, "requires", lambda name: [*lines, *written])
    kept = [line for line in lines if re.match(r"[\w.-]+", line)[0] not in REQUIREMENTS["TRAINING"]]
    assert serving() == kept + extras["serve"]
