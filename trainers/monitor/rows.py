"""The figures of a run as rows of tables: of each evaluation while it runs, and of its scores when it is over."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from trainers.run_folder import Run
from trainers.show import IN_OWN_UNIT, fitted_table, score_text

PARTS = (("f1", "precision", "recall"), ("pearson", "spearman", "r2"))
"""Scores that are read together: the first and what it is made of, or looked at beside."""
MOST_SCORES = 3
"""Scores in the row of an evaluation."""
TITLES = {"f1": "F1", "precision": "prec.", "pearson": "r", "spearman": "rho", "r2": "R2", "accuracy": "acc."}
"""Of scores, short enough for the head of a column; the others go by their names."""
OTHERS = {"accuracy": "accuracy", "macro_f1": "macro F1", "strict_f1": "strict F1", "samples_f1": "F1 by example"}
"""Scores that stand below the table of the end."""
MOST_TYPES = 20
"""Entity types or labels with a row of their own at the end."""
BEST = "*"
"""Marks the row of the best epoch so far."""


class EvaluationRows:
    """The rows of a run's evaluations: what is known once the first has been scored, and a row for each."""

    def __init__(self, metric: str, scores: Mapping[str, Any], epochs: int, total_steps: int, unit: str) -> None:
        """
        Args:
            metric: the score that selects the best epoch.
            scores: those of an evaluation.
            unit: what the rate counts: tokens or images.
        """
        self._epochs, self._scores = epochs, shown_scores(metric, scores)
        titles = [TITLES.get(name, name) for name in self._scores]
        rate = {"tokens": "tok/s", "images": "img/s"}.get(unit, f"{unit}/s")
        self.header = ["epoch", "step", "train", "valid", *titles, "lr", rate, "time", " "]
        least = [5, len(str(total_steps)), 7, 7, *(6 for _ in titles), 7, 6, 7, 1]
        self.widths = [max(width, len(title)) for width, title in zip(least, self.header, strict=True)]

    def cells(self, event: Mapping[str, Any], elapsed: float, best: bool) -> list[str]:
        """The row of an `epoch` event of metrics.jsonl."""
        scores = event["validation"]
        return [
            f"{event['epoch']}/{self._epochs}",
            str(event["step"]),
            f"{event['train_loss']:.4f}",
            f"{scores['loss']:.4f}" if "loss" in scores else "",
            *(score_text(name, scores[name]) for name in self._scores),
            f"{event['learning_rate']:.1e}" if event["learning_rate"] else "0",
            f"{event['tokens_per_second']:,.0f}",
            clock_text(elapsed),
            BEST if best else "",
        ]


def shown_scores(metric: str, scores: Mapping[str, Any]) -> list[str]:
    """The score that selects the best epoch, and those that explain it; the loss has its own column."""
    first = [metric] if metric not in IN_OWN_UNIT else []
    related = [name for names in PARTS if names[0] in scores for name in names]
    return [name for name in dict.fromkeys([*first, *related]) if name in scores][:MOST_SCORES]


def clock_text(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def scores_table(scores: Mapping[str, Any], width: int | None = None) -> str:
    """The scores of a split: precision, recall, F1 and number of each entity type or label, and over all; or what there
    is of numbers. In percent, of many types the most frequent.

    Args:
        width: columns of the table; None: those of the terminal, or 100.
    """
    types: Mapping[str, Mapping[str, Any]] = scores.get("types", {})
    if not types:
        named = [(name, value) for name, value in scores.items() if isinstance(value, (int, float))]
        return fitted_table([["score", ""], *([name, score_text(name, value)] for name, value in named)], width=width)
    frequent = sorted(types, key=lambda name: -types[name]["support"])[:MOST_TYPES]
    rows = [["", "precision", "recall", "F1", "number"]]
    rows += [_type_row(name if len(name) <= 48 else f"{name[:47]}…", types[name]) for name in frequent]
    name = "all" if "macro_f1" in scores else "macro"  # of one label each, they are means over the labels
    rows.append(_type_row(name, {**scores, "support": sum(of["support"] for of in types.values())}))
    more = len(types) - len(frequent)
    table = fitted_table(rows, width=width)
    others = [f"{title} {score_text(name, scores[name])}" for name, title in OTHERS.items() if name in scores]
    below = [f"{more} rarer ones are left out"] if more else []
    return f"{table}\n({', '.join([*others, *below])}; in percent)"


def _type_row(name: str, scores: Mapping[str, Any]) -> list[str]:
    shown = [score_text(key, scores[key]) for key in PARTS[0]]
    return [name, shown[1], shown[2], shown[0], f"{scores['support']:,}"]


def ending(run: Run) -> str:
    """What is said at the end of a run: its scores by entity type or label, where everything is, what to do next."""
    split = "test" if "test" in run.result else "validation"
    folder, weights = run.folder, run.files.weights(run.config.get("method", "lora"))
    best = run.result.get("best_epoch")
    kept = f", weights of epoch {best}" if best and len(run.epochs) > 1 else ""
    places = [
        [f"{weights.name}/", "what was trained, for predict, export and serve"],
        ["metrics.jsonl", "all figures"],
        ["predictions/", "predicted and true labels"],
        ["config.json", "the settings"],
    ]
    width = max(len(place) for place, _ in places)
    listed = [f"  {place.ljust(width)}  {what}" for place, what in places]
    commands = [f"  {line}" for line in next_commands(run)]
    scores = [f"Scores of the {split} split{kept}", scores_table(run.result[split])]
    return "\n".join([*scores, "", f"Written into {folder}", *listed, "", "Next", *commands])


def next_commands(run: Run) -> Sequence[str]:
    """Three commands that one would type now."""
    input_ = "PICTURES" if run.config.get("task") == "image-classification" else "TEXTS.txt"
    folder = shlex.quote(str(run.folder))
    return f"lora-core report {folder}", f"lora-core predict {folder} {input_}", f"lora-core export {folder}"
