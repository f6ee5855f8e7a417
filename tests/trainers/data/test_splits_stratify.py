import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.data.splits import MOST_REPEATS, repeat_rare_types, stratified_split

SHARES = (0.8, 0.1, 0.1)


def corpus(rows, types, seed=0):
    """Group of each row (one in ten repeats another), and entities: types grow rarer, rows hold up to four."""
    generator = np.random.default_rng(seed)
    groups = generator.permutation(rows)
    again = generator.random(rows) < 0.1
    groups[again] = generator.choice(groups, again.sum())
    per_group = generator.choice(5, rows, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    weights = 1 / np.arange(1, types + 1)
    of_group = [generator.choice(types, count, p=weights / weights.sum()) for count in per_group]
    entities = [(row, kind) for row, group in enumerate(groups) for kind in of_group[group]]
    return groups, np.array(entities).T


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_type_and_the_rows_have_their_shares(seed):
    groups, (rows, kinds) = corpus(6000, 20, seed)
    splits = stratified_split(groups, (rows, kinds), SHARES, seed=seed)
    counts = np.stack([np.bincount(kinds[splits[rows] == split], minlength=20) for split in range(3)])  # (3, types)
    expected = np.outer(SHARES, counts.sum(0))
    assert np.abs(counts - expected).max() <= 6
    assert np.abs(np.bincount(splits) / len(groups) - SHARES).max() < 0.01
    by_chance = np.random.default_rng(seed).choice(3, len(groups), p=SHARES)
    chance = np.stack([np.bincount(kinds[by_chance[rows] == split], minlength=20) for split in range(3)])
    assert np.abs(counts - expected).sum() < 0.2 * np.abs(chance - expected).sum()


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 60), types=st.integers(1, 5), seed=st.integers(0, 99))
def test_groups_stay_together_and_every_row_has_a_split(rows, types, seed):
    groups, entities = corpus(rows, types, seed) if rows > 1 else (np.zeros(1, int), np.zeros((2, 0), int))
    entities = entities if len(entities) else np.zeros((2, 0), dtype=int)
    splits = stratified_split(groups, (entities[0], entities[1]), SHARES, seed=seed)
    assert len(splits) == rows
    assert splits.max() < 3
    for group in np.unique(groups):
        assert len(set(splits[groups == group])) == 1


def test_the_seed_decides():
    groups, entities = corpus(500, 5)
    first, again, other = (stratified_split(groups, tuple(entities), SHARES, seed=seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_no_entities_at_all():
    splits = stratified_split(np.arange(1000), (np.zeros(0, int), np.zeros(0, int)), (0.5, 0.25, 0.25), seed=0)
    assert np.bincount(splits).tolist() == [500, 250, 250]


@pytest.mark.parametrize("shares", [(0.8, 0.1), (0.9, 0.1, 0.0), (1.2, -0.1, -0.1)])
def test_wrong_shares(shares):
    with pytest.raises(ValueError, match="expected positive numbers that sum to 1"):
        stratified_split(np.arange(3), (np.zeros(0, int), np.zeros(0, int)), shares, seed=0)


def written(rows, types, repeats):
    times = dict(zip(*repeats, strict=True))
    return np.bincount(np.repeat(types, [times[row] for row in rows]))


def test_rare_types_reach_their_share_and_no_more():
    _, (rows, types) = corpus(3000, 8)
    repeats = repeat_rare_types(rows, types, 0.5, seed=0)
    before, after = np.bincount(types), written(rows, types, repeats)
    assert before.min() < 0.2 * before.max()
    assert after.min() >= 0.5 * before.max()
    assert after[before.argmin()] < 0.7 * before.max()  # the repeats of other types bring more
    assert repeats[1].max() <= MOST_REPEATS
    assert (repeats[0] == np.unique(rows)).all()


def test_a_type_that_is_too_rare_is_repeated_as_often_as_allowed():
    rows, types = np.arange(101), np.array([0] * 100 + [1])
    distinct, repeats = repeat_rare_types(rows, types, 1.0, seed=0)
    assert repeats.tolist() == [1] * 100 + [MOST_REPEATS]
    assert distinct.tolist() == rows.tolist()


def test_nothing_to_repeat():
    none = np.zeros(0, dtype=int)
    assert [len(part) for part in repeat_rare_types(none, none, 0.5, seed=0)] == [0, 0]


def test_no_share_no_repeats():
    _, (rows, types) = corpus(100, 3)
    assert (repeat_rare_types(rows, types, 0.0, seed=0)[1] == 1).all()
