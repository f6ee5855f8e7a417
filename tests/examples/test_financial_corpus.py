"""The financial sample: what its README promises."""

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from trainers.corpus.statistics import statistics
from trainers.data.rows import BadRows
from trainers.data.tokens.files import find_tagged_source
from trainers.data.tokens.scan import scan

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "data" / "financial"


@pytest.fixture(scope="module")
def rows():
    return [json.loads(line) for line in (FOLDER / "sentences.jsonl").read_text(encoding="utf-8").splitlines()]


def test_sentences_are_distinct_and_not_near_copies(rows):
    sets = [frozenset(word.lower() for word in row["tokens"]) for row in rows]
    assert len({tuple(row["tokens"]) for row in rows}) == len(rows)
    assert max(len(a & b) / len(a | b) for a, b in combinations(sets, 2)) < 0.5


def test_entities_are_single_numbers(rows):
    for row in rows:
        assert len(row["tokens"]) == len(row["ner_tags"])
        for word, tag in zip(row["tokens"], row["ner_tags"], strict=True):
            assert tag == "O" or tag.startswith("B-")
            assert tag == "O" or re.fullmatch(r"\d[\d,]*(\.\d+)?|five", word)


def test_numbers_and_signs_stand_alone(rows):
    for row in rows:
        for word in row["tokens"]:
            assert not re.search(r"[$%€£()]", word) or len(word) == 1
            assert not re.search(r"\s", word)
        assert row["tokens"][-1] == "."


def test_most_numbers_are_no_entities_and_the_types_are_balanced(rows):
    numbers = Counter()
    for row in rows:
        for word, tag in zip(row["tokens"], row["ner_tags"], strict=True):
            if re.fullmatch(r"\d[\d,]*(\.\d+)?", word):
                numbers[tag] += 1
    assert numbers.pop("O") > sum(numbers.values())
    assert min(numbers.values()) >= 80
    assert max(numbers.values()) < 1.5 * min(numbers.values())


def test_the_readme_counts_right():
    (split,) = statistics(scan(find_tagged_source(FOLDER / "sentences.jsonl"), BadRows("error"))).splits.values()
    text = (FOLDER / "README.md").read_text(encoding="utf-8").replace("\n", " ")
    for kind, count in split.entities.items():
        assert re.search(rf"\| {kind} \|[^|]*\| {count} \|", text)
    total = sum(split.entities.values())
    free = split.sentences - split.sentences_with_entities
    assert f"{split.sentences} sentences, {split.tokens:,} tokens, {total} entities; {free} sentences have none" in text
