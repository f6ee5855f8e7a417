"""Does the model learn anything? What an epoch's figures say of a run that has collapsed, or never begun to learn.

A score of 0, one class for every example, a loss that does not fall: such a run ends without an error, and its user
should hear of it in one line with what to try.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

LEAST_FALL = 0.01
"""Share of the first epoch's training loss by which the last one's is lower where something was learnt."""


def sign_of_failure(epochs: Sequence[dict[str, Any]], metric: str) -> str | None:
    """What is wrong with the last of these epochs; None where nothing is to be seen.

    Args:
        epochs: `epoch` events of metrics.jsonl, from the first epoch on.
        metric: the score that selects the best epoch.
    """
    scores = epochs[-1]["validation"]
    if metric != "loss" and scores.get(metric) == 0:
        return f"the validation {metric} is 0: nothing is predicted rightly"
    confusion = np.array(scores.get("confusion", []))  # (L, L), rows are true labels
    if confusion.ndim == 2 and (confusion.sum(0) > 0).sum() == 1 and (confusion.sum(1) > 0).sum() > 1:
        label = list(scores["types"])[int(confusion.sum(0).argmax())]
        return f"all {confusion.sum():,} validation examples are predicted to be {label!r}"
    if len(epochs) > 1 and scores.get("r2", 0) < 0:
        return (
            f"the validation R2 is {scores['r2']:.1%}, worse than the labels' mean for all would be: learn them scaled "
            "to a mean near 0 and a deviation near 1"
        )
    first, last = epochs[0]["train_loss"], epochs[-1]["train_loss"]
    if len(epochs) > 1 and last > (1 - LEAST_FALL) * first:
        return f"the training loss has not fallen: {first:.4f} in epoch 1, {last:.4f} in epoch {epochs[-1]['epoch']}"
    return None


def warning_of(epochs: Sequence[dict[str, Any]], metric: str, learning_rate: float, ended: bool) -> str | None:
    """What to tell the user after an epoch, and what to try; None where all is well, or was said after the first.

    Args:
        epochs: as for `sign_of_failure`.
        learning_rate: the peak rate of the run.
        ended: whether it was the last epoch, after which it is said again.
    """
    sign = sign_of_failure(epochs, metric) if ended or len(epochs) == 1 else None
    if sign is None:
        return None
    when = "At the end of training" if ended else "After the first epoch"
    hope = "Try" if ended else "If that stays, try"
    return (
        f"{when} {sign}. {hope} a learning rate three times lower or higher than {learning_rate:g} (--learning-rate), "
        "--warmup 0.1, or more epochs; `lora-core check-data` looks at the data."
    )
