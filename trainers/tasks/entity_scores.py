"""Scores for named entity recognition, counted by entity and by token.

Two readings of the same BIO tags are reported side by side, because published figures use both:

- the lenient one of conlleval (seqeval's default): an `I-X` that follows nothing of its type opens an entity;
- the strict one (IOB2): only `B-X` opens an entity, and a stray `I-X` belongs to none.

In both, a predicted entity is right when its type, its first word and its last word are right.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from trainers.data.tokens.bio import Entity, find_entities, is_tag

NER_METRICS: tuple[str, ...] = (
    *("f1", "precision", "recall", "macro_f1", "accuracy"),
    *("strict_f1", "strict_precision", "strict_recall", "strict_macro_f1"),
)
"""The scores of `ner_metrics` that are one number."""


def ner_metrics(gold: list[list[str]], predicted: list[list[str]]) -> dict[str, Any]:
    """Entity precision, recall and F1 (lenient and strict) and token accuracy of tagged sentences.

    `gold` and `predicted` hold one list of BIO tags per sentence, one tag per word. The result has, as floats
    from 0 to 1: `precision`, `recall`, `f1` (over all entities), `macro_f1` (mean over the types that occur),
    the same four with the prefix `strict_`, and `accuracy` (share of equal tags). `types` and `strict_types`
    map each type to its `precision`, `recall`, `f1` and `support` (number of gold entities). A ratio without
    a denominator is 0.

    The figures equal those of seqeval: its default mode, and `mode="strict", scheme=IOB2`.

    Raises:
        ValueError: numbers of sentences or words differ, or a tag is not `O`, `B-type` or `I-type`.
    """
    _check(gold, predicted)
    lenient = _entity_scores(gold, predicted, strict=False)
    strict = {f"strict_{name}": value for name, value in _entity_scores(gold, predicted, strict=True).items()}
    words = sum(len(tags) for tags in gold)
    equal = sum(a == b for tags, guess in zip(gold, predicted, strict=True) for a, b in zip(tags, guess, strict=True))
    types = {"types": lenient.pop("types"), "strict_types": strict.pop("strict_types")}
    return {**lenient, **strict, "accuracy": _ratio(equal, words), **types}


def _entity_scores(gold: list[list[str]], predicted: list[list[str]], *, strict: bool) -> dict[str, Any]:
    in_gold: Counter[str] = Counter()
    in_predicted: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for gold_tags, predicted_tags in zip(gold, predicted, strict=True):
        gold_entities = find_entities(gold_tags, strict=strict)
        predicted_entities = find_entities(predicted_tags, strict=strict)
        in_gold.update(_types(gold_entities))
        in_predicted.update(_types(predicted_entities))
        right.update(_types(gold_entities & predicted_entities))
    types = {
        name: {**_scores(right[name], in_predicted[name], in_gold[name]), "support": in_gold[name]}
        for name in sorted(in_gold | in_predicted)
    }
    overall = _scores(right.total(), in_predicted.total(), in_gold.total())
    return {
        **overall,
        "macro_f1": _ratio(sum(scores["f1"] for scores in types.values()), len(types)),
        "types": types,
    }


def _types(entities: Iterable[Entity]) -> list[str]:
    return [type_name for type_name, _, _ in entities]


def _scores(right: int, predicted: int, gold: int) -> dict[str, float]:
    return {
        "precision": _ratio(right, predicted),
        "recall": _ratio(right, gold),
        "f1": _ratio(2 * right, predicted + gold),
    }


def _ratio(numerator: float, denominator: int) -> float:
    return numerator / denominator if denominator else 0.0


def _check(gold: list[list[str]], predicted: list[list[str]]) -> None:
    if len(gold) != len(predicted):
        raise ValueError(
            f"{len(gold)} gold sentences but {len(predicted)} predicted ones: "
            "pass the same sentences in the same order."
        )
    for index, (gold_tags, predicted_tags) in enumerate(zip(gold, predicted, strict=True)):
        if len(gold_tags) != len(predicted_tags):
            raise ValueError(
                f"Sentence {index} has {len(gold_tags)} gold tags but {len(predicted_tags)} predicted ones: "
                "pass exactly one tag per word."
            )
        for tag in {*gold_tags, *predicted_tags}:
            if not is_tag(tag):
                raise ValueError(
                    f"Sentence {index} has the tag {tag!r}; expected 'O', 'B-type' or 'I-type'. "
                    "Convert other schemes (IOBES, BILOU) to BIO first."
                )
