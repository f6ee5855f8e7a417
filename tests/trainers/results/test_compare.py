import json
from dataclasses import asdict

import numpy as np
import pytest

from trainers.results.compare import compare_runs, comparison_table, write_comparison
from trainers.results.significance import compare_predictions
from trainers.run_folder import save_predictions


def test_figures_of_each_run(make_run):
    comparison = compare_runs([make_run("runs/full", f1=0.72), make_run("runs/lora", f1=0.705)])
    assert (comparison.data, comparison.split, comparison.baseline) == ("bionlp2004", "test", "full")
    assert list(comparison.support.items()) == [("protein", 500), ("DNA", 100)]
    full, lora = comparison.rows
    assert full.f1_difference == 0.0
    assert lora.f1_difference == pytest.approx(-1.5)
    expected = {
        "name": "lora",
        "trainable": 700_427,
        "total": 124_661_782,
        "validation_loss": 0.2,
        "precision": pytest.approx(0.715),
        "recall": pytest.approx(0.695),
        "f1": 0.705,
        "f1_difference": pytest.approx(-1.5),
        "difference": None,
        "strict_f1": pytest.approx(0.655),
        "accuracy": 0.95,
        "seconds": 3723.4,
        "tokens_per_second": 2137.4,
        "peak_memory_bytes": 3_500_000_000,
        "validation_f1": pytest.approx({1: 0.605, 2: 0.655, 3: 0.705 - 0.1 / 3}),
        "type_f1": {"DNA": 0.705, "protein": 0.705},
    }
    assert asdict(lora) == expected


def test_another_baseline(make_run):
    comparison = compare_runs([make_run("a", f1=0.7), make_run("b", f1=0.8)], baseline=1)
    assert comparison.baseline == "b"
    assert [row.f1_difference for row in comparison.rows] == pytest.approx([-10.0, 0.0])


def test_table(make_run):
    table = comparison_table(compare_runs([make_run("full", f1=0.72), make_run("lora|r8", f1=0.725)]))
    lines = table.splitlines()
    assert len({len(line) for line in lines[:4]}) == 1  # aligned
    assert lines[1].replace("-", "").replace(":", "").replace("|", "").strip() == ""
    header, full, lora = ([cell.strip() for cell in lines[row].strip("| ").split(" | ")] for row in (0, 2, 3))
    assert dict(zip(header, full, strict=True)) == {
        "run": "full",
        "trainable": "700,427 (0.56%)",
        "total": "124,661,782",
        "val. loss": "0.2000",
        "precision": "73.00",
        "recall": "71.00",
        "F1": "72.00",
        "difference": "baseline",
        "strict F1": "67.00",
        "accuracy": "95.00",
        "time": "1 h 02 min",
        "tokens/s": "2,137",
        "peak memory": "3.50 GB",
    }
    assert lora[0] == r"lora\|r8"
    assert lora[7] == "+0.50"
    assert "bionlp2004" in lines[-1]
    assert "test split" in lines[-1]


@pytest.mark.parametrize(("seconds", "text"), [(9.6, "10 s"), (59.7, "1 min 00 s"), (3599.2, "59 min 59 s")])
def test_time(make_run, seconds, text):
    runs = [make_run("a"), make_run("b")]
    runs[0].result["seconds"] = seconds
    assert f" {text} |" in comparison_table(compare_runs(runs))


def test_validation_scores_serve_where_a_run_has_no_test_scores(make_run):
    runs = [make_run("a"), make_run("b")]
    del runs[1].result["test"]
    runs[0].result["validation"]["f1"] = 0.6
    comparison = compare_runs(runs)
    assert comparison.split == "validation"
    assert comparison.rows[0].f1 == 0.6
    assert "validation split" in comparison_table(comparison)


def test_runs_of_one_name_are_told_apart_by_their_parents(make_run):
    comparison = compare_runs([make_run("seed1/ner/run"), make_run("seed2/ner/run")])
    assert [row.name for row in comparison.rows] == ["seed1/ner/run", "seed2/ner/run"]


def test_the_same_data_in_another_place(make_run):
    assert compare_runs([make_run("a", data="tner/bionlp2004"), make_run("b", data="../data/bionlp2004")])


