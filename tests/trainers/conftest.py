import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lora_core.models import build_model, config_from_dict, save_pretrained
from trainers.cli import main
from trainers.data.images.processing import ImageProcessing
from trainers.processes.distributed import World
from trainers.run_folder import Run

LABELS = ["O", "B-DNA", "B-protein", "I-DNA", "I-protein"]


@pytest.fixture
def make_run():
    """Factory of finished runs: `make_run("runs/a", f1=0.7, support={"DNA": 2}, data="fin")`."""

    def make(folder, f1=0.7, support=None, data="bionlp2004", labels=LABELS, **settings):
        support = support or {"DNA": 100, "protein": 500}
        types = {name: {"precision": f1, "recall": f1, "f1": f1, "support": n} for name, n in support.items()}
        scores = {
            "precision": f1 + 0.01,
            "recall": f1 - 0.01,
            "f1": f1,
            "strict_f1": f1 - 0.05,
            "accuracy": 0.95,
        }
        scores |= {"loss": 0.25, "types": types}
        epochs = [
            {"event": "epoch", "epoch": epoch, "validation": {"loss": 0.3, "f1": f1 - 0.1 / epoch}}
            for epoch in (1, 2, 3)
        ]
        result = {
            "event": "result",
            "labels": labels,
            "test": scores,
            "validation": {**scores, "loss": 0.2},
            "trainable": 700_427,
            "total": 124_661_782,
            "seconds": 3723.4,
            "tokens_per_second": 2137.4,
            "peak_memory_bytes": 3_500_000_000,
            "best_epoch": 3,
        }
        return Run(Path(folder), Path(folder).name, {"data": data, **settings}, epochs, result)

    return make


def beside(name):
    """The module of a file beside this one."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny():
    """The module tiny.py, which the processes that tests start import too."""
    return beside("tiny")


@pytest.fixture(scope="session")
def device_watch():
    """The module device_watch.py."""
    return beside("device_watch")


@pytest.fixture(scope="session")
def meeting():
    """The module meeting.py."""
    return beside("meeting")


@pytest.fixture(scope="session")
def alone():
    """The world of a single process on the CPU."""
    return World(rank=0, size=1, device=torch.device("cpu"))


@pytest.fixture(scope="session")
def checkpoint(tiny, tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture(scope="session")
def data(tiny, tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="session")
def finished(tiny, checkpoint, data, tmp_path_factory):
    """Folders of finished runs, by method; tests leave them as they are."""
    root = tmp_path_factory.mktemp("finished")
    for method in ("lora", "full", "head"):
        main(
            tiny.arguments(
                checkpoint, data, root / method, "--method", method, "--target-modules", "qv", "--warmup", "0"
            )
        )
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture(scope="session")
def finished_text(tiny, checkpoint, tmp_path_factory):
    """The folder of a finished text classification run, many of whose texts are shortened at both ends."""
    root = tmp_path_factory.mktemp("finished_text")
    random = np.random.default_rng(5)
    for split, count in {"train": 24, "valid": 10, "test": 12}.items():
        rows = []
        for number in range(count):
            kind = ("DNA", "protein")[number % 2]
            words = random.choice(tiny.WORDS[kind] + tiny.WORDS["O"], random.integers(3, 30))
            rows.append(json.dumps({"text": " ".join(words), "label": kind}))
        (root / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    main(["train", "--task", "text-classification", "--model", str(checkpoint), "--data", str(root), "--output-dir",
          str(root / "run"), "--epochs", "2", "--batch-size", "4", "--learning-rate", "0.01", "--fresh-head",
          "--max-length", "12", "--long-text", "head_tail", "--target-modules", "all-linear"])  # fmt: skip
    return root / "run"


@pytest.fixture(scope="session")
def finished_image(tmp_path_factory):
    """The folder of a finished image classification run on files of pictures, in another size than the model's own."""
    root = tmp_path_factory.mktemp("finished_image")
    random = np.random.default_rng(0)
    for split, count in {"train": 12, "val": 6, "test": 7}.items():
        for number in range(count):
            name = ("dark", "bright")[number % 2]
            path = root / "data" / split / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 100, (20, 16, 3), dtype=np.uint8) + 150 * (number % 2)).save(path)
    config = config_from_dict({"model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 16,
                               "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32})  # fmt: skip
    save_pretrained(build_model(config, "image-classification", ["none"]), root / "model")
    ImageProcessing(size=(8, 8), resize_to=(8, 8)).save(root / "model")
    main(["train", "--task", "image-classification", "--model", str(root / "model"), "--data", str(root / "data"),
          "--output-dir", str(root / "run"), "--epochs", "2", "--batch-size", "4", "--learning-rate", "0.01",
          "--fresh-head", "--image-size", "12", "--target-modules", "query", "value"])  # fmt: skip
    return root / "run"
