"""The worst errors in their own words, with what led the model astray; and all errors as rows, to be labelled anew."""

import io
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from trainers.data.images.decode import decode
from trainers.data.splits import take
from trainers.data.tokens.bio import Entity
from trainers.data.tokens.windows import IGNORED_LABEL
from trainers.report.evidence import Evidence
from trainers.report.pictures import data_uri
from trainers.report.section import Example, Examples, Part, Section, Table
from trainers.results.attribution import by_word, integrated_gradients
from trainers.results.entity_errors import judge
from trainers.results.errors import confused_pairs, explain

TITLE = "Worst errors"
SHOWN_CHARACTERS = 600
"""Most characters of a text that are shown."""
THUMBNAIL = 160
"""Most pixels of a picture's side."""
EXPLAINED_SECONDS = 20.0
"""Time after which no further example is explained: attribution needs 64 passes for each."""
SPEAKING = 5
"""Words that are named as having led the model astray."""
PAIRS, WORDS = 6, 12
"""Pairs of labels whose confused words are listed, and words of each direction."""
ORDER = {
    None: "those with the most wrong words first",
    "single_label_classification": "one of each confusion in turn, the most frequent first, and of each the one whose "
    "true label was least likely",
    "multi_label_classification": "those with the most wrong labels first",
    "regression": "those that are furthest off first",
}


def section(evidence: Evidence) -> Section:
    """As many of the worst errors as the options say."""
    chosen = worst(evidence)
    if not len(evidence.wrong):
        return Section("errors", TITLE, missing=f"The model has every example of the {evidence.split} split right.")
    if not chosen:
        return Section("errors", TITLE, missing=f"{len(evidence.wrong):,} have an error; --errors 0 shows none.")
    words = _explained(evidence, chosen)
    examples = [_example(evidence, place, words.get(place, ())) for place in chosen]
    note = (
        f"{len(evidence.wrong):,} of the {evidence.split} split's {len(evidence.saved[0]):,} {evidence.noun} have an "
        f"error; {len(chosen)} are shown, {ORDER[evidence.problem_type]}. All are in errors.csv, and in errors.jsonl "
        "in a form that training reads, to be labelled anew."
    )
    if words:
        which = "The words named" if evidence.is_tokens else "Underlined words"
        note += (
            f" {which} spoke most for the wrong answer ({len(words)} examples): their share in its logit, by "
            "integrated gradients (Sundararajan, Taly and Yan 2017)."
        )
    return Section("errors", TITLE, note, (Examples(examples),))


def words_section(evidence: Evidence) -> Section:
    """The words that set confused texts apart from the recognised ones of the same label."""
    title = "Confused words"
    if evidence.is_images or evidence.is_tokens or not evidence.is_single:
        return Section("words", title, missing="For texts with one label each.")
    dataset = evidence.dataset
    predicted, gold = (np.concatenate(ids).astype(np.int64) for ids in evidence.saved)
    try:
        pairs = confused_pairs(dataset.texts, gold, predicted, evidence.labels, pairs=PAIRS, words=WORDS)
    except ValueError:  # scikit-learn: no text has a word that counts
        pairs = []
    rows = [(pair.true, pair.predicted, pair.errors, ", ".join(word for word, _ in pair.words)) for pair in pairs]
    if not rows:
        return Section("words", title, missing="No text was taken for another label, or none has words that count.")
    note = (
        "Words that are more frequent (by TF-IDF) in texts that were taken for another label than in the recognised "
        f"texts of the same label. They are of the {evidence.split} split: to look at, not to train with."
    )
    table = Table("confused-words", ("true", "taken for", "texts", "words"), rows, ("", "", ",d"))
    return Section("words", title, note, (table,))


def worst(evidence: Evidence) -> list[int]:
    """Places of the errors to show, the worst first."""
    limit, (predicted, gold) = evidence.options.errors, evidence.saved
    if evidence.is_single:
        return in_turns(np.concatenate(gold), np.concatenate(predicted), _of_true(evidence))[:limit]
    if evidence.problem_type == "regression":
        wrong = [abs(float(guess[0] - true[0])) for guess, true in zip(predicted, gold, strict=True)]
    else:
        wrong = [int((guess != true).sum()) for guess, true in zip(predicted, gold, strict=True)]
    order = np.argsort(-np.array(wrong), kind="stable")
    return [int(place) for place in order[:limit] if wrong[place]]


def in_turns(gold: np.ndarray, predicted: np.ndarray, of_true: np.ndarray | None = None) -> list[int]:
    """Places of the wrong predictions (N,): the first of every confused pair of labels, then the second, ...

    Within a turn the pairs come in order of their number of errors; within a pair the examples by the probability
    `of_true` (N,) of their true label, the least likely first.
    """
    pairs = list(zip(gold.tolist(), predicted.tolist(), strict=True))
    wrong = np.flatnonzero(gold != predicted)
    if of_true is not None:
        wrong = wrong[np.argsort(of_true[wrong], kind="stable")]
    frequency = Counter(pairs[place] for place in wrong.tolist())
    seen: Counter[tuple[int, int]] = Counter()
    turns = {}
    for place in wrong.tolist():
        turns[place] = seen[pairs[place]]
        seen[pairs[place]] += 1

    def turn(place: int) -> tuple[Any, ...]:
        return turns[place], -frequency[pairs[place]], pairs[place]

    return sorted(turns, key=turn)


