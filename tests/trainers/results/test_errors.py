"""The analysis of a run whose errors are known: the texts that say the opposite of their label."""

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

from trainers.config import RunConfig
from trainers.experiment import run
from trainers.finished import FinishedRun
from trainers.results.errors import analyse, analysis_report, write_analysis
from trainers.results.vector_map import classifier_vectors, plane_pca, plane_tsne, vectors_picture

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "cls_analysis.py"


@pytest.fixture(scope="module")
def trained(tiny, checkpoint, tmp_path_factory):
    """A run, by head, that has learnt to tell DNA from proteins; two validation texts bear the wrong label."""
    folder = tmp_path_factory.mktemp("analysis")
    random = np.random.default_rng(5)
    for split, count in {"train": 40, "valid": 20, "test": 8}.items():
        rows = []
        for number in range(count):
            label = ("DNA", "protein")[number % 2]
            words = [str(random.choice(tiny.WORDS[random.choice([label, "O"], p=[0.8, 0.2])])) for _ in range(6)]
            swapped = split == "valid" and number in (2, 4)
            rows.append({"text": "nfkb il2 receptor junb aa" if swapped else " ".join(words), "label": label})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for head in ("default", "mlp", "attention"):
        run(RunConfig(task="text-classification", model=str(checkpoint), fresh_head=True, data=str(folder),
                      epochs=12 if head == "default" else 1, head=head, batch_size=8, learning_rate=0.01,
                      output_dir=folder / head, method="full", hidden_dropout=0.0))  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def loaded(trained):
    return FinishedRun.open_fast(trained / "default")


def test_the_words_and_the_worst_texts(loaded, caplog):
    caplog.set_level("INFO", "trainers")
    found = analyse(loaded, worst=2)
    assert "validation split: 20 texts, 2 of them wrong, 2 explained, in " in caplog.text
    assert (found.split, found.examples) == ("validation", 20)
    assert found.confusion == [[8, 2], [0, 10]]
    (pair,) = found.pairs
    assert (pair.true, pair.predicted, pair.errors) == ("DNA", "protein", 2)
    assert {word for word, _ in pair.words} >= {"nfkb", "receptor", "junb"}
    for row in found.worst:
        assert (row.text, row.true, row.predicted) == ("nfkb il2 receptor junb aa", "DNA", "protein")
        assert row.probability < 0.5
        assert {word for word, _ in row.words} <= set(row.text.split())
        assert row.words == sorted(row.words, key=lambda word: -word[1])
        assert row.completeness == pytest.approx(1, abs=0.02)
    report = analysis_report(found)
    assert "DNA taken for protein, 2 texts: " in report
    assert "90.00% right" in report


def test_only_errors_are_explained(loaded):
    assert len(analyse(loaded, worst=10).worst) == 2


def test_no_errors(loaded):
    found = analyse(loaded, split="test", worst=1)
    assert (found.accuracy, found.worst) == (1, [])
    assert "There are no errors." in analysis_report(found)


@pytest.mark.parametrize("head", ["default", "mlp", "attention"])
def test_vectors_are_what_the_last_layer_reads(trained, head):
    loaded = FinishedRun.open_fast(trained / head)
    dataset = loaded.split("test")
    vectors = classifier_vectors(loaded, dataset)
    layer = loaded.model.get_submodule(loaded.model.label_layers[-1])
    logits = layer(torch.from_numpy(vectors)).double().softmax(-1)
    assert logits.detach().numpy() == pytest.approx(loaded.probabilities(dataset), abs=1e-5)


def test_planes(tmp_path):
    random = np.random.default_rng(0)
    vectors = random.normal(size=(40, 6)) * [5, 3, 1, 1, 1, 1] + np.arange(40)[:, None] % 2 * 10
    points, share = plane_pca(vectors)
    assert np.abs(points) == pytest.approx(np.abs(PCA(2).fit_transform(vectors)), abs=1e-6)
    assert 0.5 < share < 1
    plane = plane_tsne(vectors)
    assert plane.shape == (40, 2)
    assert np.array_equal(plane, plane_tsne(vectors))
    gold = np.arange(40) % 2
    vectors_picture(vectors, gold, np.zeros(40, dtype=int), ("a", "b"), tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.size == (1650, 780)
    with pytest.raises(ValueError, match="at least 4 examples, but there are 3"):
        vectors_picture(vectors[:3], gold[:3], gold[:3], ("a", "b"), tmp_path / "map.png")


def test_the_example_writes_words_that_training_reads(trained, loaded, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(trained / "default"), "--worst", "2", "--words", "3"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    folder = trained / "default" / "analysis"
    out = capsys.readouterr().out
    assert (folder / "analysis.md").read_text().strip() in out
    names = ("analysis.md", "analysis.json", "confusing_words.txt", "confusion.png", "vectors.png")
    assert all(str(folder / name) in out and (folder / name).is_file() for name in names)
    words = (folder / "confusing_words.txt").read_text().split()
    assert len(words) == 3
    config = RunConfig.from_dict(loaded.run.config, "here").to_dict() | {"head": "attention", "epochs": 1}
    config |= {"confusing_words": str(folder / "confusing_words.txt"), "output_dir": str(tmp_path / "penalty")}
    assert run(RunConfig.from_dict(config, "here")).result["epochs"] == 1


def test_no_words_are_taken_from_test_texts(loaded, tmp_path):
    found = dataclasses.replace(analyse(loaded, worst=1), split="test")
    assert found.pairs
    names = {path.name for path in write_analysis(loaded, found, tmp_path)}
    assert names == {path.name for path in tmp_path.iterdir()}
    assert names == {"analysis.md", "analysis.json", "confusion.png", "vectors.png"}


def test_only_texts(finished, loaded):
    tokens = FinishedRun.open_fast(finished["lora"])
    with pytest.raises(ValueError, match="did token-classification: the analysis is for text-classification"):
        analyse(tokens)
    with pytest.raises(ValueError, match="expected a run that classifies texts"):
        tokens.probabilities(tokens.examples("test"))
    with pytest.raises(ValueError, match="has no dev split; it has train, validation, test"):
        analyse(loaded, split="dev")
