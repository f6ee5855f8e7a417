import numpy as np
import pytest

from trainers.data.images.batches import ImageDataset
from trainers.data.splits import completed, hold_out, sample, stratified, take
from trainers.data.texts.reader import TextDataset
from trainers.data.tokens.reader import TokenDataset

TOKENS = TokenDataset([["a"], ["b", "c"], ["d"]], [[0], [1, 0], [1]], ("O", "B-x"), "here")
TEXTS = TextDataset([str(number) for number in range(50)], np.arange(50), ("x",), "there")


def test_take():
    assert take(TOKENS, np.array([2, 0])) == TokenDataset([["d"], ["a"]], [[1], [0]], ("O", "B-x"), "here")
    taken = take(TEXTS, np.array([7, 3]))
    assert (taken.texts, taken.targets.tolist(), taken.labels, taken.source) == (["7", "3"], [7, 3], ("x",), "there")


def test_a_sample_keeps_the_order_and_depends_on_the_seed_alone():
    first = sample(TEXTS, 20, seed=1)
    assert len(first) == 20
    assert first.targets.tolist() == sorted(set(first.targets.tolist()))
    assert first.texts == sample(TEXTS, 20, seed=1).texts != sample(TEXTS, 20, seed=2).texts
    assert sample(TEXTS, 50, seed=1) is TEXTS
    with pytest.raises(ValueError, match="limit=0"):
        sample(TEXTS, 0, seed=1)


def test_a_stratified_sample_keeps_the_labels_shares():
    targets = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [60, 30, 11]))
    dataset = TextDataset([str(number) for number in range(101)], targets, ("a", "b", "c"), "there")
    found = stratified(dataset, 20)
    assert np.bincount(found.targets).tolist() == [12, 6, 2]
    assert found.targets.tolist() == [targets[int(text)] for text in found.texts]
    assert list(map(int, found.texts)) == sorted(set(map(int, found.texts)))
    assert found.texts == stratified(dataset, 20).texts != stratified(dataset, 20, seed=1).texts
    assert len(stratified(dataset, 7)) == 7
    assert stratified(dataset, 101) is dataset


def numbered(count, labels="ab", distinct=1000):
    """So many texts, every `distinct`-th the same again."""
    texts = [str(number % distinct) for number in range(count)]
    return TextDataset.from_lists(texts, [labels[number % len(labels)] for number in range(count)], source="here")


def pictures(count):
    pixels = np.arange(count, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    return ImageDataset(pixels, np.arange(count) % 2, ("a", "b"), "there")


@pytest.mark.parametrize("dataset", [numbered(40), pictures(40)], ids=lambda dataset: dataset.noun)
def test_a_part_of_each_label_is_held_out_and_the_seed_decides_which(dataset):
    rest, held_out = hold_out(dataset, 0.2)
    assert np.bincount(rest.targets).tolist() == [16, 16]
    assert np.bincount(held_out.targets).tolist() == [4, 4]
    examples = [list(map(str, getattr(part, "images", getattr(part, "texts", None)))) for part in (rest, held_out)]
    assert not set(examples[0]) & set(examples[1])
    again, other = hold_out(dataset, 0.2)[1], hold_out(dataset, 0.2, seed=1)[1]
    fields = [list(map(str, getattr(part, "images", getattr(part, "texts", None)))) for part in (again, other)]
    assert fields[0] == examples[1] != fields[1]


def test_a_share_of_a_whole_of_which_some_are_gone():
    rest, test = hold_out(pictures(200))
    assert [len(part) for part in hold_out(rest, of=200)] == [160, 20]
    assert len(test) == 20
    rest, _ = hold_out(numbered(200))
    assert abs(len(hold_out(rest, of=200)[1]) - 20) <= 1


def test_groups_stay_together():
    rest, held_out = hold_out(numbered(100, distinct=30), 0.3)
    assert len(held_out) > 20
    assert not set(rest.texts) & set(held_out.texts)
    patients = np.arange(60) // 6
    rest, held_out = hold_out(pictures(60), 0.2, groups=patients)
    assert not set(patients[rest.images[:, 0, 0]]) & set(patients[held_out.images[:, 0, 0]])
    assert len(held_out) == 12


def test_what_cannot_be_held_out():
    for share in (0, 1, -0.1):
        with pytest.raises(ValueError, match=f"share={share}: expected a part"):
            hold_out(pictures(40), share)
    with pytest.raises(ValueError, match=r"got groups of shape \(3,\) for 40 pictures"):
        hold_out(pictures(40), groups=np.arange(3))
    with pytest.raises(ValueError, match="there holds 4 pictures, too few to set some aside for scoring"):
        hold_out(pictures(4))
    with pytest.raises(ValueError, match=r"here holds 2 texts, too few to set some aside for scoring. Add some"):
        hold_out(numbered(2))
    with pytest.raises(ValueError, match="too few to set some aside for scoring: only 1 of them are different"):
        hold_out(numbered(20, distinct=1))
    with pytest.raises(ValueError, match=r"of each of the 10 labels there are only about 3\. Add some"):
        hold_out(ImageDataset(np.zeros((30, 4, 4), np.uint8), np.arange(30) % 10, tuple("abcdefghij"), "here"))


def test_splits_are_completed_and_put_in_order(caplog):
    datasets = completed({"test": numbered(4, "abc"), "train": numbered(40, "ab").with_labels(("a", "b", "c"))})
    assert {split: len(dataset) for split, dataset in datasets.items()} == {"train": 36, "validation": 4, "test": 4}
    assert list(datasets) == ["train", "validation", "test"]
    assert caplog.messages == [
        "here: no validation split; 4 of 40 training texts became one",
        "the test split has labels that the training split lacks: c",
    ]
    caplog.clear()
    assert completed(datasets) == datasets
    assert completed({"test": datasets["test"]}) == {"test": datasets["test"]}
    assert len(caplog.messages) == 1
