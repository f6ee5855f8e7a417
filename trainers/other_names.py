"""What a setting, a flag or a verb that is not ours was meant to be: the nearest of ours, or our name for one of
transformers' Trainer, its example scripts, or PEFT.
"""

import difflib
from collections.abc import Iterable

OURS = {
    "lr": "learning-rate",
    "num-train-epochs": "epochs",
    "num-epochs": "epochs",
    "max-epochs": "epochs",
    "per-device-train-batch-size": "batch-size",
    "per-gpu-train-batch-size": "batch-size",
    "train-batch-size": "batch-size",
    "per-device-eval-batch-size": "micro-batch-size",
    "gradient-accumulation-steps": "micro-batch-size",
    "auto-find-batch-size": "micro-batch-tokens",
    "model-name-or-path": "model",
    "model-name": "model",
    "tokenizer-name": "tokenizer",
    "task-name": "task",
    "dataset": "data",
    "dataset-name": "data",
    "data-dir": "data",
    "train-file": "data",
    "max-seq-length": "max-length",
    "max-seq-len": "max-length",
    "model-max-length": "max-length",
    "max-train-samples": "train-examples",
    "max-eval-samples": "test-examples",
    "max-predict-samples": "test-examples",
    "text-column-name": "text-column",
    "label-column-name": "label-column",
    "warmup-ratio": "warmup",
    "warmup-steps": "warmup",
    "lr-scheduler": "schedule",
    "lr-scheduler-type": "schedule",
    "scheduler": "schedule",
    "clip-grad-norm": "max-grad-norm",
    "gradient-clip-val": "max-grad-norm",
    "fp16": "precision fp16",
    "bf16": "precision bf16",
    "mixed-precision": "precision",
    "load-in-8bit": "frozen int8",
    "fsdp": "parallel fsdp",
    "ddp-timeout": "timeout",
    "save-steps": "checkpoint-steps",
    "save-total-limit": "keep-checkpoints",
    "resume-from-checkpoint": "resume",
    "report-to": "track",
    "overwrite-output-dir": "overwrite",
    "output": "output-dir",
    "out-dir": "output-dir",
    "dataloader-num-workers": "workers",
    "num-workers": "workers",
    "metric-for-best-model": "metric",
    "early-stopping-patience": "patience",
    "label-smoothing-factor": "label-smoothing",
    "random-seed": "seed",
    "lora-r": "r",
    "lora-rank": "r",
    "rank": "r",
    "alpha": "lora-alpha",
    "lora-target-modules": "target-modules",
    "lora-bias": "bias",
    "dropout": "hidden-dropout",
    "dora": "use-dora",
    "rslora": "use-rslora",
    "init-lora": "init-lora-weights",
    "freeze": "method head",
    "batch": "batch-size",
}
"""Our settings by the names that others give them; with a value, where the other is a switch."""


def meant(name: str, ours: Iterable[str]) -> str | None:
    """Which of our names a wrong one was meant to be, perhaps with a value behind it; None: none is like it.

    Args:
        name: with - or _ between its words.
        ours: the names that there are, with - between their words.
    """
    name, known = name.replace("_", "-").lower(), list(ours)
    elsewhere = OURS.get(name)
    if elsewhere is not None and elsewhere.split()[0] in known:
        return elsewhere
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return near[0] if near else next((other for other in known if name in other.split("-")), None)
