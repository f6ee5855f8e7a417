import json
from dataclasses import asdict

import numpy as np
import pytest

from trainers.results.compare import compare_runs, comparison_table, comparison_text, write_comparison
from trainers.results.significance import compare_predictions
from trainers.run_folder import RunFolder, save_predictions


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


def test_the_settings_in_which_runs_differ_are_named(make_run):
    lora = {"method": "lora", "learning_rate": 5e-4, "target_modules": ["query", "value"]}
    runs = [make_run("a", method="full", learning_rate=5e-5, output_dir="a"), make_run("b", **lora, output_dir="b")]
    comparison = compare_runs(runs)
    assert set(comparison.settings) == {"method", "learning_rate", "target_modules"}
    assert comparison.settings["method"] == ["full", "lora"]
    rows = [" ".join(line.split()) for line in comparison_table(comparison).splitlines()]
    assert "| settings that differ | a | b |" in rows
    assert "| learning_rate | 5e-05 | 0.0005 |" in rows
    assert "| target_modules | | query,value |" in rows


def with_inputs(run, test, tokenizer="t", train=100):
    """The run with an inputs.json that says what it was scored on: (examples, digest)."""
    run.folder.mkdir()
    examples, digest = test
    split = {"examples": examples, "sha256": digest}
    data = {"train": {"examples": train, "sha256": "x"}, "test": split, "validation": split}
    RunFolder(run.folder).write_inputs({"data": data, "tokenizer": tokenizer, "run": "id"})
    return run


def test_runs_scored_on_other_data_are_refused(make_run, tmp_path):
    first = with_inputs(make_run(tmp_path / "first"), (75, "aa"))
    same = with_inputs(make_run(tmp_path / "same"), (75, "aa"), train=90)
    comparison = compare_runs([first, same])
    assert comparison.notes == []
    assert comparison.settings == {"training data": ["100 examples", "90 examples"]}
    fewer = with_inputs(make_run(tmp_path / "fewer"), (74, "aa"))
    with pytest.raises(ValueError, match=r"scored on different data: the test split had 75 examples and 74"):
        compare_runs([first, fewer])
    others = with_inputs(make_run(tmp_path / "others"), (75, "bb"))
    with pytest.raises(ValueError, match=r"different data: the test split holds other examples with as many"):
        compare_runs([first, others])


def test_what_another_tokenizer_cuts_is_told_by_its_labels(make_run, tmp_path):
    first = with_inputs(make_run(tmp_path / "first", model="a"), (3, "aa"))
    other = with_inputs(make_run(tmp_path / "other", model="b"), (3, "bb"), tokenizer="u")
    (note,) = compare_runs([first, other]).notes
    assert note == "That first and other were scored on the same examples is not known."
    gold = [np.array([0, 1]), np.array([2]), np.array([0])]
    for run in (first, other):
        save_predictions(run.folder, "test", gold, gold)
    assert compare_runs([first, other]).notes == []
    save_predictions(other.folder, "test", gold, [*gold[:2], np.array([1])])
    with pytest.raises(ValueError, match="different data: the test split has other labels"):
        compare_runs([first, other])


def test_a_run_that_was_ended_early_is_named(make_run):
    whole, ended = make_run("runs/whole", epochs=9), make_run("runs/ended", epochs=9)
    ended.result.update(ended_early=True, epochs=3)
    comparison = compare_runs([whole, ended])
    assert comparison.notes == ["ended was ended early, after 3 of 9 epochs."]
    assert comparison.notes[0] in " ".join(comparison_text(comparison).split())


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_comparison_fits_the_terminal(make_run, width):
    scores = {"full": 0.72, "lora": 0.705, "head": 0.6}
    runs = [make_run(f"runs/{name}", f1=f1, method=name) for name, f1 in scores.items()]
    text = comparison_text(compare_runs(runs), width)
    tables = text.split("\n\n")[:-1]  # the caption flows
    assert max(map(len, "\n".join(tables).splitlines())) <= width
    rows = {line.split("  ")[0]: line.split()[1:] for line in tables[0].splitlines()}  # turned on its side
    shown = 2 if width == 60 else 3
    assert rows["run"] == ["full", "lora", "head"][:shown]
    assert rows["F1"] == ["72.00", "70.50", "60.00"][:shown]
    assert comparison_text(compare_runs(runs), 300).splitlines()[0].split()[:3] == ["run", "trainable", "total"]
