"""LoRA+: B learns faster than A. Hayou et al. 2024, https://arxiv.org/abs/2402.12354."""

from typing import Any

from torch import nn

from lora_core.adapters import state_of
from lora_core.layers import unwrapped
from lora_core.patterns import Pattern


def lora_plus_groups(
    model: nn.Module, lr: float, ratio: float = 16.0, head_lr: float | None = None, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser, each with "name", "params", "lr" and "weight_decay".

    Args:
        lr: learning rate of A, of DoRA's magnitudes and of biases trained by ``bias``.
        ratio: B (of embeddings too) learns at ``lr * ratio``.
        head_lr: of the modules trained in full, weights and biases alike; None means ``lr``.
        weight_decay: of matrices; vectors (biases, norms, magnitudes) are never decayed.

    Raises:
        ValueError: the model has no adapters, or a rate is not above 0.
    """
    rates = {"A": lr, "B": lr * ratio, "head": lr if head_lr is None else head_lr, "other": lr}
    if any(rate <= 0 for rate in rates.values()):
        raise ValueError(
            f"Learning rates must be above 0, but lr={lr}, ratio={ratio} and head_lr={head_lr} give {rates}."
        )
    state = state_of(model)
    heads: set[str] = set()
    for name in state.active:
        modules = Pattern(state.adapters[name].config.modules_to_save)
        heads |= {key for key in state.adapters[name].saved if modules.contains(key.rpartition(".")[0])}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for path, parameter in unwrapped(model).named_parameters():
        if parameter.requires_grad:
            groups.setdefault((_kind(path, heads), parameter.dim() > 1), []).append(parameter)
    return [
        {
            "name": kind if matrix else f"{kind}, vectors",
            "params": parameters,
            "lr": rates[kind],
            "weight_decay": weight_decay if matrix else 0.0,
        }
        for (kind, matrix), parameters in sorted(groups.items())
    ]


def _kind(path: str, heads: set[str]) -> str:
    if path in heads:
        return "head"
    if ".lora_B." in path or path.endswith(".lora_embedding_B"):
        return "B"
    return "A" if ".lora_A." in path or path.endswith(".lora_embedding_A") else "other"