def labelled(words: Sequence[str], entities: set[Entity], others: set[Entity]) -> tuple[Part, ...]:
    """A sentence as it is labelled, its entities marked as right where the other side has them too, else as wrong."""
    found, end = [], 0
    for entity in sorted(entities, key=_first_word):
        kind, start, stop = entity
        found.append(Part(" ".join(words[end:start])))
        found.append(Part(" ".join(words[start:stop]), kind, "right" if entity in others else "wrong"))
        end = stop
    return tuple(part for part in (*found, Part(" ".join(words[end:]))) if part.text)


def highlighted(text: str, words: Sequence[str]) -> tuple[Part, ...]:
    """A text, with these words marked wherever they stand in it."""
    if not words:
        return (Part(text),)
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    pieces = re.split(rf"(?<!\w)({pattern})(?!\w)", text, flags=re.IGNORECASE)
    return tuple(Part(piece, state="speaks" if place % 2 else "") for place, piece in enumerate(pieces) if piece)


def thumbnail(source: Any) -> str:
    """A picture, made small, as a data URI."""
    image = decode(source)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.convert("RGB").save(file, format="PNG", optimize=True)
    return data_uri(file.getvalue())


def errors_csv(evidence: Evidence) -> Table:
    """All errors, a row for each; of sentences a row for each wrong entity."""
    predicted, gold = evidence.saved
    if not evidence.is_tokens:
        header = ("example", "true", "predicted", "probability of the true label", "text")
        rows = [
            (place + 1, row["true"], row["predicted"], row.get("probability"), row["shown"])
            for place, row in _rows(evidence)
        ]
        return Table("errors", header, rows)
    rows = []
    for place in evidence.wrong.tolist():
        words = evidence.run.kind.shown(evidence.dataset, place)
        for judged in judge(evidence.entities(gold[place]), evidence.entities(predicted[place])):
            if judged.kind != "right":
                of_both = (*_named(judged.true, words), *_named(judged.predicted, words))
                rows.append((place + 1, judged.kind, *of_both, " ".join(words)))
    header = ("sentence", "error", "true type", "true entity", "predicted type", "predicted entity", "text")
    return Table("errors", header, rows)


def _named(entity: Entity | None, words: Sequence[str]) -> tuple[str, str]:
    """An entity's type and its words."""
    return ("", "") if entity is None else (entity[0], " ".join(words[entity[1] : entity[2]]))


def errors_jsonl(evidence: Evidence) -> str:
    """All examples with an error as JSON lines, with the keys that training reads and `predicted` beside them."""
    predicted, gold = evidence.saved
    lines = []
    if evidence.is_tokens:
        for place in evidence.wrong.tolist():
            words, true, guess = (
                evidence.run.kind.shown(evidence.dataset, place),
                evidence.tags(gold[place]),
                evidence.tags(predicted[place]),
            )
            lines.append({"id": place + 1, "tokens": words, "ner_tags": true, "predicted": guess})
    else:
        for place, row in _rows(evidence):
            about = {"image": row["shown"]} if evidence.is_images else {"text": row["text"]}
            if row["pair"] is not None:
                about["text_pair"] = row["pair"]
            sure = {"probability": row["probability"]} if "probability" in row else {}
            lines.append({"id": place + 1, **about, "label": row["label"], "predicted": row["answer"], **sure})
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _rows(evidence: Evidence) -> Iterator[tuple[int, dict[str, Any]]]:
    """(Place, what is known) of each example with an error that is labelled as a whole."""
    predicted, gold = evidence.saved
    of_true = _of_true(evidence) if evidence.is_single else None
    dataset = evidence.dataset
    for place in evidence.wrong.tolist():
        true, guess = (evidence.answer(ids[place]) for ids in (gold, predicted))
        shown = evidence.run.kind.shown(dataset, place)
        is_text = isinstance(shown, str)
        row: dict[str, Any] = {"true": true, "predicted": guess, "shown": shown if is_text else _file_of(shown)}
        row["label"], row["answer"] = (_plain(evidence, ids[place]) for ids in (gold, predicted))
        row["text"] = dataset.texts[place] if is_text else None
        row["pair"] = dataset.pairs[place] if is_text and dataset.pairs is not None else None
        if of_true is not None and np.isfinite(of_true[place]):
            row["probability"] = float(of_true[place])
        yield place, row


