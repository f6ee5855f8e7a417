"""Batches on their way to the device: prepared in the loop, or ahead of it by worker processes."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainers.tasks import Data

Batch = tuple[dict[str, Tensor], Tensor]


def load_batches(
    data: Data, batches: Sequence[np.ndarray], device: torch.device, *, epoch: int | None = None, workers: int = 0
) -> Iterator[Batch]:
    """The model's keyword arguments and the labels of each batch of indices, in order, on ``device``.

    ``epoch`` is the training epoch, which decides how examples are augmented; None in evaluation. The batches do
    not depend on ``workers``. A ValueError of ``collate`` arrives as it was raised, from a worker process too.
    """
    loader = DataLoader(
        _Collated(data, batches, epoch), batch_size=None, num_workers=workers,
        pin_memory=device.type == "cuda", generator=torch.Generator(),  # torch's default generator is the training's
    )  # fmt: skip
    for batch in loader:
        if isinstance(batch, ValueError):
            raise batch
        inputs, labels = batch
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}
        yield moved, labels.to(device, non_blocking=True)


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
