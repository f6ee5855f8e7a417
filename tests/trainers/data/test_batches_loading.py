"""Batches come in order, whoever prepares them, and leave torch's random numbers to the training."""

import numpy as np
import pytest
import torch

from trainers.data.batches import load_batches


class Rows:
    """Examples that show their index, the epoch, and the process's own random state."""

    lengths = label_counts = np.ones(7, dtype=np.int64)

    def collate(self, indices, epoch=None):
        inputs = {"index": torch.from_numpy(indices), "epoch": torch.tensor(-1 if epoch is None else epoch)}
        return inputs, torch.from_numpy(indices * 10)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("epoch", [None, 3])
def test_batches_come_in_order(workers, epoch):
    batches = [np.array([3, 1]), np.array([6]), np.array([0, 2, 5]), np.array([4])]
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loaded = list(load_batches(Rows(), batches, torch.device("cpu"), epoch=epoch, workers=workers))
    assert torch.get_rng_state().equal(before)
    assert [inputs["index"].tolist() for inputs, _ in loaded] == [batch.tolist() for batch in batches]
    assert [labels.tolist() for _, labels in loaded] == [(batch * 10).tolist() for batch in batches]
    assert {int(inputs["epoch"]) for inputs, _ in loaded} == {-1 if epoch is None else epoch}


def test_an_error_in_a_worker_reaches_the_caller():
    class Broken(Rows):
        def collate(self, indices, epoch=None):
            raise ValueError("image 4 of the folder is damaged")

    with pytest.raises(ValueError, match=r"^image 4 of the folder is damaged$"):
        list(load_batches(Broken(), [np.array([4])], torch.device("cpu"), workers=1))
