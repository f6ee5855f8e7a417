import importlib.util
from pathlib import Path

import pytest
import torch

from trainers.cli import main
from trainers.distributed import World
from trainers.runs import Run

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


@pytest.fixture(scope="session")
def tiny():
    """The module tiny.py, which the processes that tests start import too."""
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
        main(tiny.arguments(checkpoint, data, root / method, "--method", method))
    return {folder.name: folder for folder in root.iterdir()}
