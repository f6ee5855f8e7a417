from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.data.batches import epoch_batches, evaluation_batches, share, share_by_tokens, total_steps

BUDGETS = st.integers(1, 200)
LENGTHS = st.lists(st.integers(1, 60), max_size=80).map(np.array)


def padding(batches: list[np.ndarray], lengths: np.ndarray) -> float:
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    return padded / lengths.sum()


@given(LENGTHS, st.integers(1, 9), st.integers(0, 3), st.integers(0, 3), st.integers(1, 4))
def test_an_epoch_holds_every_index_once_and_only_the_last_batch_is_short(lengths, batch_size, seed, epoch, group):
    batches = epoch_batches(lengths, batch_size, seed=seed, epoch=epoch, group=group)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all((np.diff(lengths[batch]) >= 0).all() for batch in batches)
    assert all(np.issubdtype(batch.dtype, np.integer) for batch in batches)


def test_the_order_follows_from_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(1, 60, 500)

    def flat(seed, epoch):
        return np.concatenate(epoch_batches(lengths, 8, seed=seed, epoch=epoch)).tolist()

    assert flat(1, 2) == flat(1, 2)
    assert flat(1, 2) != flat(1, 3)
    assert flat(1, 2) != flat(2, 2)
    assert flat(1, 2) != flat(2, 1)


def test_grouping_saves_padding_and_leaves_the_batch_order_random():
    lengths = np.random.default_rng(0).integers(1, 100, 4096)
    plain = epoch_batches(lengths, 16, seed=0, epoch=0, group=1)
    grouped = epoch_batches(lengths, 16, seed=0, epoch=0, group=50)
    assert padding(plain, lengths) > 1.5
    assert padding(grouped, lengths) < 1.1
    means = np.array([lengths[batch].mean() for batch in grouped])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2  # sorted batches in a row would give nearly 1


def test_group_of_one_is_plain_shuffling():
    lengths = np.random.default_rng(0).integers(1, 100, 64)
    batches = epoch_batches(lengths, 8, seed=3, epoch=1, group=1)
    plain = np.random.default_rng((3, 1)).permutation(64).reshape(8, 8)
    assert {frozenset(batch.tolist()) for batch in batches} == {frozenset(row.tolist()) for row in plain}


def padded(batch: np.ndarray, lengths: np.ndarray) -> int:
    return len(batch) * int(lengths[batch].max(initial=0))


