"""The corpora that come with the project: distinct, balanced, and not to be guessed from a word."""

import itertools
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from trainers.data.texts.reader import load_text_datasets

DATA = Path(__file__).parents[2] / "examples" / "data"
CORPORA = ("news", "reviews")


def words(text):
    return re.findall(r"[a-z']+", text.lower())


@pytest.fixture(scope="module")
def items():
    """(text, label) of every item of each corpus."""
    found = {}
    for name in CORPORA:
        datasets = load_text_datasets(DATA / name).values()
        found[name] = [
            (t, split.labels[label]) for split in datasets for t, label in zip(split.texts, split.targets, strict=True)
        ]
    return found


def test_sizes_and_balance(items):
    assert Counter(label for _, label in items["news"]) == dict.fromkeys(
        ("World", "Sports", "Business", "Sci/Tech"), 60
    )
    assert Counter(label for _, label in items["reviews"]) == {"positive": 102, "negative": 102}
    for name, shares in (("news", {16}), ("reviews", {25})):
        test = load_text_datasets(DATA / name)["test"]
        assert set(Counter(test.targets.tolist()).values()) == shares


def test_reviews_vary_in_length(items):
    lengths = [(len(text.split()), label) for text, label in items["reviews"]]
    assert Counter(label for length, label in lengths if length >= 100) == {"positive": 10, "negative": 10}
    assert sum(length <= 15 for length, _ in lengths) > 50


def test_ambiguous_news_are_of_two_classes(items):
    titles = (DATA / "news" / "ambiguous.txt").read_text().splitlines()
    found = [label for title in titles for text, label in items["news"] if text.startswith(f"{title} ")]
    assert Counter(found) == {"Business": 18, "Sci/Tech": 18}


@pytest.mark.parametrize("name", CORPORA)
def test_no_two_items_are_alike(items, name):
    assert len({text for text, _ in items[name]}) == len(items[name])
    trigrams = [set(itertools.pairwise(itertools.pairwise(words(text)))) for text, _ in items[name]]
    assert max(len(a & b) / min(len(a), len(b)) for a, b in itertools.combinations(trigrams, 2)) <= 0.25


@pytest.mark.parametrize("name", CORPORA)
def test_no_word_gives_the_label_away(items, name):
    total = Counter(label for _, label in items[name])
    counts = defaultdict(Counter)
    for text, label in items[name]:
        for word in set(words(text)):
            counts[word][label] += 1
    for word, by_label in counts.items():
        label, count = by_label.most_common(1)[0]
        recall, precision = count / total[label], count / by_label.total()
        assert recall < 1 / 3 or precision < 0.6, word
    assert not counts.keys() & {"positive", "negative", "sports", "sport", "sci", "tech"}
