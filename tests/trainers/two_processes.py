"""One of the processes of a distributed run: `python two_processes.py FOLDER`, under torchrun's environment."""

import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import tiny
import torch
from safetensors.torch import save_file

from trainers.config import TrainConfig
from trainers.data.tokens.windows import TokenWindows
from trainers.loop import evaluate, fit
from trainers.processes.distributed import distributed
from trainers.tasks.token import TokenClassification
from trainers.training.state import trained_tensors

# 153 windows in batches of 8: 20 steps, of which the last has one window for the two processes.
TRAIN, VALIDATION = tiny.windows(153), tiny.windows(23, seed=1)
CONFIG = TrainConfig(epochs=1, batch_size=8, learning_rate=1e-3, warmup=0.2, weight_decay=0.1, max_grad_norm=0.5,
                     group_by_length=3, metric="loss", seed=7)  # fmt: skip
RUNS = {
    "full": (False, {}),
    "lora": (True, {}),
    "full, micro-batches": (False, {"micro_batch_size": 2}),
    "lora, micro-batches": (True, {"micro_batch_size": 2}),
    "lora, gradient checkpointing": (True, {"gradient_checkpointing": True}),
}


def train(name, world, folder):
    lora, changes = RUNS[name]
    model = tiny.build(lora=lora)
    config = TrainConfig(**{**vars(CONFIG), **changes})
    state = fit(model, TokenClassification(tiny.LABELS), TRAIN, VALIDATION, config, world, folder)
    assert state.step == 20
    return model


def evaluate_and_note(model, world):
    """The scores on the training data, and which windows this process predicted for them."""
    seen = []
    collate = TokenWindows.collate

    def note(self, indices, epoch=None):
        seen.extend(int(index) for index in indices)
        return collate(self, indices)

    TokenWindows.collate = note
    scores = evaluate(model, TokenClassification(tiny.LABELS), TRAIN, CONFIG, world)
    TokenWindows.collate = collate
    return scores, seen


def exchanged_elements(world):
    """Elements of the gradients exchanged for a LoRA step of three micro-batches, and of the parameters."""
    model = tiny.build(lora=True)
    parallel = world.wrap(model)
    counted = []

    def count(_, bucket):
        counted.append(bucket.buffer().numel())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    parallel.register_comm_hook(None, count)
    for number in range(3):
        inputs, labels = TRAIN.collate(np.arange(4))
        with world.accumulate(parallel, last=number == 2):
            TokenClassification(tiny.LABELS).loss_sum(parallel(**inputs), labels).backward()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"exchanged": sum(counted), "trainable": trainable, "all": sum(p.numel() for p in model.parameters())}


def resume_equals_straight(world, root):
    """Bit for bit, with a dropout of its own on each process; whether this process's weights and files agree."""
    config = TrainConfig(**{**vars(CONFIG), "epochs": 2, "keep_checkpoints": 2, "ema_decay": 0.7})
    task = TokenClassification(tiny.LABELS)
    straight = tiny.build(dropout=0.2, lora=True)
    fit(straight, task, TRAIN, VALIDATION, config, world, root / "straight")
    if world.is_main:
        shutil.copytree(root / "straight", root / "resumed")
        shutil.rmtree(root / "resumed" / "checkpoints" / "step-40")
    world.barrier()
    torch.rand(3 + world.rank)
    resumed = tiny.build(dropout=0.2, lora=True, seed=9)
    checkpoint = root / "resumed" / "checkpoints" / "step-20"
    # The frozen weights are no part of a checkpoint: they are the model's own.
    resumed.load_state_dict({**resumed.state_dict(), **frozen(straight)})
    fit(resumed, task, TRAIN, VALIDATION, config, world, root / "resumed", resume_from=checkpoint)
    return all(a.equal(b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def frozen(model):
    return {name: p for name, p in model.named_parameters() if not p.requires_grad}


class OfTwo(ValueError):
    """An error that cannot be pickled: its constructor takes two arguments."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def fail_on_main(world, error):
    def compute():
        assert world.is_main
        raise error

    try:
        world.from_main(compute)
    except (ValueError, OSError) as raised:
        return [type(raised).__name__, str(raised)]


def main(root):
    logging.disable()
    with distributed() as world:
        report = {"world": [world.rank, world.size, world.device.type], "main": world.is_main}
        report["gathered"] = world.gather({"rank": world.rank})
        report["from main"] = world.from_main(lambda: world.rank + 100)
        report["errors of main"] = [
            fail_on_main(world, ValueError("only the main process looked")),
            fail_on_main(world, OSError(28, "No space left on device", "run")),
            fail_on_main(world, OfTwo("one", "two")),
        ]
        with distributed() as inner:
            report["nested"] = [inner.rank, inner.size]
        report["after nested"] = world.gather(world.rank)
        report["elements"] = exchanged_elements(world)
        models = {name: train(name, world, root / name) for name in RUNS}
        for name, model in models.items():
            save_file(
                {n: t.detach() for n, t in trained_tensors(model).items()}, root / f"{name}, {world.rank}.safetensors"
            )
        report["scores"], report["evaluated"] = evaluate_and_note(models["full"], world)
        report["resumed"] = resume_equals_straight(world, root)
    report["closed"] = not torch.distributed.is_initialized()
    (root / f"report-{world.rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
