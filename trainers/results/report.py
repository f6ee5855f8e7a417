"""A finished run on one page, report.html: scores, curves, confusions, errors in their own words, settings.

The page is one file without scripts that needs no network: pictures are part of it.
"""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from lora_core.files import write_text
from trainers.config import RunConfig
from trainers.data.images.decode import decode
from trainers.data.tokens.bio import entity_types, find_entities
from trainers.finished import FinishedRun
from trainers.results.confusion import NO_ENTITY, confusion_picture, entity_confusion
from trainers.run_folder import Run, has_predictions, read_predictions
from trainers.show import COLOURS, blank_figure, duration, plain_axes

SHOWN_CHARACTERS = 600
"""Most characters of a text that are shown."""
MAX_CONFUSED = 36
"""Most labels whose confusions are drawn."""
SCORES = {
    "f1": "F1, %",
    "strict_f1": "strict F1, %",
    "macro_f1": "macro F1, %",
    "samples_f1": "F1 by example, %",
    "precision": "precision, %",
    "recall": "recall, %",
    "accuracy": "accuracy, %",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "r2": "R2",
    "mae": "mean absolute error",
}
"""Names on the page; what is a share is shown in percent."""


@dataclass(frozen=True)
class Mistake:
    """An example that the model got wrong, for the page."""

    number: int
    """Its place in the split, from 1."""
    true: Any
    """The label, or for a sentence its parts (text, type of the entity or None)."""
    predicted: Any
    """What the model said, in the same form."""
    text: str = ""
    picture: str = ""
    """As a data URI."""


def write_report(folder: str | Path, errors: int = 20) -> Path:
    """Write report.html into the folder of a finished run, and return its path.

    Args:
        errors: most examples to show that the model got wrong.

    Raises:
        ValueError: the folder is not that of a finished run.
    """
    finished = FinishedRun.open(folder)
    run, split = finished.run, finished.scored_split
    config = RunConfig.from_dict(run.config, str(folder))
    problem_type = finished.problem_type
    mistakes, wrong, problem = [], 0, ""
    try:
        predicted, gold = finished.predictions(split)
        wrong = sum(not np.array_equal(guess, true) for guess, true in zip(predicted, gold, strict=True))
        mistakes = find_mistakes(finished, split, errors)
    except (ValueError, OSError) as error:  # the rest of the page needs no data
        problem = str(error)
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = templates.get_template("report.html.jinja").render(
        run=run,
        config=config,
        split=split,
        result=run.result,
        scores=run.result[split],
        problem_type=problem_type,
        cards=_cards(run.result[split], problem_type),
        duration=duration,
        curves=_curves(run, finished.metric) if run.epochs else "",
        confusion=_confusion(run, split),
        mistakes=mistakes,
        wrong=wrong,
        problem=problem,
        settings=_settings(config),
    )
    return write_text(finished.files.report, page)


def _cards(scores: dict[str, Any], problem_type: str | None) -> list[tuple[str, str]]:
    """(Value, name) of the scores on top of the page. Macro F1 is that of several labels, where F1 is another."""
    names = {key: name for key, name in SCORES.items() if key in scores}
    if problem_type != "multi_label_classification":
        names.pop("macro_f1", None)
    return [
        (f"{100 * scores[key]:.2f}" if name.endswith("%") else f"{scores[key]:.4f}", name)
        for key, name in names.items()
    ]


def find_mistakes(run: FinishedRun, split: str, limit: int) -> list[Mistake]:
    """Sentences with the most wrong words; or texts or images, one of every confusion in turn, frequent ones first;
    with several labels those with the most wrong ones, with numbers those that are furthest off.

    Raises:
        ValueError: the run has no predictions for the split, or its data is gone or has changed since.
    """
    dataset, (predicted, gold) = run.examples(split), run.predictions(split)
    if run.problem_type == "regression":
        wrong = [abs(float(guess[0] - true[0])) for guess, true in zip(predicted, gold, strict=True)]
        chosen = sorted(np.flatnonzero(wrong).tolist(), key=lambda index: -wrong[index])[:limit]
    elif run.problem_type == "single_label_classification":
        chosen = in_turns(np.concatenate(gold), np.concatenate(predicted))[:limit]
    else:
        wrong = [int((guess != true).sum()) for guess, true in zip(predicted, gold, strict=True)]
        chosen = sorted(np.flatnonzero(wrong).tolist(), key=lambda index: -wrong[index])[:limit]
    return [
        _mistake(
            index,
            run.kind.shown(dataset, index),
            *(_names(run, ids[index]) for ids in (gold, predicted)),
        )
        for index in chosen
    ]


