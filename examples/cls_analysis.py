"""Why does a text classifier err? Pictures, words and its worst errors, of a finished run.

    python examples/cls_analysis.py runs/cls_agnews/bert-lora/seed-42
    torchrun examples/cls_agnews.py --models lora-attention lora-penalty \\
        --confusing-words runs/cls_agnews/bert-lora/seed-42/analysis/confusing_words.txt

Written into RUN/analysis: analysis.md with the words of the most confused pair of labels (TF-IDF of the confused texts
against the recognised ones) and the texts whose true label the model found least likely, each with the words that
spoke for the wrong one (integrated gradients); confusing_words.txt for the attention head; confusion.png; and
vectors.png, the vectors that the last layer reads, by PCA and t-SNE. It takes about 20 seconds on the sample.

The words come from the validation split, so that a model may be trained with them and tested; --split test is for
looking only and writes no confusing_words.txt.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from trainers.cli import exit_on_user_error
from trainers.finished import FinishedRun
from trainers.results.errors import analyse, analysis_report, write_analysis


@dataclass(frozen=True)
class AnalysisConfig:
    """Look at the errors of a finished run of text classification."""

    run: Annotated[Path, tyro.conf.Positional]
    """Its folder."""
    split: Literal["validation", "test", "train"] = "validation"
    """Which texts to look at."""
    pairs: int = 1
    """Pairs of labels whose words are listed, the most confused first."""
    directions: Literal["one", "both"] = "both"
    """Of a pair take the more frequent confusion only, or both."""
    words: int = 15
    """Most words for each direction."""
    worst: int = 10
    """Texts to explain."""
    output_dir: Path | None = None
    """Where the files go; by default RUN/analysis."""


def main() -> None:
    """Analyse, and write the files."""
    config = tyro.cli(AnalysisConfig, args=sys.argv[1:], prog="cls_analysis.py", description=AnalysisConfig.__doc__)
    run = FinishedRun.open_fast(config.run)
    found = analyse(run, config.split, pairs=config.pairs, directions=config.directions, words=config.words,
                    worst=config.worst)  # fmt: skip
    print(analysis_report(found))
    for path in write_analysis(run, found, config.output_dir or config.run / "analysis"):
        print(f"wrote {path}")


if __name__ == "__main__":
    exit_on_user_error(main)
