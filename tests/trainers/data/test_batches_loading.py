"""Batches come in order, whoever prepares them, and leave torch's random numbers to the training."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lora_core.models.host import on_host
from trainers.data import batches as module
from trainers.data.batches import SideStream, load_batches, one_ahead, sent


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


BATCHES = [np.array([3, 1]), np.array([6]), np.array([0, 2, 5]), np.array([4])]


class Queue:
    """A side stream that notes what is asked of it. Its copies stay on the CPU, or go to the meta device."""

    def __init__(self, device):
        self.device, self.log = torch.device(device), []

    def send(self, batch):
        self.log.append(("sent", int(batch[1][0])))
        return sent(self.device, batch), "arrived"

    def hand_over(self, moved, arrived):
        assert arrived == "arrived"
        self.log.append(("handed over", int(on_host(moved[1])[0])))
        return moved


@pytest.mark.parametrize("workers", [0, 2])
def test_copies_ahead_change_neither_order_nor_bits(workers, monkeypatch):
    """As on a GPU, with a queue that copies to the CPU."""
    expected = list(load_batches(Rows(), BATCHES, torch.device("cpu"), epoch=1, workers=workers))
    queue = Queue("cpu")
    monkeypatch.setattr(module, "SideStream", lambda device: queue)
    unpinned = lambda *data, pin_memory, **options: DataLoader(*data, **options)  # noqa: E731
    monkeypatch.setattr(torch.utils.data, "DataLoader", unpinned)
    found = list(load_batches(Rows(), BATCHES, torch.device("cuda", 0), epoch=1, workers=workers))
    assert len(found) == len(expected) == 4
    for (inputs, labels), (wanted, wanted_labels) in zip(found, expected, strict=True):
        assert labels.equal(wanted_labels)
        assert inputs.keys() == wanted.keys()
        assert all(inputs[name].equal(wanted[name]) for name in wanted)
    assert [first for what, first in queue.log if what == "sent"] == [30, 60, 0, 40]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_every_batch_is_sent_before_the_one_ahead_of_it_is_used(device):
    queue = Queue(device)
    loaded = (Rows().collate(batch) for batch in BATCHES)
    for inputs, labels in one_ahead(loaded, queue):
        assert inputs["index"].device == labels.device == queue.device
        queue.log.append(("used", int(on_host(labels)[0])))
    assert queue.log == [
        ("sent", 30), ("sent", 60), ("handed over", 30), ("used", 30),
        ("sent", 0), ("handed over", 60), ("used", 60),
        ("sent", 40), ("handed over", 0), ("used", 0),
        ("handed over", 40), ("used", 40),
    ]  # fmt: skip


@pytest.mark.parametrize("count", [0, 1])
def test_few_batches_are_sent_ahead_too(count):
    loaded = (Rows().collate(batch) for batch in BATCHES[:count])
    assert len(list(one_ahead(loaded, Queue("cpu")))) == count


def test_an_error_keeps_its_turn():
    """What comes before a damaged example is computed first, as without copies ahead."""
    error, found = ValueError("image 4 is damaged"), []
    with pytest.raises(ValueError, match="image 4 is damaged"):
        found.extend(labels.tolist() for _, labels in one_ahead([Rows().collate(BATCHES[0]), error], Queue("cpu")))
    assert found == [[30, 10]]


def test_what_the_side_stream_asks_of_cuda(monkeypatch):
    """The copy runs in the side stream; the computing stream waits for it, and holds its memory."""
    log = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            log.append(f"enter {self.name}")

        def __exit__(self, *error):
            log.append(f"leave {self.name}")

        def record_event(self):
            log.append(f"event of {self.name}")
            return f"event of {self.name}"

        def wait_event(self, event):
            log.append(f"{self.name} waits for {event}")

    computing = Stream("computing")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: log.append(f"held by {stream.name}"))
    stream = SideStream(torch.device("meta"))
    moved, arrived = stream.send(Rows().collate(BATCHES[0]))
    assert log == ["enter side", "event of side", "leave side"]
    log.clear()
    inputs, labels = stream.hand_over(moved, arrived)
    assert log == ["computing waits for event of side", *["held by computing"] * 3]
    assert {tensor.device.type for tensor in (*inputs.values(), labels)} == {"meta"}


def test_what_the_host_knows_of_a_batch_it_keeps():
    class Masked(Rows):
        def collate(self, indices, epoch=None):
            inputs, labels = super().collate(indices, epoch)
            return {**inputs, "attention_mask": torch.tensor([[1, 0]] * len(indices))}, labels

    (inputs, labels), *_ = load_batches(Masked(), BATCHES, torch.device("meta"))
    assert inputs["attention_mask"].device.type == labels.device.type == "meta"
    assert on_host(inputs["attention_mask"]).tolist() == [[1, 0], [1, 0]]
    assert on_host(labels).tolist() == [30, 10]
    with pytest.raises(NotImplementedError):
        on_host(inputs["index"])  # of the others it would have to ask
