"""One of the processes of a distributed run on texts with several labels and on numbers, under torchrun's environment:
`python two_processes_problem_types.py FOLDER`.
"""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import tiny
import torch
from safetensors.torch import save_file

import lora_core
from lora_core.models import build_model
from trainers.config import TrainConfig
from trainers.data.texts.encode import EncodedTexts
from trainers.loop import evaluate, fit
from trainers.processes.distributed import distributed
from trainers.tasks.classification import MultiLabelClassification, Regression

LABELS = {"multi_label_classification": ("a", "b", "c"), "regression": ("value",)}
TASKS = {"multi_label_classification": MultiLabelClassification(("a", "b", "c")), "regression": Regression(("value",))}
CONFIG = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "group_by_length": 3, "metric": "loss", "seed": 7}


def texts(kind, count, seed=0):
    """Random texts of 4 to 20 tokens; the last step of 61 has 5 of them for the two processes."""
    random = np.random.default_rng(seed)
    offsets = np.cumsum([0, *random.integers(4, 21, count)])
    ids = random.integers(5, 30, offsets[-1]).astype(np.int32)
    targets = (random.random((count, 3)) < 0.4) if kind == "multi_label_classification" else random.normal(2, 3, count)
    return EncodedTexts(ids, offsets, targets.astype(np.float32), 0, 0)


def build(kind, lora):
    model = build_model(tiny.build().config, "text-classification", LABELS[kind], seed=0)
    if lora:
        torch.manual_seed(0)
        lora_core.inject_lora(model, r=4, lora_dropout=0.0)
    return model


def train(kind, world, folder, *, lora, **changes):
    model = build(kind, lora)
    config = TrainConfig(**{**CONFIG, **changes})
    fit(model, TASKS[kind], texts(kind, 61), texts(kind, 9, seed=1), config, world, folder)
    return model


def scores(kind, model, world):
    return evaluate(model, TASKS[kind], texts(kind, 9, seed=1), TrainConfig(**CONFIG), world)


def main(root):
    logging.disable()
    with distributed() as world:
        for kind in TASKS:
            model = train(kind, world, root / kind, lora=True)
            trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
            save_file(trained, root / f"{kind}-{world.rank}.safetensors")
            (root / f"{kind}-{world.rank}.json").write_text(json.dumps(scores(kind, model, world)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
