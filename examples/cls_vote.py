"""Finished classifiers vote, with weights that are fitted on validation data.

    torchrun examples/cls_agnews.py --models bert-lora bilstm-attention --output-dir runs/agnews   # some members
    python examples/cls_vote.py runs/agnews/bert-lora/seed-42 runs/agnews/bilstm-attention/seed-42

Members may be of any kind, if they were trained on the same data with the same labels. The table shows each member's
scores and weight, the uniform vote and the weighted one, and whether they beat the best member by more than chance;
vote.md and vote.json go into the output folder. It takes a pass of each member over validation and test data:
seconds on the sample.

Expect a vote of different models to gain a point or less over its best member, and a vote of like ones nothing.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from trainers.cli import exit_on_user_error
from trainers.finished import FinishedRun
from trainers.results.vote import vote, vote_table, write_vote


@dataclass(frozen=True)
class VoteConfig:
    """Let finished runs of text or image classification vote."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, two or more."""
    output_dir: Path = Path("runs/vote")
    """Where vote.md and vote.json go."""


def main() -> None:
    """Vote, and write the table."""
    config = tyro.cli(VoteConfig, args=sys.argv[1:], prog="cls_vote.py", description=VoteConfig.__doc__)
    found = vote([FinishedRun.open_fast(folder) for folder in config.runs])
    print(vote_table(found))
    for path in write_vote(found, config.output_dir):
        print(f"wrote {path}")


if __name__ == "__main__":
    exit_on_user_error(main)
