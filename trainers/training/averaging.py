"""The average of the weights over the steps of training: what is scored and kept in the place of the last step's.

An exponential moving average (Polyak and Juditsky 1992; Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima
and Better Generalization") of what is trained, and of nothing else: with LoRA the adapters and the head. It grows with
training: after t steps a new one counts at least 9 / (10 + t), so that the start is forgotten, and the average is
over the last ninth or so of the steps, until it reaches over as many as the decay says.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from trainers.processes.fsdp import copy_tensors

EVERY = 4
"""Steps between two updates: hundreds of steps have the same average without the others, which would cost full
fine-tuning on a CPU a hundredth of its time."""


class WeightAverage:
    """The average of a model's trained parameters; they may be shared out over processes."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """
        Args:
            decay: share of the average that a step keeps, in the long run; 0: there is no average.
        """
        self._decay = decay
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad} if decay else {}
        self.tensors: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._trained.items()}
        """By the parameters' names; those of the last step while the average stands in the model."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after so many steps, if it is their turn."""
        if self._trained and step % EVERY == 0:
            kept = min(self._decay, (1 + step) / (10 + step)) ** EVERY
            get_ema_multi_avg_fn(kept)(list(self.tensors.values()), list(self._trained.values()), step)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Within the block the model has the average for its weights."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Continue from what ``tensors`` was."""
        copy_tensors(values, self.tensors)

    @torch.no_grad()
    def exchange(self) -> None:
        """Put the average into the model and what the model has here, or back; every bit comes back."""
        for name, parameter in self._trained.items():
            held = parameter.detach().clone()
            parameter.copy_(self.tensors[name])
            self.tensors[name].copy_(held)
