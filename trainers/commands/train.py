"""Verbs that train: train, and finish for a run that is to end where it is."""

from trainers.config import RunConfig
from trainers.processes.failure import is_main


def train(config: RunConfig) -> None:
    """Train and test a model.

    lora-core train --data tner/bionlp2004 --model roberta-base --output-dir runs/lora
    """
    from trainers.experiment import run

    if not config.data:
        raise ValueError("--data is missing: a folder, a name in $LORA_DATA_DIR, or a hub id such as tner/bionlp2004.")
    finished = run(config)
    if is_main():
        print(finished.summary)