@given(LENGTHS, BUDGETS, st.integers(0, 3), st.integers(0, 3), st.integers(1, 4))
def test_batches_under_a_budget_of_tokens_hold_every_index_once(lengths, budget, seed, epoch, group):
    batches = epoch_batches(lengths, 1, seed=seed, epoch=epoch, group=group, batch_tokens=budget)
    assert sorted(int(index) for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(padded(batch, lengths) <= budget or len(batch) == 1 for batch in batches)
    assert all(len(batch) for batch in batches)
    assert all((np.diff(lengths[batch]) >= 0).all() for batch in batches)


@given(LENGTHS, st.integers(1, 9), st.none() | BUDGETS, st.integers(0, 3))
def test_total_steps_are_the_batches_of_all_epochs(lengths, batch_size, budget, epochs):
    batches = [epoch_batches(lengths, batch_size, seed=5, epoch=epoch, batch_tokens=budget) for epoch in range(epochs)]
    assert total_steps(lengths, batch_size, seed=5, epochs=epochs, batch_tokens=budget) == sum(map(len, batches))


def test_token_batches_follow_from_seed_and_epoch_and_come_in_random_order():
    lengths = np.random.default_rng(0).integers(1, 100, 4096)

    def batches(seed, epoch):
        return epoch_batches(lengths, 1, seed=seed, epoch=epoch, batch_tokens=800)

    same, again = batches(1, 2), batches(1, 2)
    assert [batch.tolist() for batch in same] == [batch.tolist() for batch in again]
    assert np.concatenate(same).tolist() != np.concatenate(batches(1, 3)).tolist()
    assert np.concatenate(same).tolist() != np.concatenate(batches(2, 2)).tolist()
    longest = np.array([lengths[batch].max() for batch in same])
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.2


def test_token_batches_are_full_and_hold_little_padding():
    lengths = np.random.default_rng(0).integers(1, 100, 4096)
    batches = epoch_batches(lengths, 1, seed=0, epoch=0, batch_tokens=1600)
    assert padding(batches, lengths) < 1.1
    assert np.mean([padded(batch, lengths) for batch in batches]) > 0.95 * 1600
    lone = epoch_batches(np.full(10, 7), 1, seed=0, epoch=0, batch_tokens=21)
    assert sorted(map(len, lone)) == [1, 3, 3, 3]


@given(LENGTHS, st.integers(1, 5), BUDGETS)
def test_shares_by_tokens_hold_every_index_once_and_stay_within_the_budget(lengths, world, budget):
    batch = np.argsort(lengths, kind="stable")
    shares = [share_by_tokens(batch, lengths, rank, world, budget) for rank in range(world)]
    assert sorted(int(index) for of_rank in shares for part in of_rank for index in part) == sorted(batch.tolist())
    assert all(of_rank for of_rank in shares)  # each rank takes part in the exchange of gradients
    assert all(padded(part, lengths) <= budget or len(part) == 1 for of_rank in shares for part in of_rank)
    tokens = [sum(int(lengths[part].sum()) for part in of_rank) for of_rank in shares]
    assert max(tokens) - min(tokens) <= lengths.max(initial=0)


def test_a_share_by_tokens_is_cut_where_share_would_deal_it():
    lengths = np.arange(1, 65)
    for rank in range(2):
        (whole,) = share(np.arange(64), rank, 2, 1)
        parts = share_by_tokens(np.arange(64), lengths, rank, 2, 300)
        assert sorted(np.concatenate(parts).tolist()) == whole.tolist()
        assert len(parts) < 7  # 1,056 or 1,024 useful tokens


@given(LENGTHS, BUDGETS, st.integers(1, 4))
def test_evaluation_under_a_budget_takes_every_index_once_over_the_ranks(lengths, budget, world):
    ranks = [evaluation_batches(lengths, budget, rank, world) for rank in range(world)]
    batches = [batch for of_rank in ranks for batch in of_rank]
    assert sorted(int(index) for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(padded(batch, lengths) <= budget or len(batch) == 1 for batch in batches)
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1
    longest = [int(lengths[batch].max()) for batch in evaluation_batches(lengths, budget)]
    assert longest == sorted(longest, reverse=True)


@given(LENGTHS, st.integers(1, 5), st.integers(1, 4))
def test_shares_hold_every_index_once_over_the_ranks(lengths, world, micro_batches):
    batch = np.argsort(lengths, kind="stable")
    shares = [share(batch, rank, world, micro_batches) for rank in range(world)]
    assert all(len(of_rank) == micro_batches for of_rank in shares)
    assert (
        sorted(index for of_rank in shares for part in of_rank for index in part) == batch[np.argsort(batch)].tolist()
    )
    sizes = [sum(map(len, of_rank)) for of_rank in shares]
    assert max(sizes) - min(sizes) <= 1


@given(LENGTHS.filter(len), st.integers(1, 60))
def test_micro_batches_by_tokens_are_few_and_even(lengths, budget):
    order = np.argsort(-lengths, kind="stable")
    found = share_by_tokens(order[::-1], lengths, 0, 1, budget)
    assert np.concatenate(found).tolist() == order.tolist()

    @cache
    def best(start):
        """(parts, tokens of the largest) of the best way to cut what comes from there."""
        if start == len(order):
            return 0, 0
        ways = []
        for stop in range(start + 1, len(order) + 1):
            tokens = padded(order[start:stop], lengths)
            if tokens <= budget or stop == start + 1:
                parts, largest = best(stop)
                ways.append((parts + 1, max(largest, tokens)))
        return min(ways)

    assert (len(found), max(padded(part, lengths) for part in found)) == best(0)


def test_shares_have_even_lengths_and_micro_batches_of_similar_length():
    lengths = np.arange(1, 65)
    shares = [share(np.arange(64), rank, 2, 4) for rank in range(2)]
    totals = [sum(lengths[part].sum() for part in of_rank) for of_rank in shares]
    assert max(totals) / min(totals) < 1.05
    assert all(np.ptp(lengths[part]) <= 16 for of_rank in shares for part in of_rank)


def test_a_rank_may_get_an_empty_share():
    assert [[part.tolist() for part in share(np.array([7]), rank, 2, 2)] for rank in range(2)] == [
        [[7], []],
        [[], []],
    ]


def test_evaluation_sorts_by_length():
    lengths = np.random.default_rng(0).integers(1, 100, 1000)
    assert padding(evaluation_batches(lengths, 800), lengths) < 1.03


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: epoch_batches(np.ones(3), 0, seed=0, epoch=0), "batch_size=0"),
        (lambda: epoch_batches(np.ones(3), 1, seed=0, epoch=0, group=0), "group=0"),
        (lambda: evaluation_batches(np.ones(3), 1, 2, 2), "rank=2 of world=2"),
        (lambda: share(np.arange(3), -1, 2, 1), "rank=-1 of world=2"),
        (lambda: share(np.arange(3), 0, 1, 0), "micro_batches=0"),
        (lambda: epoch_batches(np.ones(3), 1, seed=0, epoch=0, batch_tokens=0), "batch_tokens=0"),
        (lambda: evaluation_batches(np.ones(3), 0), "batch_tokens=0"),
        (lambda: share_by_tokens(np.arange(3), np.ones(3), 0, 1, 0), "micro_batch_tokens=0"),
        (lambda: share_by_tokens(np.arange(3), np.ones(3), 1, 1, 9), "rank=1 of world=1"),
    ],
)
def test_impossible_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
