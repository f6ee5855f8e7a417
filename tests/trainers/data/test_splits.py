import numpy as np
import pytest

from trainers.data.splits import sample, stratified, take
from trainers.data.texts.reader import TextDataset
from trainers.data.tokens.reader import TokenDataset

TOKENS = TokenDataset([["a"], ["b", "c"], ["d"]], [[0], [1, 0], [1]], ("O", "B-x"), "here")
TEXTS = TextDataset([str(number) for number in range(50)], np.arange(50), ("x",), "there")


def test_take():
    assert take(TOKENS, np.array([2, 0])) == TokenDataset([["d"], ["a"]], [[1], [0]], ("O", "B-x"), "here")
    taken = take(TEXTS, np.array([7, 3]))
    assert (taken.texts, taken.targets.tolist(), taken.labels, taken.source) == (["7", "3"], [7, 3], ("x",), "there")


def test_a_sample_keeps_the_order_and_depends_on_the_seed_alone():
    first = sample(TEXTS, 50, 20, seed=1)
    assert len(first) == 20
    assert first.targets.tolist() == sorted(set(first.targets.tolist()))
    assert first.texts == sample(TEXTS, 50, 20, seed=1).texts != sample(TEXTS, 50, 20, seed=2).texts
    assert sample(TEXTS, 50, 50, seed=1) is TEXTS
    with pytest.raises(ValueError, match="limit=0"):
        sample(TEXTS, 50, 0, seed=1)


def test_a_stratified_sample_keeps_the_labels_shares():
    targets = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [60, 30, 11]))
    dataset = TextDataset([str(number) for number in range(101)], targets, ("a", "b", "c"), "there")
    found = stratified(dataset, targets, 20)
    assert np.bincount(found.targets).tolist() == [12, 6, 2]
    assert found.targets.tolist() == [targets[int(text)] for text in found.texts]
    assert list(map(int, found.texts)) == sorted(set(map(int, found.texts)))
    assert found.texts == stratified(dataset, targets, 20).texts != stratified(dataset, targets, 20, seed=1).texts
    assert len(stratified(dataset, targets, 7)) == 7
    assert stratified(dataset, targets, 101) is dataset
