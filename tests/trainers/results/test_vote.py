"""The oracle of the weights is a search over the simplex; that of the scores is scikit-learn."""

import dataclasses
import itertools
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from trainers.config import RunConfig
from trainers.experiment import run
from trainers.finished import FinishedRun, evaluate_run
from trainers.results.vote import fit_weights, vote, vote_table
from trainers.run_folder import read_predictions

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "cls_vote.py"


@pytest.fixture(scope="module")
def texts(tiny, tmp_path_factory):
    """Texts in which one class of words abounds, the label."""
    folder = tmp_path_factory.mktemp("vote") / "texts"
    folder.mkdir()
    random = np.random.default_rng(5)
    for split, count in {"train": 40, "valid": 30, "test": 30}.items():
        rows = []
        for number in range(count):
            label = ("DNA", "protein")[number % 2]
            kinds = random.choice([label, "O"], random.integers(2, 8), p=[0.4, 0.6])
            rows.append({"text": " ".join(random.choice(tiny.WORDS[kind]) for kind in kinds), "label": label})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def members(texts, checkpoint, tmp_path_factory):
    """Folders of three runs of different quality."""
    root = tmp_path_factory.mktemp("members")
    config = RunConfig(task="text-classification", model=str(checkpoint), fresh_head=True, data=str(texts), epochs=6,
                       batch_size=8, learning_rate=0.01)  # fmt: skip
    ways = {"full": {"method": "full"}, "lora": {"method": "lora", "r": 4}, "head": {"method": "head", "epochs": 1}}
    for name, changes in ways.items():
        run(dataclasses.replace(config, output_dir=root / name, **changes))
    return [root / name for name in ways]


def log_likelihood(weights, probabilities, gold):
    return np.log(np.tensordot(weights, probabilities, 1)[np.arange(len(gold)), gold]).mean()


def test_weights_are_those_of_the_highest_likelihood():
    random = np.random.default_rng(0)
    gold = random.integers(3, size=400)
    members = []
    for skill in (1.2, 1.1, 0.0):
        scores = random.normal(size=(400, 3)) + skill * np.eye(3)[gold]
        members.append(np.exp(scores) / np.exp(scores).sum(-1, keepdims=True))
    probabilities = np.stack(members)
    weights = fit_weights(probabilities, gold)
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 0
    grid = [(a / 40, b / 40, 1 - (a + b) / 40) for a, b in itertools.product(range(41), repeat=2) if a + b <= 40]
    best = max(grid, key=lambda point: log_likelihood(np.array(point), probabilities, gold))
    assert log_likelihood(weights, probabilities, gold) > log_likelihood(np.array(best), probabilities, gold) - 1e-6
    assert weights == pytest.approx(best, abs=0.03)


def test_a_member_that_is_certain_and_wrong_costs_nothing_but_its_weight():
    right, wrong = np.array([[0.9, 0.1]] * 5), np.array([[0.0, 1.0]] * 5)
    assert fit_weights(np.stack([right, wrong]), np.zeros(5, dtype=np.int64)) == pytest.approx([1, 0], abs=1e-6)
    assert fit_weights(np.stack([right, right]), np.zeros(5, dtype=np.int64)) == pytest.approx([0.5, 0.5])


def test_scores_are_those_of_the_runs_and_of_their_mixtures(members):
    loaded = [FinishedRun.open_fast(folder) for folder in members]
    found = vote(loaded)
    assert [voter.name for voter in found.voters] == ["full", "lora", "head", "uniform vote", "weighted vote"]
    for folder, voter in zip(members, found.voters, strict=False):
        for split in ("validation", "test"):
            scores = evaluate_run(folder, split=split)
            assert (voter.accuracy[split], voter.f1[split]) == (scores["accuracy"], scores["f1"])
    weights = [voter.weight for voter in found.voters]
    assert sum(weights[:3]) == pytest.approx(1)
    assert weights[3:] == [None, None]
    gold = np.concatenate(read_predictions(members[0], "test")[1])
    probabilities = np.stack([member.probabilities(member.split("test")) for member in loaded])
    for voter, mixture in zip(found.voters[3:], ([1 / 3] * 3, weights[:3]), strict=True):
        predicted = np.tensordot(mixture, probabilities, 1).argmax(-1)
        assert voter.accuracy["test"] == accuracy_score(gold, predicted)
        assert voter.f1["test"] == pytest.approx(f1_score(gold, predicted, average="macro"))
    best = max(found.voters[:3], key=lambda voter: voter.accuracy["validation"])
    assert found.best == best.name
    assert best.p is None
    assert all(voter.interval[0] <= voter.interval[1] for voter in found.voters if voter is not best)
    table = vote_table(found)
    assert f"{100 * found.voters[4].f1['test']:.2f}" in table
    assert "best member" in table


def test_who_cannot_vote_together(members, texts, checkpoint, finished, tmp_path):
    full = FinishedRun.open_fast(members[0])
    with pytest.raises(ValueError, match="at least two runs, but 1 was given"):
        vote([full])
    with pytest.raises(ValueError, match="given more than once"):
        vote([full, full])
    with pytest.raises(ValueError, match="did token-classification: expected a run that classifies texts or images"):
        vote([full, FinishedRun.open_fast(finished["lora"])])
    elsewhere = dataclasses.replace(full, config=dataclasses.replace(full.config, data="other"))
    with pytest.raises(ValueError, match=r"used the data .*texts' but .* 'other': only runs on the same data"):
        vote([full, elsewhere])
    result = {**full.run.result, "labels": ["a", "b"]}
    renamed = dataclasses.replace(full, run=dataclasses.replace(full.run, result=result))
    with pytest.raises(ValueError, match=r"has the labels \['DNA', 'protein'\] but .* has \['a', 'b'\]"):
        vote([full, renamed])
    changed = dataclasses.replace(full.datasets["test"], targets=np.zeros(30, np.int64))
    full.datasets["test"] = changed
    with pytest.raises(ValueError, match=r"test.jsonl does not hold the examples that .* it has changed"):
        vote([full, FinishedRun.open_fast(members[1])])


def test_the_example(members, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *map(str, members[:2]), "--output-dir", str(tmp_path)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    out = capsys.readouterr().out
    assert (tmp_path / "vote.md").read_text().strip() in out
    assert [voter["name"] for voter in json.loads((tmp_path / "vote.json").read_text())["voters"]] == [
        "full", "lora", "uniform vote", "weighted vote"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(members[0])])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert exit_.value.code == 2