def _plain(evidence: Evidence, answer: np.ndarray) -> Any:
    """An answer as JSON has it: a label, a list of them, or a number."""
    if evidence.problem_type == "regression":
        return float(answer[0])
    if evidence.problem_type == "multi_label_classification":
        return [evidence.labels[index] for index in np.flatnonzero(answer)]
    return evidence.answer(answer)


def _file_of(shown: Any) -> str:
    """The name of a picture's file; nothing of one that has none."""
    return "" if isinstance(shown, bytes | np.ndarray) else str(shown)


def _of_true(evidence: Evidence) -> np.ndarray:
    """(N,) probability of each example's true label; infinite where the model was not asked."""
    gold = np.concatenate(evidence.saved[1]).astype(np.int64)
    found = np.full(len(gold), np.inf)
    found[evidence.asked] = evidence.probabilities[np.arange(len(evidence.asked)), gold[evidence.asked]]
    return found


def _example(evidence: Evidence, place: int, words: Sequence[tuple[str, float]]) -> Example:
    predicted, gold = evidence.saved
    shown = evidence.run.kind.shown(evidence.dataset, place)
    speaking = ", ".join(f"{word} {share:+.2f}" for word, share in words)
    if evidence.is_tokens:
        true, guess = evidence.entities(gold[place]), evidence.entities(predicted[place])
        kinds = Counter(judged.kind for judged in judge(true, guess) if judged.kind != "right")
        what = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        note = what + (f". For the first wrong word spoke: {speaking}" if speaking else "")
        return Example(
            place + 1, "true", "predicted", labelled(shown, true, guess), labelled(shown, guess, true), note=note
        )
    true_name, guess_name = (evidence.answer(ids[place]) for ids in (gold, predicted))
    notes = []
    if evidence.is_single and (at := _asked_at(evidence, place)) is not None:
        of_true, of_guess = (evidence.probabilities[at, int(ids[place][0])] for ids in (gold, predicted))
        notes.append(f"probability of {guess_name} {of_guess:.0%}, of {true_name} {of_true:.0%}")
    if speaking:
        notes.append(f"words for {guess_name}: {speaking}")
    note = "; ".join(notes)
    if not isinstance(shown, str):
        return Example(place + 1, true_name, guess_name, picture=thumbnail(shown), note=note)
    text = shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]} …"
    return Example(place + 1, true_name, guess_name, highlighted(text, [word for word, _ in words]), note=note)


def _asked_at(evidence: Evidence, place: int) -> int | None:
    """The place of an example among those that the model was asked about."""
    at = int(np.searchsorted(evidence.asked, place))
    return at if at < len(evidence.asked) and evidence.asked[at] == place else None


def _explained(evidence: Evidence, chosen: Sequence[int]) -> dict[int, list[tuple[str, float]]]:
    """The words that spoke for the wrong answer, with their shares, of as many examples as there is time for."""
    pairs = getattr(evidence.dataset, "pairs", None) is not None
    crf = evidence.run.config.head == "crf"
    if evidence.is_images or pairs or crf or not (evidence.is_tokens or evidence.is_single):
        return {}
    ends = time.monotonic() + EXPLAINED_SECONDS
    found = {}
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # that a text is shortened would be said of every single one
    try:
        for place in chosen:
            if time.monotonic() > ends:
                break
            own = take(evidence.dataset, np.array([place]))
            if evidence.is_tokens:
                found[place] = _words_for_tag(evidence, own, place)
            else:
                guess = evidence.saved[0][place].astype(np.int64)
                found[place] = explain(evidence.run, own, guess, np.zeros(1))[0].words
    finally:
        logging.disable(before)
    return found


def _words_for_tag(evidence: Evidence, own: Any, place: int) -> list[tuple[str, float]]:
    """The words that spoke for the tag of the first wrong word of a sentence, if it fits into one window."""
    run = evidence.run
    data: Any = run.encode(own)
    predicted, gold = (ids[place].astype(np.int64) for ids in evidence.saved)
    if len(data) != 1:
        return []
    (first,) = np.flatnonzero(predicted != gold)[:1]
    labels, starts = np.asarray(data.labels), np.asarray(data.word_ids)
    position = int(np.flatnonzero(labels != IGNORED_LABEL)[first])
    words = np.maximum.accumulate(starts)  # (T,) pieces after a word's first belong to it
    words[-1] = -1  # what ends the sentence belongs to none
    ids = np.asarray(data.input_ids).astype(np.int64)
    attribution = integrated_gradients(
        run.model,
        torch.from_numpy(ids).to(run.device),
        int(predicted[first]),
        data.pad_token_id,
        torch.from_numpy(words < 0).to(run.device),
        position=position,
    )
    shares = by_word(attribution.tokens, words)
    numbers = np.unique(words[words >= 0])
    best = np.argsort(-shares, kind="stable")[:SPEAKING]
    return [(own.words[0][numbers[word]], float(shares[word])) for word in best if shares[word] > 0]


def _first_word(entity: Entity) -> tuple[int, int]:
    return entity[1], entity[2]
