"""The oracle of the interval is scipy's test."""

import json

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_ind

from trainers.results.compare import compare_runs, comparison_table, write_comparison
from trainers.results.significance import welch_interval


@pytest.mark.parametrize(("one", "other"), [([70.0, 71.0, 69.5], [72.0, 74.5]), ([1.0, 1.5], [0.0, 3.0, 4.0])])
def test_the_interval_is_welchs(one, other):
    expected = ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    assert welch_interval(np.array(one), np.array(other)) == pytest.approx((expected.low, expected.high))


def test_equal_scores_have_no_interval():
    assert welch_interval(np.array([2.0, 2.0]), np.array([1.0, 1.0])) == (1.0, 1.0)


def test_runs_are_grouped_by_all_settings_but_the_seed(make_run, tmp_path):
    runs = [make_run("lora/1", f1=0.70, method="lora", seed=1, output_dir="a"),
            make_run("full/1", f1=0.72, method="full", seed=1), make_run("full/2", f1=0.73, method="full", seed=2),
            make_run("lora/2", f1=0.71, method="lora", seed=2, output_dir="b"),
            make_run("head/1", f1=0.50, method="head", seed=1)]  # fmt: skip
    comparison = compare_runs(runs, baseline=1)
    full, lora = comparison.seeds
    assert (full.names, lora.names) == (("full/1", "full/2"), ("lora/1", "lora/2"))
    assert (full.interval, full.f1) == (None, pytest.approx(0.725))
    assert lora.deviation == pytest.approx(np.std([0.70, 0.71], ddof=1))
    assert lora.interval == pytest.approx(ttest_ind([70, 71], [72, 73], equal_var=False).confidence_interval(0.95))
    table = comparison_table(comparison)
    assert "| full/1, full/2" in table
    assert f"{lora.interval[0]:+.2f} to {lora.interval[1]:+.2f}" in table
    _, figures, _ = write_comparison(comparison, tmp_path)
    assert json.loads(figures.read_text())["seeds"][1]["names"] == ["lora/1", "lora/2"]


def test_two_runs_that_differ_in_the_seed_alone_give_mean_deviation_and_interval(make_run):
    alone = make_run("lora/1", method="lora", seed=1)
    several = [make_run(f"full/{seed}", f1=f1, method="full", seed=seed) for seed, f1 in ((1, 0.70), (2, 0.71))]
    low, high = ttest_1samp([70, 71], 0).confidence_interval(0.95)
    for runs in ([alone, *several], [*several, alone], several):
        comparison = compare_runs(runs)
        (group,) = comparison.seeds
        assert [name.removeprefix("full/") for name in group.names] == ["1", "2"]
        assert group.interval is None  # nothing to compare it with
        assert group.f1 - group.half_width == pytest.approx(low / 100)
        assert group.f1 + group.half_width == pytest.approx(high / 100)
        assert f"70.50 | 0.71 | {low:.2f} to {high:.2f}".split(" | ") == [
            cell.strip() for cell in comparison_table(comparison).splitlines()[-1].split("|")[2:5]
        ]


def test_the_same_seed_twice_is_no_second_draw(make_run):
    runs = [make_run("a", seed=1), make_run("b", seed=1), make_run("c", seed=2)]
    (group,) = compare_runs(runs).seeds
    assert group.names == ("a", "c")
    assert compare_runs(runs[:2]).seeds == []


def test_runs_without_others_of_their_kind_have_no_groups(make_run):
    comparison = compare_runs([make_run("a", method="lora"), make_run("b", method="full")])
    assert comparison.seeds == []
    assert "same settings" not in comparison_table(comparison)
