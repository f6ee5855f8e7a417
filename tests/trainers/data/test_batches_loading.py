"""Batches come in order, whoever prepares them, and leave torch's random numbers to the training."""

import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.fault("an error while a loader's process is busy", "the error at once; no process stays", "nothing")
def test_no_worker_stays_when_its_reader_ends_early(tmp_path):
    """Processes of a loader do not hear SIGTERM; one that stays would keep Python from ending."""
    code = (
        "import time, torch, numpy as np\n"
        "from trainers.data.batches import load_batches\n"
        "class Slow:\n"
        "    lengths = label_counts = np.ones(9, dtype=np.int64)\n"
        "    def collate(self, indices, epoch=None):\n"
        "        if indices[0] == 1: raise ValueError('row 1 is damaged')\n"
        "        if indices[0] == 2: time.sleep(1000)\n"
        "        return {}, torch.from_numpy(indices)\n"
        "if __name__ == '__main__':\n"
        "    kept = load_batches(Slow(), [np.array([n]) for n in range(9)], torch.device('cpu'), workers=2)\n"
        "    try:\n"
        "        list(kept)\n"
        "    except ValueError as error:\n"
        "        raise SystemExit(str(error))\n"
    )
    script = tmp_path / "slow.py"
    script.write_text(code)
    path = {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run(
        [sys.executable, script], env={**os.environ, **path}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (1, "row 1 is damaged\n")