def _names(run: FinishedRun, answer: np.ndarray) -> list[str]:
    """The labels of one example, by word for a sentence; else one string."""
    if run.problem_type == "regression":
        return [f"{answer[0]:.4g}"]
    if run.problem_type == "multi_label_classification":
        return [", ".join(run.labels[index] for index in np.flatnonzero(answer)) or "(no label)"]
    return [run.labels[int(tag)] for tag in answer]


def _mistake(index: int, shown: Any, true: list[str], guess: list[str]) -> Mistake:
    """An example with its labels, as the page shows it: ``shown`` is a list of words, a text or a picture."""
    if isinstance(shown, list):
        return Mistake(index + 1, parts(shown, true), parts(shown, guess))
    if isinstance(shown, str):
        text = shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]} …"
        return Mistake(index + 1, true[0], guess[0], text=text)
    return Mistake(index + 1, true[0], guess[0], picture=_image_uri(decode(shown)))


def in_turns(gold: np.ndarray, predicted: np.ndarray) -> list[int]:
    """Indices of the wrong predictions (N,): the first of every confused pair of labels, then the second, ...

    Within a turn the pairs come in order of their number of errors.
    """
    pairs = list(zip(gold.tolist(), predicted.tolist(), strict=True))
    wrong = np.flatnonzero(gold != predicted).tolist()
    frequency = Counter(pairs[index] for index in wrong)
    seen: Counter[tuple[int, int]] = Counter()
    turns = {}
    for index in wrong:
        turns[index] = seen[pairs[index]]
        seen[pairs[index]] += 1
    return sorted(wrong, key=lambda index: (turns[index], -frequency[pairs[index]], pairs[index]))


def parts(words: Sequence[str], tags: Sequence[str]) -> list[tuple[str, str | None]]:
    """A tagged sentence as consecutive (text, type): entities with their type, what lies between with None."""
    found = []
    end = 0
    for kind, start, stop in sorted(find_entities(tags, strict=False), key=lambda entity: entity[1]):
        found += [(" ".join(words[end:start]), None), (" ".join(words[start:stop]), kind)]
        end = stop
    return [(text, kind) for text, kind in [*found, (" ".join(words[end:]), None)] if text]


def _curves(run: Run, metric: str) -> str:
    """Loss and scores by epoch, as a data URI."""
    figure = blank_figure(10, 3.4)
    epochs = [event["epoch"] for event in run.epochs]
    losses, scores = figure.subplots(1, 2)
    losses.plot(epochs, [event["train_loss"] for event in run.epochs], "o-", color=COLOURS[0], label="training")
    losses.plot(
        epochs, [event["validation"]["loss"] for event in run.epochs], "s-", color=COLOURS[1], label="validation"
    )
    losses.set(title="Loss", xlabel="epoch")
    shown = ["f1", "accuracy"] if "f1" in run.result["validation"] else ["pearson", "spearman"]
    for name, colour in zip(dict.fromkeys([*shown, metric]), COLOURS, strict=False):
        values = [100 * event["validation"][name] for event in run.epochs]
        label = SCORES.get(name, name).removesuffix(", %")
        scores.plot(epochs, values, "o-", color=colour, label=label)
    scores.set(title="Validation scores, %", xlabel="epoch")
    for axes in (losses, scores):
        plain_axes(axes)
        axes.locator_params(axis="x", integer=True)
        axes.axvline(run.result["best_epoch"], color="0.7", linestyle=":", label="kept")
        axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return _uri(picture)


def _confusion(run: Run, split: str) -> str:
    """The confusion matrix, of labels or of entity types, as a data URI; "" where there is none to draw."""
    labels = list(run.result["labels"])
    matrix = run.result[split].get("confusion")
    if matrix is None and run.result.get("problem_type") is not None:
        return ""
    if matrix is None:
        if not has_predictions(run, split):
            return ""
        predicted, gold = (
            [[labels[index] for index in sentence] for sentence in ids] for ids in read_predictions(run.folder, split)
        )
        types = entity_types(labels)
        labels, matrix = [*types, NO_ENTITY], entity_confusion(gold, predicted, types).tolist()
    if len(labels) > MAX_CONFUSED:
        return ""
    picture = io.BytesIO()
    confusion_picture({"": matrix}, labels, picture)
    return _uri(picture)


def _settings(config: RunConfig) -> list[tuple[str, str, bool]]:
    """(Name, value, whether it was chosen and is not the default), chosen ones first."""
    default = RunConfig().to_dict()
    values = [(name, str(value), value != default[name]) for name, value in config.to_dict().items()]
    return sorted(values, key=lambda setting: not setting[2])


def _image_uri(image: Any) -> str:
    picture = io.BytesIO()
    image.save(picture, format="PNG")
    return _uri(picture)


def _uri(picture: io.BytesIO) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
