import numpy as np
import pytest

from trainers.monitor.rows import EvaluationRows, clock_text, ending, scores_table, shown_scores
from trainers.tasks.entity_scores import ner_metrics
from trainers.tasks.label_scores import classification_metrics, regression_metrics

EVENT = {"event": "epoch", "epoch": 2, "step": 46, "learning_rate": 2.5e-4, "train_loss": 0.89401, "seconds": 9.0,
         "tokens_per_second": 12345.6, "validation": {"loss": 0.7629, "precision": 0.184, "recall": 0.2472, "f1": 0.211,
                                                      "accuracy": 0.76, "types": {}}}  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "scores", "shown"),
    [
        ("f1", {"loss": 1, "precision": 0, "recall": 0, "f1": 0, "accuracy": 0}, ["f1", "precision", "recall"]),
        ("accuracy", {"precision": 0, "recall": 0, "f1": 0, "accuracy": 0}, ["accuracy", "f1", "precision"]),
        ("loss", {"precision": 0, "recall": 0, "f1": 0}, ["f1", "precision", "recall"]),
        ("pearson", regression_metrics(np.array([1.0, 2]), np.array([1.0, 3])), ["pearson", "spearman", "r2"]),
        ("words", {"words": 0.5, "loss": 1.0}, ["words"]),  # a task of one's own
    ],
)
def test_the_selecting_score_comes_first_and_then_its_parts(metric, scores, shown):
    assert shown_scores(metric, scores) == shown


def test_a_row_says_all_there_is_in_80_columns():
    rows = EvaluationRows("f1", EVENT["validation"], epochs=10, total_steps=99_999, unit="tokens")
    assert rows.header == ["epoch", "step", "train", "valid", "F1", "prec.", "recall", "lr", "tok/s", "time", " "]
    assert rows.cells(EVENT, 3723.4, best=True) == [
        *("2/10", "46", "0.8940", "0.7629", "21.10", "18.40", "24.72", "2.5e-04", "12,346", "1:02:03", "*")
    ]
    assert rows.cells({**EVENT, "learning_rate": 0.0}, 59.9, best=False)[-4:] == ["0", "12,346", "0:00:59", ""]
    assert sum(rows.widths) + len(rows.widths) - 1 <= 80


def test_times():
    assert [clock_text(seconds) for seconds in (0, 61, 3600, 90061)] == ["0:00:00", "0:01:01", "1:00:00", "25:01:01"]


def test_scores_by_entity_are_those_of_the_log():
    gold = [["B-DNA", "I-DNA", "O"], ["B-protein", "O", "B-protein"]]
    scores = ner_metrics(gold, [["B-DNA", "I-DNA", "O"], ["B-protein", "B-DNA", "O"]])
    header, protein, dna, total, below = scores_table(scores, 100).splitlines()
    assert header.split() == ["precision", "recall", "F1", "number"]
    assert protein.split() == ["protein", "100.00", "50.00", "66.67", "2"]  # the most frequent first
    assert dna.split() == ["DNA", "50.00", "100.00", "66.67", "1"]
    assert total.split() == ["all", "66.67", "66.67", "66.67", "3"]
    assert below == "(accuracy 66.67, macro F1 66.67, strict F1 66.67; in percent)"


def test_means_over_labels_are_called_so():
    scores = classification_metrics(np.array([0, 0, 1]), np.array([0, 1, 1]), ("bad", "good"))
    *_, total, below = scores_table(scores, 100).splitlines()
    assert total.split() == ["macro", "75.00", "75.00", "66.67", "3"]
    assert below == "(accuracy 66.67; in percent)"


def test_139_types_of_long_names_fit_100_columns():
    types = {f"{number:03} {'long name ' * 9}": {"precision": 0.1, "recall": 1.0, "f1": 0.2, "support": number}
             for number in range(139)}  # fmt: skip
    table = scores_table({"precision": 0.1, "recall": 1.0, "f1": 0.2, "types": types}, 100)
    assert max(map(len, table.splitlines())) <= 100
    assert table.splitlines()[1].startswith("138 long name")
    assert "(119 rarer ones are left out; in percent)" in table


def test_scores_of_numbers():
    table = scores_table({"loss": 0.25, "pearson": 0.9, "mae": 0.5}, 100)
    assert [line.split() for line in table.splitlines()[1:]] == [
        ["loss", "0.2500"],
        ["pearson", "90.00"],
        ["mae", "0.5000"],
    ]


def test_the_end_names_scores_places_and_three_commands(make_run):
    text = ending(make_run("runs/a b", method="full"))
    assert "Scores of the test split, weights of epoch 3" in text
    assert "Written into runs/a b\n  best/" in text
    assert text.splitlines()[-4:] == [
        "Next",
        "  lora-core report 'runs/a b'",
        "  lora-core predict 'runs/a b' TEXTS.txt",
        "  lora-core export 'runs/a b'",
    ]
    assert "\x1b" not in text
