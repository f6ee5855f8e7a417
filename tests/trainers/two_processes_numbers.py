"""One of two processes whose training meets an example that gives no number, under torchrun's environment:
`python two_processes_numbers.py FOLDER`.

FOLDER receives report-RANK.json: how the training of this process ended, and whether the weights are those before it.
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import tiny
import torch

from trainers.config import TrainConfig
from trainers.loop import fit
from trainers.processes.distributed import distributed
from trainers.tasks.token import TokenClassification

CONFIG = TrainConfig(epochs=2, batch_size=8, micro_batch_size=2, learning_rate=1e-3, metric="loss", seed=7)
RARE = len(tiny.VOCABULARY) - 1
"""The token that no example but the poisoned one holds, and whose embedding is NaN."""
POISONED = 37


def poisoned(data):
    """The data with the rare token in one example alone."""
    ids = np.where(data.input_ids == RARE, RARE - 1, data.input_ids)
    ids[data.offsets[POISONED] + 1] = RARE
    return dataclasses.replace(data, input_ids=ids.astype(np.int32))


def model_with_a_hole():
    """A model that gives NaN for the rare token."""
    model = tiny.build()
    with torch.no_grad():
        model.base_model.embeddings.word_embeddings.weight[RARE] = float("nan")
    return model


def main(folder):
    with distributed() as world:
        model, steps = model_with_a_hole(), []

        class Watched(TokenClassification):
            def training_loss_sum(self, logits, labels):
                steps.append(tiny.weights(model))
                return super().training_loss_sum(logits, labels)

        report = {"error": None}
        try:
            fit(model, Watched(tiny.LABELS), poisoned(tiny.windows(80)), tiny.windows(9, 1), CONFIG, world, folder)
        except FloatingPointError as error:
            report["error"] = str(error)
        now = tiny.weights(model)
        report["unchanged"] = all(torch.allclose(now[name], steps[-1][name], 0, 0, equal_nan=True) for name in now)
        (folder / f"report-{world.rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
