"""Adversarial training: every step learns from its batch twice, the second time with the model made worse.

The first pass is the usual one. Its gradient says in which direction the loss rises fastest; a small step in that
direction, a second pass over the same batch, and everything is put back. Both passes add to the gradient that the
optimiser sees, and each has its own dropout.

- `fgm` changes the word embeddings that enter the model, each example's along its own gradient, as in Miyato, Dai and
  Goodfellow 2017 (https://arxiv.org/abs/1605.07725), equations 5 and 6. The table of embeddings stays untouched, so it
  may be frozen, as under LoRA; and an example's change does not depend on its batch, micro-batch or process.
- `awp` changes the trained matrices, each along its gradient over the whole batch and in proportion to its norm: Wu,
  Xia and Wang 2020 (https://arxiv.org/abs/2004.05884), equation 9, on the weights alone. With LoRA it moves A and B;
  B, which begins at zero, stays there in the first step.

Shapes: B examples, T tokens, H hidden size.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainers.config import TrainConfig
from trainers.training.batch_plan import Part

Pass = tuple[bool, Iterable[Part]]
"""Whether the model has been made worse, and the parts to go over."""
FGM_EPSILON, AWP_EPSILON = 1.0, 0.005
"""The papers' orders of magnitude; what `adversarial_epsilon` is by default."""


class NoAdversary:
    """One pass, and no trace of the rest."""

    def passes(self, parts: Iterator[Part]) -> Iterator[Pass]:
        """The passes of one optimiser step over its parts; the caller adds up the gradients of all."""
        yield False, parts


class EmbeddingAdversary(NoAdversary):
    """The fast gradient method on word embeddings."""

    def __init__(self, model: nn.Module, epsilon: float = FGM_EPSILON) -> None:
        self.embeddings, self.epsilon = word_embeddings(model), epsilon

    def passes(self, parts: Iterator[Part]) -> Iterator[Pass]:
        kept = list(parts)
        changes: list[Tensor] = []  # (B, T, H) for each micro-batch, zero; backward leaves its gradient in it

        def watch(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            changes.append(torch.zeros_like(output, requires_grad=True))
            return output + changes[-1]

        with _hooked(self.embeddings, watch):
            yield False, kept
        steps = iter([uphill(change.grad, self.epsilon) for change in changes])

        def change(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + next(steps)

        with _hooked(self.embeddings, change):
            yield True, kept


class WeightAdversary(NoAdversary):
    """Adversarial weight perturbation."""

    def __init__(self, model: nn.Module, epsilon: float = AWP_EPSILON) -> None:
        self.matrices = [matrix for matrix in model.parameters() if matrix.requires_grad and matrix.ndim > 1]
        self.epsilon = epsilon

    def passes(self, parts: Iterator[Part]) -> Iterator[Pass]:
        kept = list(parts)
        yield False, kept
        with self.perturbed():
            yield True, kept

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """The matrices moved along their gradients; afterwards every bit is as before."""
        before = [matrix.detach().clone() for matrix in self.matrices]
        try:
            with torch.no_grad():
                for matrix in self.matrices:
                    if matrix.grad is not None:
                        step = uphill(matrix.grad[None], self.epsilon)[0]
                        matrix.add_(step * torch.linalg.vector_norm(matrix))
            yield
        finally:
            with torch.no_grad():
                for matrix, values in zip(self.matrices, before, strict=True):
                    matrix.copy_(values)


def build_adversary(model: nn.Module, config: TrainConfig) -> NoAdversary:
    """What `adversarial` names.

    Raises:
        ValueError: fgm for a model that does not read words.
    """
    epsilon = {} if config.adversarial_epsilon is None else {"epsilon": config.adversarial_epsilon}
    if config.adversarial == "fgm":
        return EmbeddingAdversary(model, **epsilon)
    if config.adversarial == "awp":
        return WeightAdversary(model, **epsilon)
    return NoAdversary()


def uphill(gradient: Tensor | None, epsilon: float) -> Tensor:
    """Steps of length `epsilon` along the gradients (B, ...), one for each of B; none where a gradient says nothing.

    A gradient that is zero or not finite has no direction; with fp16 the optimiser skips the step of the latter.
    """
    assert gradient is not None, "backward did not reach the embeddings"
    norms = torch.linalg.vector_norm(gradient.flatten(1), dim=1).view(-1, *[1] * (gradient.dim() - 1))  # (B, 1, ...)
    return torch.where(norms.isfinite() & (norms > 0), gradient * (epsilon / norms), 0.0)


def word_embeddings(model: nn.Module) -> nn.Module:
    """The module that turns token ids into vectors: the one named word_embeddings, or the model's only embedding."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    named = [module for name, module in found.items() if name.rpartition(".")[2] == "word_embeddings"]
    candidates = named or list(found.values())
    if len(candidates) != 1:
        raise ValueError(
            f"adversarial = fgm changes word embeddings, but {type(model).__name__} has {len(candidates)} tables of "
            "them. Use awp, which changes the trained weights of any model."
        )
    return candidates[0]


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Tensor]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
