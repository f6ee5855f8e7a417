"""Merge adapters into the weights they adapt, and take them out again exactly.

The frozen parameters are kept while merged, so unmerging puts the very same tensors back, in every dtype and
after any number of cycles. Merging adds all updates in fp32 or wider and rounds once.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lora_core.adapters import enabled_state_of, exchange_frozen, hosts, record_of, set_adapter, state_of
from lora_core.layers import LoRALayer


@torch.inference_mode(False)  # within it the weights would be no more to be trained
def merge_lora(model: nn.Module, adapter_names: str | Sequence[str] | None = None) -> nn.Module:
    """Put adapters into the weights, in place, so that inference costs nothing extra; returns ``model``.

    Args:
        adapter_names: which; None means those that act now. Named adapters are made to act first.

    Raises:
        ValueError: an unknown name, a layer that cannot take its adapter, or a result with NaN or infinity;
            the model is unchanged then.
    """
    if adapter_names is None:
        names = state_of(model).active
    else:
        names = (adapter_names,) if isinstance(adapter_names, str) else tuple(adapter_names)
    if not names:
        raise ValueError("No adapter acts, so there is nothing to merge. Name adapters, or call set_adapter first.")
    for name in names:
        record_of(model, name)
    layers = list(hosts(model))
    if set(names) <= {name for _, host in layers for name in host.merged_adapters}:
        warnings.warn(f"Adapters {list(names)} are merged already; nothing was changed.", stacklevel=2)
        return model
    if any(host.merged_adapters for _, host in layers):
        raise ValueError("Other adapters are merged. Call lora_core.unmerge_lora(model), then merge all at once.")
    before = state_of(model).active
    set_adapter(model, names)  # first, so that the biases which take the updates are theirs
    try:
        merged = [(host, *_merged(path, host, names)) for path, host in layers if set(names) & set(host.lora)]
    except ValueError:
        set_adapter(model, before)
        raise
    for host, acting, parameters in merged:
        host.frozen = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in parameters.items()}
        exchange_frozen(host)
        host.merged_adapters = acting
    return model


def _merged(path: str, host: LoRALayer, names: Sequence[str]) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Which of the adapters act on the layer at ``path``, and its parameters with them inside."""
    acting = tuple(name for name in names if name in host.lora)
    try:
        parameters = host.merged_parameters(acting)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for name, tensor in parameters.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"Merging adapters {list(acting)} would put NaN or infinity into {path}.{name}; nothing was changed."
            )
    return acting, parameters


def unmerge_lora(model: nn.Module) -> nn.Module:
    """Take merged adapters out again, in place; the frozen weights come back bit for bit. Returns ``model``."""
    layers = [host for _, host in hosts(model) if host.merged_adapters]
    enabled_state_of(model)
    if not layers:
        warnings.warn("No adapter is merged; nothing was changed.", stacklevel=2)
    for host in layers:
        exchange_frozen(host)
        host.frozen = {}
        host.merged_adapters = ()
    return model
