"""Several adapters on one base model: add (inject.py), set, disable, mix in a batch, delete.

An adapter owns low-rank factors inside the host layers and, as whole tensors, what it trains in full: the task
head (modules_to_save) and bias vectors. Of those whole tensors the model holds just one at a time, in its
usual place; the other adapters' and the base model's own wait in LoRAState and are put in place on a switch.
So every count of parameters is true, and `disable_adapters` gives back the base model exactly.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lora_core.config import LoRAConfig
from lora_core.layers import LoRALayer, model_modules

STATE = "lora_state"


@dataclass
class AdapterRecord:
    """One adapter: its config with all defaults filled in, what it adapts, and what it trains in full."""

    config: LoRAConfig
    targets: tuple[str, ...]
    """Paths of the adapted layers."""
    saved: dict[str, Tensor] = field(default_factory=dict)
    """Parameters and buffers owned in full, by their path in the model."""
    trainable: bool = True


@dataclass
class LoRAState:
    """What a model remembers of its adapters; the attribute ``lora_state`` of the injected model."""

    adapters: dict[str, AdapterRecord] = field(default_factory=dict)
    base: dict[str, Tensor] = field(default_factory=dict)
    """The base model's own tensor for every path that some adapter owns in full."""
    active: tuple[str, ...] = ()
    fast_paths: dict[tuple[str, str], object] = field(default_factory=dict)
    """What multihead.py switched off in torch's transformer encoders, with the old values."""
    was_trainable: dict[str, bool] = field(default_factory=dict)
    """requires_grad of the base model's parameters before the first injection."""
    bridges: dict[str, tuple[RemovableHandle, RemovableHandle]] = field(default_factory=dict)
    """Hooks of the modules that are trained in fp32 in a half-precision model, by path (see wide.py)."""


def state_of(model: nn.Module) -> LoRAState:
    """The adapters of ``model``; ValueError when it has none."""
    state = getattr(model, STATE, None)
    if state is None:
        raise ValueError(
            f"This {type(model).__name__} has no adapters. Call lora_core.inject_lora(model) or load_adapter(model, "
            "folder) first, and pass the same object here (not a part of it, nor a wrapper such as DDP)."
        )
    return state


def hosts(model: nn.Module) -> Iterator[tuple[str, LoRALayer]]:
    """Path and module of every adapted layer."""
    for path, module in model_modules(model):
        if isinstance(module, LoRALayer):
            yield path, module


def record_of(model: nn.Module, adapter_name: str) -> AdapterRecord:
    """The record of one adapter; ValueError that lists the names when it is unknown."""
    adapters = state_of(model).adapters
    if adapter_name not in adapters:
        raise ValueError(f"There is no adapter {adapter_name!r}; the model has {sorted(adapters)}.")
    return adapters[adapter_name]


def set_adapter(model: nn.Module, adapter_names: str | Sequence[str]) -> None:
    """Make one or several adapters act (their updates add up); only they are trained from now on.

    Raises:
        ValueError: an unknown or repeated name, or several adapters that own the same head or bias, or DoRA among
            several.
    """
    names = (adapter_names,) if isinstance(adapter_names, str) else tuple(adapter_names)
    if len(set(names)) < len(names):
        raise ValueError(f"Name each adapter once, not {list(names)}; combine_adapters gives an adapter a weight.")
    state = state_of(model)
    records = {name: record_of(model, name) for name in names}
    if len(names) > 1:
        _check_combination(records)
    merged = sorted({name for _, host in hosts(model) for name in host.merged_adapters})
    if merged and set(merged) != set(names):
        raise ValueError(f"Adapters {merged} are merged. Call lora_core.unmerge_lora(model) before another is set.")
    if merged:
        return  # they act already, and their merged biases must not be replaced
    state.active = names
    for _, host in hosts(model):
        host.active_adapters = tuple(name for name in names if name in host.lora)
        for name, adapter in host.lora.items():
            adapter.requires_grad_(name in names and state.adapters[name].trainable)
    _put_owned(model, state, records)


@contextmanager
def disable_adapters(model: nn.Module) -> Iterator[None]:
    """Within the context the model is the base model, head and biases included, merged or not.

    On leaving, by an exception too, everything is as it was before.
    """
    state = state_of(model)
    layers = [host for _, host in hosts(model)]
    before = [(host, host.active_adapters, host.merged_adapters, host.row_adapters) for host in layers]
    for host in layers:
        host.active_adapters = host.merged_adapters = ()
        host.row_adapters = None
        exchange_frozen(host)
    swapped = {key: get(model, key) for key in state.base}
    try:
        for key, tensor in state.base.items():
            put(model, key, tensor)
        yield
    finally:
        for key, tensor in swapped.items():
            put(model, key, tensor)
        for host, active, merged, rows in before:
            host.active_adapters, host.merged_adapters, host.row_adapters = active, merged, rows
            exchange_frozen(host)


