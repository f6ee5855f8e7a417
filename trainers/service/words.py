"""The words that mattered to a text's label: how its score falls when they are left out, one after another.

That is leave-one-out occlusion (Li, Monroe and Jurafsky 2016). Its cost is bounded: a long text's words are left out in
groups, so that no text is computed more than MOST_PARTS + 1 times.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainers.data.raw_text import Span, split_text
from trainers.serve.pipeline import Pipeline

MOST_PARTS = 40
"""Most groups of words that are left out of a text."""
MOST_CHARACTERS = 4000
"""Of a text whose words are asked for."""


def parts_of(text: str) -> list[Span]:
    """The places that are left out: each word, or as many groups of words side by side as MOST_PARTS."""
    words = split_text(text)
    groups = np.array_split(np.arange(len(words)), min(len(words), MOST_PARTS)) if words else []
    return [(words[group[0]][0], words[group[-1]][1]) for group in groups]


def with_words(plain: Pipeline, of_all: Pipeline, texts: Sequence[str]) -> list[dict[str, Any]]:
    """For each text its labels, and what each word adds to the score of the best one.

    Args:
        plain: gives the labels that were asked for.
        of_all: gives every label.

    Returns:
        Dicts {"labels": as `plain` gives them, "label": the best, "words": [{"word", "start", "end", "effect"}]}.
        "effect" is the score of "label" with the whole text, less that without the word: above 0 it spoke for it.
    """
    parts = [parts_of(text) for text in texts]
    variants = [text[:start] + text[end:] for text, spans in zip(texts, parts, strict=True) for start, end in spans]
    labels, whole = plain.predict(texts), of_all.predict(texts)
    without = iter(of_all.predict(variants))
    found = []
    for text, spans, own, scores in zip(texts, parts, labels, whole, strict=True):
        best, words = scores[0], []
        for start, end in spans:
            left = {each["label"]: each["score"] for each in next(without)}
            effect = best["score"] - left[best["label"]]
            words.append({"word": text[start:end], "start": start, "end": end, "effect": effect})
        found.append({"labels": own, "label": best["label"], "words": words})
    return found
