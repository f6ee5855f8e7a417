"""Labels of the data that are probably wrong: what the model, which has not seen them, contradicts with confidence.

The off-diagonal rule of confident learning (Northcutt, Jiang and Chuang 2021, https://arxiv.org/abs/1911.00068, section
3): a label's threshold is the model's mean probability of it over the examples that bear it; an example counts as one
of the likeliest label whose threshold it reaches, and is suspected where that is not the label it bears.

Shapes: N examples or words, L labels.
"""

import numpy as np

from trainers.report.evidence import Evidence
from trainers.report.mistakes import SHOWN_CHARACTERS, labelled, thumbnail
from trainers.report.section import Example, Examples, Part, Section, Table

TITLE = "Suspected label errors"
SHOWN = 10
"""Suspects shown in their own words; the table has some more, its file all."""
LISTED = 20


def section(evidence: Evidence) -> Section:
    """The suspects, those first whose own label is least likely against the other."""
    if evidence.problem_type not in (None, "single_label_classification"):
        return Section("label-errors", TITLE, missing="For data with one label for each example or word.")
    if evidence.is_tokens:
        return _words(evidence)
    scores = evidence.probabilities
    gold = np.concatenate([evidence.saved[1][place] for place in evidence.asked]).astype(np.int64)
    found = suspected(scores, gold)
    if not found:
        return Section("label-errors", TITLE, missing=_none(evidence))
    rows, examples = [], []
    for at, label in found:
        place, own = int(evidence.asked[at]), int(gold[at])
        shown = evidence.run.kind.shown(evidence.dataset, place)
        text = shown if isinstance(shown, str) else ""
        text = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} …"
        rows.append(
            (
                place + 1,
                evidence.labels[own],
                evidence.labels[label],
                100 * scores[at, own],
                100 * scores[at, label],
                text,
            )
        )
        if len(examples) < SHOWN:
            note = f"probability of {evidence.labels[label]} {scores[at, label]:.0%}, of {evidence.labels[own]} "
            parts, picture = ((Part(text),), "") if isinstance(shown, str) else ((), thumbnail(shown))
            examples.append(
                Example(
                    place + 1,
                    evidence.labels[own],
                    evidence.labels[label],
                    parts,
                    picture=picture,
                    note=f"{note}{scores[at, own]:.0%}",
                )
            )
    table = Table(
        "label-errors",
        ("example", "label", "rather", "probability of the label, %", "of the other, %", "text"),
        rows,
        ("", "", "", ".1f", ".1f"),
        most=LISTED,
    )
    return Section("label-errors", TITLE, _note(evidence, len(rows), evidence.noun), (Examples(examples), table))


def suspected(probabilities: np.ndarray, gold: np.ndarray) -> list[tuple[int, int]]:
    """(Place, the label that it probably should bear) of examples, the surest first.

    Args:
        probabilities: (N, L) of a model that was not trained on these examples.
        gold: (N,) the labels that they bear.
    """
    thresholds = np.full(probabilities.shape[1], np.inf)
    for label in np.unique(gold):
        thresholds[label] = probabilities[gold == label, label].mean()
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)  # (N, L)
    confident = reached.argmax(1)
    own = probabilities[np.arange(len(gold)), gold]
    off_diagonal = np.flatnonzero((reached.max(1) >= 0) & (confident != gold))
    margin = own[off_diagonal] - probabilities[off_diagonal, confident[off_diagonal]]
    return [(int(place), int(confident[place])) for place in off_diagonal[np.argsort(margin, kind="stable")]]


def _words(evidence: Evidence) -> Section:
    scores = np.concatenate(evidence.word_probabilities)  # (words of all sentences, L)
    gold = [evidence.saved[1][place].astype(np.int64) for place in evidence.asked]
    sentence = np.repeat(np.arange(len(gold)), [len(ids) for ids in gold])
    first = np.cumsum([0, *map(len, gold)])
    flat = np.concatenate(gold)
    found = suspected(scores, flat)
    if not found:
        return Section("label-errors", TITLE, missing=_none(evidence))
    rows, examples, seen = [], [], set()
    for at, label in found:
        number = int(sentence[at])
        place, word = int(evidence.asked[number]), at - int(first[number])
        words = evidence.run.kind.shown(evidence.dataset, place)
        rows.append(
            (
                place + 1,
                word + 1,
                words[word],
                evidence.labels[flat[at]],
                evidence.labels[label],
                100 * float(scores[at, flat[at]]),
                100 * float(scores[at, label]),
            )
        )
        if len(examples) < SHOWN and number not in seen:
            seen.add(number)
            true = evidence.entities(gold[number])
            guess = evidence.entities(evidence.saved[0][place])
            note = f"{words[word]!r} bears {evidence.labels[flat[at]]}, probability {scores[at, flat[at]]:.0%}; "
            examples.append(
                Example(
                    place + 1,
                    "label",
                    "model",
                    labelled(words, true, guess),
                    labelled(words, guess, true),
                    note=f"{note}{evidence.labels[label]} has {scores[at, label]:.0%}",
                )
            )
    table = Table(
        "label-errors",
        ("sentence", "word number", "word", "label", "rather", "probability of the label, %", "of the other, %"),
        rows,
        ("", "", "", "", "", ".1f", ".1f"),
        most=LISTED,
    )
    return Section("label-errors", TITLE, _note(evidence, len(rows), "words"), (Examples(examples), table))


def _note(evidence: Evidence, count: int, noun: str) -> str:
    return (
        f"{count:,} {noun} of the {evidence.split} split, on which the model was not trained, bear a label that it "
        "contradicts with confidence: the off-diagonal rule of confident learning (Northcutt, Jiang and Chuang 2021). "
        "A suspect is no proof: some are the model's own errors."
    )


def _none(evidence: Evidence) -> str:
    return f"The model contradicts no label of the {evidence.split} split with confidence."