@contextmanager
def mixed_batch(model: nn.Module, adapter_names: Sequence[str | None]) -> Iterator[None]:
    """Within the context, row i of every batch is computed by adapter ``adapter_names[i]`` (None: the base model).

    Works in training and evaluation. Heads and biases cannot differ by row: the adapters named must own none, or
    all be the same one.

    Raises:
        ValueError: an unknown name, adapters that own whole tensors, or merged adapters.
    """
    state = state_of(model)
    names = sorted({name for name in adapter_names if name is not None})
    owners = [name for name in names if record_of(model, name).saved]
    if owners and (len(names) > 1 or None in adapter_names):
        raise ValueError(
            f"Adapters {owners} own a head or biases, which cannot differ by row. Run them in batches of their own."
        )
    layers = [host for _, host in hosts(model)]
    if any(host.merged_adapters for host in layers):
        raise ValueError("Adapters are merged. Call lora_core.unmerge_lora(model) before a mixed batch.")
    device = next(model.parameters()).device
    rows = [
        (name, torch.tensor([i for i, n in enumerate(adapter_names) if n == name], device=device)) for name in names
    ]
    trainable = {parameter: parameter.requires_grad for host in layers for parameter in host.lora.parameters()}
    swapped = {key: (tensor := get(model, key), tensor.requires_grad) for key in state.base}
    try:
        _put_owned(model, state, {name: state.adapters[name] for name in names})
        for host in layers:
            host.row_adapters = (len(adapter_names), rows)
            for name, adapter in host.lora.items():
                adapter.requires_grad_(name in names and state.adapters[name].trainable)
        yield
    finally:
        for host in layers:
            host.row_adapters = None
        for key, (tensor, flag) in swapped.items():
            put(model, key, tensor.requires_grad_(flag))
        for parameter, flag in trainable.items():
            parameter.requires_grad_(flag)


def delete_adapter(model: nn.Module, adapter_name: str) -> None:
    """Remove an adapter with all its tensors; layers that no adapter is left in become plain layers again.

    Raises:
        ValueError: the adapter is unknown or merged; nothing is changed then.
    """
    state = state_of(model)
    record = record_of(model, adapter_name)
    layers = [host for _, host in hosts(model) if adapter_name in host.lora]
    if any(adapter_name in host.merged_adapters for host in layers):
        raise ValueError(f"Adapter {adapter_name!r} is merged. Call lora_core.unmerge_lora(model) before deleting it.")
    set_adapter(model, [name for name in state.active if name != adapter_name])
    for host in layers:
        del host.lora[adapter_name]
        if not host.lora:
            host.release()
    del state.adapters[adapter_name]
    still_owned = {key for other in state.adapters.values() for key in other.saved}
    for key in record.saved:
        if key not in still_owned:
            state.base.pop(key)
    for path in [path for path in state.bridges if not any(key.rpartition(".")[0] == path for key in state.base)]:
        remove_bridge(state, path)


def remove_bridge(state: LoRAState, path: str) -> None:
    """Take the hooks for half precision off the module at ``path``."""
    for handle in state.bridges.pop(path):
        handle.remove()


def exchange_frozen(host: LoRALayer) -> None:
    """Exchange a merged host's merged parameters and the frozen ones that wait; nothing to do when not merged."""
    for name, waiting in host.frozen.items():
        host.frozen[name] = getattr(host, name)
        setattr(host, name, waiting)


def get(model: nn.Module, path: str) -> Tensor:
    """The parameter or buffer at ``path``."""
    parent, _, leaf = path.rpartition(".")
    return getattr(model.get_submodule(parent), leaf)


def put(model: nn.Module, path: str, tensor: Tensor) -> None:
    """Put a parameter or buffer at ``path``, on the device of the one that it replaces."""
    parent, _, leaf = path.rpartition(".")
    module = model.get_submodule(parent)
    old = getattr(module, leaf)
    if old is tensor:
        return
    if old.device != tensor.device and not old.is_meta:
        tensor.data = tensor.data.to(old.device)
    slots: dict[str, Any] = module._parameters if leaf in module._parameters else module._buffers
    slots[leaf] = tensor


def _put_owned(model: nn.Module, state: LoRAState, acting: dict[str, AdapterRecord]) -> None:
    """Put the whole tensors of the acting adapters in place, and the base model's where they own none."""
    owned = {key: (tensor, record) for record in acting.values() for key, tensor in record.saved.items()}
    for key, base in state.base.items():
        tensor, record = owned.get(key, (base, None))
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(record is not None and record.trainable)
        put(model, key, tensor)


def _check_combination(records: dict[str, AdapterRecord]) -> None:
    dora = [name for name, record in records.items() if record.config.use_dora]
    if dora:
        raise ValueError(f"Adapters {dora} use DoRA, which rescales the whole layer, so they cannot act with others.")
    owner: dict[str, str] = {}
    for name, record in records.items():
        for key in record.saved:
            if key in owner:
                raise ValueError(f"Adapters {owner[key]!r} and {name!r} both own {key!r}, so they cannot act together.")
            owner[key] = name
        for token in record.config.trainable_token_indices or ():
            if f"token {token}" in owner:
                other = owner[f"token {token}"]
                raise ValueError(
                    f"Adapters {other!r} and {name!r} both train token {token}, so they cannot act together."
                )
            owner[f"token {token}"] = name