def test_a_type_that_is_only_predicted_is_no_other_data(make_run):
    runs = [make_run("a"), make_run("b", support={"DNA": 100, "protein": 500, "RNA": 0})]
    assert list(compare_runs(runs).support) == ["protein", "DNA"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"data": "fin"}, "only runs on the same data"),
        ({"labels": ["O", "B-DNA"]}, "only runs with the same labels"),
        ({"support": {"DNA": 100, "protein": 499}}, "they scored different sentences"),
    ],
)
def test_what_cannot_be_compared(make_run, second, message):
    with pytest.raises(ValueError, match=message):
        compare_runs([make_run("a"), make_run("b", **second)])


def test_a_config_that_does_not_name_the_data(make_run):
    runs = [make_run("a"), make_run("b")]
    del runs[1].config["data"]
    with pytest.raises(ValueError, match="does not say which data"):
        compare_runs(runs)


@pytest.mark.parametrize(
    "keys", [("trainable",), ("labels",), ("test", "strict_f1"), ("validation", "loss"), ("test", "types")]
)
def test_a_result_without_a_figure(make_run, keys):
    runs = [make_run("a"), make_run("b")]
    scores = runs[1].result[keys[0]] if len(keys) == 2 else runs[1].result
    del scores[keys[-1]]
    with pytest.raises(ValueError, match=f"run in b lacks '{'.'.join(keys)}'"):
        compare_runs(runs)


def test_too_few_runs_twice_the_same_or_no_such_baseline(make_run):
    with pytest.raises(ValueError, match="at least two runs, but 1 was given"):
        compare_runs([make_run("a")])
    with pytest.raises(ValueError, match="given more than once"):
        compare_runs([make_run("a"), make_run("b"), make_run("./a")])
    with pytest.raises(ValueError, match="baseline is run 2, but the runs are numbered 0 to 1"):
        compare_runs([make_run("a"), make_run("b")], baseline=2)


def test_written_files(make_run, tmp_path):
    comparison = compare_runs([make_run("a"), make_run("b", f1=0.8)])
    table, figures, picture = write_comparison(comparison, tmp_path / "new" / "folder")
    assert [path.name for path in (table, figures, picture)] == [
        "comparison.md",
        "comparison.json",
        "comparison.png",
    ]
    assert table.read_text(encoding="utf-8") == comparison_table(comparison)
    read = json.loads(figures.read_text(encoding="utf-8"))
    assert read["baseline"] == "a"
    assert read["rows"][1]["f1"] == 0.8
    assert read["rows"][1]["validation_f1"]["3"] == pytest.approx(0.8 - 0.1 / 3)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_text_and_image_runs_have_no_strict_f1(make_run):
    runs = [make_run(name, task="image-classification") for name in ("full", "lora")]
    for run in runs:
        del run.result["test"]["strict_f1"]
    comparison = compare_runs(runs)
    assert [row.strict_f1 for row in comparison.rows] == [None, None]
    lines = comparison_table(comparison).splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    assert "strict" not in lines[0]
    with pytest.raises(ValueError, match=r"did token-classification but .* image-classification"):
        compare_runs([make_run("words"), runs[0]])


def test_saved_predictions_show_how_sure_a_difference_is(make_run, tmp_path):
    gold = [np.array([number % 3]) for number in range(60)]
    runs = []
    for name, wrong in (("base", 20), ("better", 2), ("same", 20)):
        run = make_run(tmp_path / name, labels=["a", "b", "c"], task="text-classification")
        run.folder.mkdir()
        save_predictions(run.folder, "test", [(ids + (index < wrong)) % 3 for index, ids in enumerate(gold)], gold)
        runs.append(run)
    runs.append(make_run(tmp_path / "older", labels=["a", "b", "c"], task="text-classification"))
    comparison = compare_runs(runs)
    base, better, same, older = comparison.rows
    assert base.difference is older.difference is None
    assert better.difference == compare_predictions(runs[1], runs[0], "test")
    assert (same.difference.f1_low, same.difference.f1_high, same.difference.p) == (0, 0, 1)
    header, _, *rows = ([cell.strip() for cell in line.strip("| ").split(" | ")]
                        for line in comparison_table(comparison).splitlines()[:6])  # fmt: skip
    cells = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert cells["better"]["McNemar p"] == "< 0.001"
    assert cells["same"]["95% interval"] == "+0.00 to +0.00"
    assert cells["older"]["McNemar p"] == cells["base"]["McNemar p"] == ""
