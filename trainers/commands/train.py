"""Verbs that train: train, and finish for a run that is to end where it is."""

from pathlib import Path
from typing import Annotated

import tyro

from trainers.config import RunConfig
from trainers.processes.failure import is_main


def train(config: RunConfig) -> None:
    """Train and test a model.

    lora-core train --data tner/bionlp2004 --model roberta-base --output-dir runs/lora
    """
    from trainers.experiment import dry_run, run

    if not config.data:
        raise ValueError("--data is missing: a folder, a name in $LORA_DATA_DIR, or a hub id such as tner/bionlp2004.")
    if config.dry_run:
        dry_run(config)
        return
    finished = run(config)
    if is_main():
        print(finished.summary)


def finish(run: Annotated[Path, tyro.conf.Positional]) -> None:
    """End an interrupted run where it is: the weights of its best epoch are saved and scored.

    What comes out is a finished run as any other. Where no epoch was scored yet, the weights of the last checkpoint
    count. To go on with the training instead, repeat its command with --resume auto.

        lora-core finish runs/lora

    Args:
        run: its folder.
    """
    from trainers.experiment import finish as end

    finished = end(run)
    if is_main():
        print(finished.summary)
