import numpy as np
import pytest

from trainers.data.texts.dataset import TextDataset


def test_an_array_of_0_and_1_has_a_column_for_each_label():
    flags = np.array([[1, 0, 1], [0, 0, 0]])
    several = TextDataset.from_lists(["a", "b"], flags, names=["x", "y", "z"])
    assert (several.labels, several.problem_type) == (("x", "y", "z"), "multi_label_classification")
    assert several.targets.tolist() == flags.tolist()
    assert TextDataset.from_lists(["a", "b"], flags.astype(bool)).labels == ("0", "1", "2")
    with pytest.raises(ValueError, match="3 columns of labels, but 2 names"):
        TextDataset.from_lists(["a", "b"], flags, names=["x", "y"])
    with pytest.raises(ValueError, match="expected 0 or 1"):
        TextDataset.from_lists(["a", "b"], 2 * flags)
    with pytest.raises(ValueError, match=r"example 0: the labels are .*one stands twice.*NumPy array \(N, L\)"):
        TextDataset.from_lists(["a", "b"], flags.tolist())
