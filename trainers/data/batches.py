"""Which examples go into which batch, on which rank; and batches on their way to the device.

Everything follows from (seed, epoch), so a run can resume. Batches hold examples of similar length, which saves most
padding, and come in random order. They are prepared in the loop, or ahead of it by worker processes.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lora_core.models.host import keep_on_host
from trainers.processes.interrupt import unheard_by_children
from trainers.processes.parent import end_with_parent


class Data(Protocol):
    """What the loop asks of a data set of N examples."""

    @property
    def lengths(self) -> np.ndarray:
        """(N,) positions of each example; examples of similar length share a batch."""
        ...

    @property
    def label_counts(self) -> np.ndarray:
        """(N,) labels of each example: the number of terms it adds to the summed loss."""
        ...

    def collate(self, indices: np.ndarray, epoch: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """The model's keyword arguments and the labels of a batch.

        In training ``epoch`` is given; random changes of an example depend on it and the example alone.
        """
        ...


def epoch_batches(
    lengths: np.ndarray, batch_size: int, *, seed: int, epoch: int, group: int = 50, batch_tokens: int | None = None
) -> list[np.ndarray]:
    """The global batches of one epoch: index arrays int64, every index exactly once.

    Examples are shuffled, sorted by length inside windows of `group` batches, cut into batches, and the batches
    shuffled. Within a batch, examples are sorted by length, which lets ranks share it evenly.

    A batch has `batch_size` examples, and the last one holds the remainder; `group=1` is plain shuffling. Or, with
    `batch_tokens`, as many examples as fit: examples times the longest of them, the batch with its padding, stays
    within `batch_tokens`, except that a longer example is a batch of its own. Then `batch_size` does not matter, and
    the number of batches differs a little between epochs (`total_steps` adds them up).
    """
    _check_at_least_one(batch_size=batch_size, group=group)
    lengths = np.asarray(lengths)
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(lengths))
    if batch_tokens is not None:
        _check_at_least_one(batch_tokens=batch_tokens)
        batches = _fill_batches(order, lengths, batch_tokens, group)
        return [batches[index] for index in generator.permutation(len(batches))]
    full = len(order) // batch_size * batch_size
    window = group * batch_size
    batches = []
    for start in range(0, full, window):
        indices = _sorted_by_length(order[start : min(start + window, full)], lengths)
        batches.extend(np.split(indices, len(indices) // batch_size))
    batches = [batches[index] for index in generator.permutation(len(batches))]
    if full < len(order):
        batches.append(_sorted_by_length(order[full:], lengths))
    return batches


def total_steps(
    lengths: np.ndarray, batch_size: int, *, seed: int, epochs: int, group: int = 50, batch_tokens: int | None = None
) -> int:
    """Batches of all epochs together."""
    if batch_tokens is None:
        return -(-len(lengths) // batch_size) * epochs
    return sum(
        len(epoch_batches(lengths, batch_size, seed=seed, epoch=epoch, group=group, batch_tokens=batch_tokens))
        for epoch in range(epochs)
    )


def share(batch: np.ndarray, rank: int, world: int, micro_batches: int) -> list[np.ndarray]:
    """This rank's micro-batches of one global batch: always `micro_batches` index arrays.

    Over all ranks every index comes exactly once. A batch in order of length is dealt like cards, so ranks
    get nearly equal lengths, and a rank's micro-batches are cut in that order, so each needs little padding.
    When the batch has fewer examples than there are places (world x micro_batches), some arrays are empty:
    the caller must still take part in the gradient exchange of that step.
    """
    _check_rank(rank, world)
    _check_at_least_one(micro_batches=micro_batches)
    return np.array_split(np.asarray(batch)[rank::world], micro_batches)


def share_by_tokens(
    batch: np.ndarray, lengths: np.ndarray, rank: int, world: int, micro_batch_tokens: int
) -> list[np.ndarray]:
    """As `share`, in as few micro-batches as stay within `micro_batch_tokens`, padding included, longest first.

    Among ways to cut into so few, the one whose largest micro-batch is smallest. The ranks' useful tokens differ by at
    most the longest example. Their numbers of micro-batches may differ, but each has at least one, which is empty where
    there is nothing to do. A longer example is a micro-batch of its own.
    """
    _check_rank(rank, world)
    _check_at_least_one(micro_batch_tokens=micro_batch_tokens)
    indices, lengths = np.asarray(batch)[rank::world][::-1], np.asarray(lengths)
    fewest = len(_cut(indices, lengths, micro_batch_tokens))
    enough = bisect_left(
        range(micro_batch_tokens), True, lo=1, key=lambda budget: len(_cut(indices, lengths, budget)) <= fewest
    )
    return _cut(indices, lengths, enough) or [indices]


def evaluation_batches(lengths: np.ndarray, batch_tokens: int, rank: int = 0, world: int = 1) -> list[np.ndarray]:
    """This rank's evaluation batches, longest first; over the ranks every index comes exactly once.

    A batch has as many examples as stay within `batch_tokens`, padding included; a longer example is a batch of its
    own.
    """
    _check_at_least_one(batch_tokens=batch_tokens)
    _check_rank(rank, world)
    lengths = np.asarray(lengths)
    order = _sorted_by_length(np.arange(len(lengths)), lengths)[::-1]
    return _cut(order, lengths, batch_tokens)[rank::world]


def _fill_batches(order: np.ndarray, lengths: np.ndarray, budget: int, group: int) -> list[np.ndarray]:
    """Batches within a budget of tokens from examples in random order, shortest example first in each."""
    window = np.cumsum(lengths[order]) // (group * budget)  # of each example
    batches: list[np.ndarray] = []
    rest = order[:0]
    for indices in np.split(order, np.flatnonzero(np.diff(window)) + 1):
        *full, rest = _cut(_sorted_by_length(np.concatenate([rest, indices]), lengths)[::-1], lengths, budget) or [rest]
        batches.extend(full)  # the last batch is seldom full: the next window fills it up
    return [batch[::-1] for batch in ([*batches, rest] if len(rest) else batches)]


def _cut(indices: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """The fewest consecutive parts, of indices with the longest example first, that stay within the budget."""
    parts = []
    start = 0
    while start < len(indices):
        rows = max(1, budget // max(1, int(lengths[indices[start]])))
        parts.append(indices[start : start + rows])
        start += rows
    return parts


def _sorted_by_length(indices: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return indices[np.argsort(lengths[indices], kind="stable")]


def _check_at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1.")


def _check_rank(rank: int, world: int) -> None:
    if not 0 <= rank < world:
        raise ValueError(f"rank={rank} of world={world}: expected a rank from 0 to world - 1.")


Batch = tuple[dict[str, Tensor], Tensor]
MASK = "attention_mask"
"""Name of the input whose content the host keeps."""


def load_batches(
    data: Data, batches: Sequence[np.ndarray], device: torch.device, *, epoch: int | None = None, workers: int = 0
) -> Iterator[Batch]:
    """The model's keyword arguments and the labels of each batch of indices, in order, on ``device``.

    ``epoch`` is the training epoch, which decides how examples are augmented; None in evaluation. The batches do
    not depend on ``workers``. A ValueError of ``collate`` arrives as it was raised, from a worker process too.

    On a GPU every batch is prepared and sent while the one before is computed. The attention mask and the labels bring
    their copies on the host (lora_core/models/host.py).
    """
    loader = DataLoader(
        _Collated(data, batches, epoch),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=end_with_parent,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # torch's default generator is the training's
    )
    with unheard_by_children():
        loaded = iter(loader)
    try:
        if device.type == "cuda":
            yield from one_ahead(loaded, SideStream(device))
        else:
            yield from map(partial(sent, device), loaded)
    finally:
        if workers:
            _end_workers(loaded)


def sent(device: torch.device, batch: Batch | ValueError) -> Batch:
    """The batch on ``device``, without waiting for it. Raises the error that stands in the place of a batch."""
    if isinstance(batch, ValueError):
        raise batch
    inputs, labels = batch
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}
    if MASK in inputs:
        keep_on_host(moved[MASK], inputs[MASK])
    return moved, keep_on_host(labels.to(device, non_blocking=True), labels)


class SideStream:
    """A queue of the GPU beside the one that computes, for copies that go on while it does."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def send(self, batch: Batch) -> tuple[Batch, Any]:
        """The batch on its way, and the event of its arrival."""
        with torch.cuda.stream(self._stream):
            moved = sent(self._device, batch)
            return moved, self._stream.record_event()

    def hand_over(self, moved: Batch, arrived: Any) -> Batch:
        """The batch, for use from here on: the GPU itself waits for it, not the host."""
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(arrived)
        inputs, labels = moved
        for tensor in (*inputs.values(), labels):
            tensor.record_stream(computing)  # its memory is not taken anew before what computes with it is done
        return moved


