"""Several classifiers vote: each label's probability is a weighted mean over the members, with weights from validation.

Weights are the ones under which the validation labels are most likely: the mixture weights of the members'
probabilities, found by EM (Dempster, Laird and Rubin 1977). The likelihood is concave in them, so there is one
maximum, and members that add nothing get weight zero.

Shapes: K members, N examples, L labels.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lora_core.files import write_json, write_text
from trainers.finished import FinishedRun
from trainers.results.compare import distinct_names
from trainers.results.significance import difference, p_text
from trainers.show import markdown_table
from trainers.tasks.label_scores import classification_metrics, label_counts

STEPS, TOLERANCE = 10_000, 1e-10
SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Voter:
    """A member, or a vote of all. Scores are from 0 to 1."""

    name: str
    weight: float | None
    """Of a member in the weighted vote; None for the votes."""
    accuracy: dict[str, float]
    """By split."""
    f1: dict[str, float]
    """Macro F1 by split."""
    interval: tuple[float, float] | None
    """95 % interval of the test F1 minus that of the best member, in points; None for that member."""
    p: float | None
    """McNemar's p of the test predictions against the best member's."""


@dataclass(frozen=True)
class Vote:
    """What `vote` found."""

    data: str
    best: str
    """The member with the best validation accuracy: what a user without the vote would take."""
    voters: list[Voter]
    """The members as they were given, then the uniform and the weighted vote."""


def vote(runs: Sequence[FinishedRun]) -> Vote:
    """Fit weights on the validation split, and score members and votes on both splits.

    Raises:
        ValueError: fewer than two runs, a run given twice, or runs with other tasks, data or labels.
    """
    check_members(runs)
    names = distinct_names([member.run for member in runs])
    gold = {split: runs[0].examples(split).targets for split in SPLITS}
    found = {split: np.stack([member.probabilities(member.examples(split)) for member in runs]) for split in SPLITS}
    weights = fit_weights(found["validation"], gold["validation"])
    uniform = np.full(len(runs), 1 / len(runs))
    mixtures = {**dict(zip(names, np.eye(len(runs)), strict=True)), "uniform vote": uniform, "weighted vote": weights}
    predicted = {name: {split: np.tensordot(mixture, found[split], 1).argmax(-1) for split in SPLITS}
                 for name, mixture in mixtures.items()}  # fmt: skip
    best = max(names, key=lambda name: float(np.mean(predicted[name]["validation"] == gold["validation"])))
    labels = runs[0].labels
    voters = []
    for position, (name, of_split) in enumerate(predicted.items()):
        scores = {split: classification_metrics(gold[split], of_split[split], labels) for split in SPLITS}
        interval, p = None, None
        if name != best:
            ids, other, true = (list(one[:, None]) for one in (of_split["test"], predicted[best]["test"], gold["test"]))
            against = difference(ids, other, true, labels, label_counts)
            interval, p = (against.f1_low, against.f1_high), against.p
        voters.append(
            Voter(
                name,
                float(weights[position]) if position < len(runs) else None,
                accuracy={split: scores[split]["accuracy"] for split in SPLITS},
                f1={split: scores[split]["f1"] for split in SPLITS},
                interval=interval,
                p=p,
            )
        )
    return Vote(runs[0].config.data, best, voters)


def check_members(runs: Sequence[FinishedRun]) -> None:
    """Raises ValueError for runs that cannot vote together."""
    if len(runs) < 2:
        raise ValueError(f"A vote needs at least two runs, but {len(runs)} was given: name two or more folders.")
    first = runs[0]
    for member in runs:
        member.check_one_label()
        where = member.run.folder
        if member.config.task != first.config.task:
            raise ValueError(f"{first.run.folder} did {first.config.task} but {where} {member.config.task}.")
        if Path(member.config.data).name != Path(first.config.data).name:
            raise ValueError(
                f"{first.run.folder} used the data {first.config.data!r} but {where} "
                f"{member.config.data!r}: only runs on the same data can vote."
            )
        if member.labels != first.labels:
            raise ValueError(
                f"{first.run.folder} has the labels {list(first.labels)} but {where} has "
                f"{list(member.labels)}: only runs with the same labels can vote."
            )
        for split in SPLITS:
            if not np.array_equal(member.examples(split).targets, first.examples(split).targets):
                raise ValueError(f"The {split} split of {where} holds other examples than that of {first.run.folder}.")


def fit_weights(probabilities: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Weights (K,), at least 0 and of sum 1, under which the labels `gold` (N,) are most likely.

    `probabilities`: (K, N, L), of each member for each label.
    """
    own = np.maximum(probabilities[:, np.arange(len(gold)), gold], np.finfo(np.float64).tiny)  # (K, N) of the truth
    weights = np.full(len(own), 1 / len(own))
    for _ in range(STEPS):
        shares = weights[:, None] * own
        updated = (shares / shares.sum(0)).mean(1)
        moved = np.abs(updated - weights).max()
        weights = updated
        if moved < TOLERANCE:
            break
    return weights / weights.sum()


def vote_table(vote: Vote) -> str:
    """A Markdown table; scores in percent."""
    header = [
        "member",
        "weight",
        "val. accuracy",
        "val. F1",
        "test accuracy",
        "test F1",
        "F1 against best",
        "McNemar p",
    ]
    rows = []
    for voter in vote.voters:
        scores = [f"{100 * of[split]:.2f}" for split in SPLITS for of in (voter.accuracy, voter.f1)]
        low, high = voter.interval or (0.0, 0.0)
        against = ["best member", ""] if voter.p is None else [f"{low:+.2f} to {high:+.2f}", p_text(voter.p)]
        rows.append([voter.name, "" if voter.weight is None else f"{voter.weight:.3f}", *scores, *against])
    return (
        f"{markdown_table(header, rows)}\n\n{Path(vote.data).name}. Weights maximise the likelihood of the validation "
        "labels. Against best: 95 % paired bootstrap interval of the test F1 minus that of the member with the best "
        "validation accuracy, in points.\n"
    )


def write_vote(vote: Vote, folder: str | Path) -> list[Path]:
    """Write vote.md and vote.json into `folder`; return their paths."""
    folder = Path(folder)
    return [write_text(folder / "vote.md", vote_table(vote)), write_json(folder / "vote.json", asdict(vote))]
