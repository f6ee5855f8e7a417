"""Labelled texts looked at before they are used."""

import json

import pytest

from trainers.cli import main
from trainers.corpus.texts import count_texts
from trainers.data.texts.dataset import TextDataset


def datasets():
    train = TextDataset.from_lists(
        ["a b", "a b", "c", *(f"text {n}" for n in range(27))], ["x", "y", *["x"] * 28], names=["x", "y", "z"]
    )
    test = TextDataset.from_lists(["c", "a b c d e f"], ["x", "x"], names=["x", "y", "z"])
    return {"train": train, "test": test}


def test_what_is_counted_and_what_is_warned_of():
    counted = count_texts(datasets())
    train, test = counted.splits["train"], counted.splits["test"]
    assert (train.texts, train.labels, train.repeated, train.seen_in_train) == (30, {"x": 29, "y": 1, "z": 0}, 1, 0)
    assert (test.texts, test.labels, test.repeated, test.seen_in_train) == (2, {"x": 2, "y": 0, "z": 0}, 0, 1)
    assert test.words == {"min": 1, "median": 3.5, "mean": 3.5, "p95": pytest.approx(5.75), "max": 6}
    assert (counted.labels, test.too_long) == (("x", "y"), None)
    assert counted.warnings == (
        "1 of 30 distinct texts have more than one label, first 'a b'.",
        "1 of 30 train texts stood in that split before.",
        "1 of 2 test texts (50.0%) also stand in the training split.",
        "The train split lacks z.",
        "The test split lacks y, z.",
        "The test split has fewer than 20 texts of x: their scores say little.",
        "x has 29 texts to learn from, y 1: see --class-weights balanced.",
    )


def test_pairs_are_the_same_in_both_texts():
    pairs = TextDataset.from_lists(["a", "a", "a"], ["x", "y", "x"], pairs=["b", "c", "b"])
    (split,) = count_texts({"test": pairs}).splits.values()
    assert (split.repeated, split.words["mean"]) == (1, 2)


def test_several_labels_and_numbers():
    several = count_texts({"train": TextDataset.from_lists(["a", "b"], [["x", "y"], ["x"]])})
    assert several.splits["train"].labels == {"x": 2, "y": 1}
    numbers = count_texts({"train": TextDataset.from_lists(["a", "b"], [0.5, 1.5])})
    assert (numbers.labels, numbers.warnings) == ((), ())


def test_lengths_against_a_models_limit(checkpoint, tiny):
    texts = TextDataset.from_lists(["gene " * tiny.MAX_TOKENS, "gene"], ["x", "y"])
    counted = count_texts({"train": texts}, str(checkpoint))
    assert counted.splits["train"].too_long == 1
    assert "1 of 2 train texts are longer than the model: see --long-text." in counted.warnings
    pairs = TextDataset.from_lists(["gene " * 20, "gene"], ["x", "y"], pairs=["gene " * 20, "gene"])
    assert count_texts({"train": pairs}, str(checkpoint)).splits["train"].too_long == 1


def test_the_verb(tmp_path, capsys):
    rows = "".join(f"{n},text {n % 25},{n % 2}\n" for n in range(50))
    (tmp_path / "reviews.csv").write_text("id,text,label\n" + rows)
    main(["check-data", str(tmp_path / "reviews.csv"), "--task", "text-classification", "--output-dir",
          str(tmp_path / "out"), "--label-column", "label"])  # fmt: skip
    out = capsys.readouterr().out
    assert "| texts of each label |" in out
    assert "25 of 25 distinct texts have more than one label, first 'text" in out
    figures = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert sum(split["texts"] for split in figures["splits"].values()) == 50
    assert figures["problem_type"] == "single_label_classification"
    assert (tmp_path / "out" / "statistics.png").stat().st_size
    assert (tmp_path / "out" / "statistics.md").read_text().strip() in out