def one_ahead(loaded: Iterable[Batch | ValueError], stream: SideStream) -> Iterator[Batch]:
    """The batches in order, each sent before the one ahead of it is handed over. An error keeps its turn."""
    ahead: tuple[Batch, Any] | None = None
    for batch in loaded:
        coming = batch if isinstance(batch, ValueError) else stream.send(batch)
        if ahead is not None:
            yield stream.hand_over(*ahead)
        if isinstance(coming, ValueError):
            raise coming
        ahead = coming
    if ahead is not None:
        yield stream.hand_over(*ahead)


def _end_workers(loaded: Any) -> None:
    """End the processes of an iterator over a DataLoader now, whatever they are at: they do not hear the signal with
    which Python ends those that are left when it exits itself, and waits for them then."""
    loaded._shutdown_workers()
    for worker in loaded._workers:
        worker.kill()


class _Collated(Dataset[Batch | ValueError]):
    """Batches by their number, as torch's DataLoader wants them."""

    def __init__(self, data: Data, batches: Sequence[np.ndarray], epoch: int | None) -> None:
        self._data, self._batches, self._epoch = data, batches, epoch

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Batch | ValueError:
        try:
            return self._data.collate(self._batches[number], self._epoch)
        except ValueError as error:  # DataLoader would bury the message in the worker's traceback
            return error
