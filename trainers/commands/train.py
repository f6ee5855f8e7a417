"""Verbs that train: train, and finish for a run that is to end where it is."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from trainers.config import RunConfig
from trainers.processes.failure import is_main


@dataclass(frozen=True)
class TrainSettings(RunConfig):
    """A whole run: model, data, method and the training loop's choices; or several that differ in their seed."""

    seeds: int = 1
    """Runs with the seeds seed, seed + 1, and so on, each in the folder seed-N of output_dir; then the mean of their
    scores with its interval, here and in seeds.md. With --resume auto those that are finished are read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "seeds")


def train(config: TrainSettings) -> None:
    """Train and test a model.

    lora-core train --data tner/bionlp2004 --model roberta-base --output-dir runs/lora
    """
    from trainers.experiment import dry_run, run

    if not config.data:
        raise ValueError("--data is missing: a folder, a name in $LORA_DATA_DIR, or a hub id such as tner/bionlp2004.")
    if config.dry_run:
        dry_run(config)
        return
    one = RunConfig(**{field.name: getattr(config, field.name) for field in fields(RunConfig)})
    if config.seeds > 1:
        _train_seeds(one, config.seeds)
        return
    finished = run(one)
    if is_main():
        print(finished.summary)


def _train_seeds(config: RunConfig, seeds: int) -> None:
    from trainers.series.seeds import run_seeds, seeds_report, write_seeds

    runs = run_seeds(config, seeds)
    if is_main():
        print(f"\n{seeds_report(runs)}")
        for path in write_seeds(runs, config.output_dir):
            print(path)


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
