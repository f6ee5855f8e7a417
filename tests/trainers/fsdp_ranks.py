"""One of two processes that share out a model: `python fsdp_ranks.py FOLDER`, under torchrun's environment."""

import dataclasses
import json
import logging
import shutil
import sys
from pathlib import Path

import tiny
import torch
from safetensors.torch import save_file

from trainers.config import TrainConfig
from trainers.loop import evaluate, fit
from trainers.processes.distributed import distributed
from trainers.processes.fsdp import is_sharded, whole
from trainers.tasks.token import TokenClassification
from trainers.training.state import trained_tensors

# 45 windows in batches of 8, of which the last has 5; 40 tokens a pass make other numbers of passes on each process.
TRAIN, VALIDATION = tiny.windows(45), tiny.windows(23, seed=1)
CONFIG = TrainConfig(epochs=2, batch_size=8, learning_rate=1e-3, warmup=0.2, weight_decay=0.1, max_grad_norm=0.5,
                     group_by_length=3, micro_batch_tokens=40, metric="loss", seed=7, keep_checkpoints=2,
                     ema_decay=0.7, parallel="fsdp")  # fmt: skip
METHODS = {"lora": True, "full": False}
STEPS = 6  # of an epoch
TASK = TokenClassification(tiny.LABELS)


def train(folder, world, *, lora, dropout=0.0, resume_from=None, **changes):
    """The model after training; the weights that are not trained depend on nothing."""
    model = tiny.build(dropout=dropout, lora=lora)
    fit(model, TASK, TRAIN, VALIDATION, dataclasses.replace(CONFIG, **changes), world, folder, resume_from)
    return model


def local_share(model):
    """Which share of the parameters' elements this process holds."""
    held = sum(p.to_local().numel() for p in model.parameters())
    return held / sum(p.numel() for p in model.parameters())


def resumed(name, source, root, world, **changes):
    """A run that goes on after its first epoch from the checkpoint of another."""
    if world.is_main:
        shutil.copytree(root / source, root / name)
        shutil.rmtree(root / name / "checkpoints" / f"step-{2 * STEPS}")
    world.barrier()
    torch.rand(3 + world.rank)
    return train(root / name, world, resume_from=root / name / "checkpoints" / f"step-{STEPS}", **changes)


def main(root):
    logging.disable()
    report = {}
    with distributed() as world:
        for name, lora in METHODS.items():
            for parallel in ("ddp", "fsdp"):
                folder = root / f"{name}, {parallel}"
                model = train(folder, world, lora=lora, parallel=parallel)
                report[folder.name] = {
                    "sharded": is_sharded(model),
                    "share": local_share(model) if is_sharded(model) else 1.0,
                    "scores": evaluate(model, TASK, VALIDATION, CONFIG, world),
                }
                tensors = {key: value.detach() for key, value in whole(trained_tensors(model)).items()}
                save_file(tensors, root / f"{folder.name}, {world.rank}.safetensors")
        train(root / "straight", world, lora=True, dropout=0.2)
        # Layers that are put together again, and computed again, for the backward pass change nothing.
        resumed("again", "straight", root, world, lora=True, dropout=0.2, gradient_checkpointing=True)
        resumed("from ddp", "lora, ddp", root, world, lora=True)
    (root / f"report-{world.rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
