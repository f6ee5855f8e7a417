"""Several adapters on one base model: add (inject.py), set, disable, mix in a batch, delete.

An adapter owns updates inside the host layers and, as whole tensors, what it trains in full: the task head
(modules_to_save) and bias vectors. Of those whole tensors just one is in its usual place at a time; the other adapters'
and the base model's own wait beside it and are put in place on a switch (whole.py). So `disable_adapters` gives back
the base model exactly.

In reading order: what a model remembers of its adapters; the four verbs; single tensors in and out of a model; how
whole tensors differ by row in a mixed batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lora_core.config import LoRAConfig
from lora_core.layers import LoRALayer, block_fast_paths, model_modules, restore_fast_paths
from lora_core.patterns import Pattern
from lora_core.whole import BASE, in_own_dtype, put_in_place, remove_waiting, whole_tensor

STATE = "lora_state"
"""Attribute of an injected model that holds its LoRAState."""


@dataclass
class AdapterRecord:
    """One adapter: its config with all defaults filled in, what it adapts, and what it trains in full."""

    config: LoRAConfig
    targets: tuple[str, ...]
    """Paths of the adapted layers."""
    saved: tuple[str, ...] = ()
    """Paths of the parameters and buffers that it owns in full; its own are there while it acts."""
    trainable: bool = True
    """Whether it is trained when it acts."""


@dataclass
class LoRAState:
    """What a model remembers of its adapters; the attribute ``lora_state`` of the injected model."""

    adapters: dict[str, AdapterRecord] = field(default_factory=dict)
    """Every adapter by name, in the order of their coming."""
    places: dict[str, str] = field(default_factory=dict)
    """For every path that some adapter owns in full, whose tensor is in place there: an adapter's name, or BASE."""
    active: tuple[str, ...] = ()
    """Names of the adapters that act."""
    fast_paths: dict[tuple[str, str], object] = field(default_factory=dict)
    """What `block_fast_paths` switched off in torch's transformer encoders, with the old values."""
    was_trainable: dict[str, bool] = field(default_factory=dict)
    """requires_grad of the base model's parameters before the first injection."""
    bridges: dict[str, tuple[RemovableHandle, RemovableHandle]] = field(default_factory=dict)
    """Hooks of the modules that are trained in fp32 in a half-precision model, by path (whole.py)."""
    disabled: bool = False
    """Whether `disable_adapters` is under way."""
    by_rows: bool = False
    """Whether a mixed batch is under way in which heads or biases differ by row."""


def state_of(model: nn.Module) -> LoRAState:
    """What ``model`` remembers of its adapters.

    Raises:
        ValueError: it has none.
    """
    state = getattr(model, STATE, None)
    if state is None:
        raise ValueError(
            f"This {type(model).__name__} has no adapters. Call lora_core.inject_lora(model) or load_adapter(model, "
            "folder) first, and pass the same object here (not a part of it, nor a wrapper such as DDP)."
        )
    return state


def enabled_state_of(model: nn.Module) -> LoRAState:
    """The same, for what changes adapters.

    Raises:
        ValueError: there are none, or they are disabled, and leaving that context would undo half of the change.
    """
    state = state_of(model)
    if state.disabled:
        raise ValueError("The adapters are disabled. Change them outside of lora_core.disable_adapters(model).")
    return state


def hosts(model: nn.Module) -> Iterator[tuple[str, LoRALayer]]:
    """Path and module of every adapted layer."""
    for path, module in model_modules(model):
        if isinstance(module, LoRALayer):
            yield path, module


def record_of(model: nn.Module, adapter_name: str) -> AdapterRecord:
    """The record of one adapter.

    Raises:
        ValueError: there is no adapter of that name; the message lists the names.
    """
    adapters = state_of(model).adapters
    if adapter_name not in adapters:
        raise ValueError(f"There is no adapter {adapter_name!r}; the model has {sorted(adapters)}.")
    return adapters[adapter_name]


def whole_tensors(model: nn.Module, owner: str) -> dict[str, Tensor]:
    """By path, what an adapter (BASE: the base model) has of the tensors that adapters train in full.

    Raises:
        ValueError: there is no adapter of that name, or its tensors are gone with a module that was replaced.
    """
    places = state_of(model).places
    return {key: whole_tensor(model, places, key, owner)
            for key in (record_of(model, owner).saved if owner else places)}  # fmt: skip


def set_adapter(model: nn.Module, adapter_names: str | Sequence[str]) -> None:
    """Make one or several adapters act (their updates add up); only they are trained from now on.

    Raises:
        ValueError: an unknown or repeated name, or several adapters that own the same head or bias, or DoRA among
            several.
    """
    names = (adapter_names,) if isinstance(adapter_names, str) else tuple(adapter_names)
    if len(set(names)) < len(names):
        raise ValueError(f"Name each adapter once, not {list(names)}; combine_adapters gives an adapter a weight.")
    state = enabled_state_of(model)
    records = {name: record_of(model, name) for name in names}
    if len(names) > 1:
        _check_combination(records)
    merged = sorted({name for _, host in hosts(model) for name in host.merged_adapters})
    if merged and set(merged) != set(names):
        raise ValueError(f"Adapters {merged} are merged. Call lora_core.unmerge_lora(model) before another is set.")
    if merged:
        return  # they act already, and their merged biases must not be replaced
    _put_owned(model, state, records)
    state.active = names
    for _, host in hosts(model):
        host.active_adapters = tuple(name for name in names if name in host.lora)
        for name, update in host.lora.items():
            update.requires_grad_(name in names and state.adapters[name].trainable)


@contextmanager
def disable_adapters(model: nn.Module) -> Iterator[None]:
    """Within the context the model is the base model, head and biases included, merged or not.

    On leaving, by an exception too, everything is as it was before.
    """
    state = state_of(model)
    by_rows, disabled, placed = state.by_rows, state.disabled, dict(state.places)
    layers = [host for _, host in hosts(model)]
    before = [(host, host.active_adapters, host.merged_adapters, host.row_adapters) for host in layers]
    whole_tensors(model, BASE)  # or it is refused, before anything is changed
    state.by_rows, state.disabled = False, True
    for host in layers:
        host.active_adapters = host.merged_adapters = ()
        host.row_adapters = None
        exchange_frozen(host)
    try:
        for key in placed:
            put_in_place(model, state.places, key, BASE)
        yield
    finally:
        for key, owner in placed.items():
            put_in_place(model, state.places, key, owner)
        for host, active, merged, rows in before:
            host.active_adapters, host.merged_adapters, host.row_adapters = active, merged, rows
            exchange_frozen(host)
        state.by_rows, state.disabled = by_rows, disabled


@contextmanager
def mixed_batch(model: nn.Module, adapter_names: Sequence[str | None]) -> Iterator[None]:
    """Within the context, row i of every batch is computed by adapter ``adapter_names[i]`` (None: the base model).

    Works in training (call backward within the context) and evaluation. Low-rank updates are added to the rows that
    they are for. A module of which adapters own a head or biases runs once for each adapter, on its rows; its first
    dimension must be the batch.

    Raises:
        ValueError: an unknown name, merged adapters, or adapters that own a part of an nn.MultiheadAttention which it
            never calls. In a forward pass: a number of rows that is not that of the names.
    """
    state = state_of(model)
    names = sorted({name for name in adapter_names if name is not None})
    records = {name: record_of(model, name) for name in names}
    layers = [host for _, host in hosts(model)]
    if any(host.merged_adapters for host in layers):
        raise ValueError("Adapters are merged. Call lora_core.unmerge_lora(model) before a mixed batch.")
    device = next(model.parameters()).device
    rows_of = {
        name: torch.tensor([row for row, wanted in enumerate(adapter_names) if wanted == name], device=device)
        for name in (*names, None)
        if name in adapter_names
    }
    by_rows = [_ByRows(model, path, rows_of) for path in _modules_by_rows(model, records)] if len(rows_of) > 1 else []
    placed = dict(state.places)
    own = {name: list(whole_tensors(model, name).values()) for name in names}
    tensors = [*whole_tensors(model, BASE).values(), *(tensor for each in own.values() for tensor in each)]
    tensors += [whole_tensor(model, placed, key, owner) for key, owner in placed.items()]
    tensors += [parameter for host in layers for parameter in host.lora.parameters()]
    trainable = {tensor: tensor.requires_grad for tensor in tensors if isinstance(tensor, nn.Parameter)}
    fast_paths: dict[tuple[str, str], object] = {}
    try:
        _put_owned(model, state, {} if by_rows else records)
        for name, record in records.items():
            for tensor in own[name]:
                _set_trainable(tensor, record.trainable)
        for host in layers:
            host.row_adapters = (len(adapter_names), [(name, rows_of[name]) for name in names])
            for name, update in host.lora.items():
                update.requires_grad_(name in names and state.adapters[name].trainable)
        fast_paths = block_fast_paths(model, {part.module for part in by_rows})
        for part in by_rows:
            part.module.forward = part
        state.by_rows = bool(by_rows)
        yield
    finally:
        state.by_rows = False
        for part in by_rows:
            part.give_back()
        restore_fast_paths(model, fast_paths)
        for host in layers:
            host.row_adapters = None
        for key, owner in placed.items():
            put_in_place(model, state.places, key, owner)
        for parameter, flag in trainable.items():
            parameter.requires_grad_(flag)


def delete_adapter(model: nn.Module, adapter_name: str) -> None:
    """Remove an adapter with all its tensors; layers that no adapter is left in become plain layers again.

    Raises:
        ValueError: the adapter is unknown or merged; nothing is changed then.
    """
    state = enabled_state_of(model)
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
        remove_waiting(model, key, adapter_name)
        if key not in still_owned:
            state.places.pop(key)
    for path in [path for path in state.bridges if not any(key.rpartition(".")[0] == path for key in state.places)]:
        remove_bridge(state, path)


def _check_combination(records: dict[str, AdapterRecord]) -> None:
    """Check that adapters can act together.

    Raises:
        ValueError: one uses DoRA, or two train the same tensor or token.
    """
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


def remove_bridge(state: LoRAState, path: str) -> None:
    """Take the hooks for half precision off the module at ``path``."""
    for handle in state.bridges.pop(path):
        handle.remove()


def exchange_frozen(host: LoRALayer) -> None:
    """Exchange a merged host's merged parameters and the frozen ones that wait; nothing to do when not merged."""
    for name, waiting in host.frozen.items():
        host.frozen[name] = getattr(host, name)
        setattr(host, name, waiting)


def _put_owned(model: nn.Module, state: LoRAState, acting: dict[str, AdapterRecord]) -> None:
    """Put the whole tensors of the acting adapters in place, and the base model's where they own none."""
    owners = {key: name for name, record in acting.items() for key in record.saved}
    wanted = {key: owners.get(key, BASE) for key in state.places}
    for key, owner in wanted.items():  # all are there, or nothing is changed
        whole_tensor(model, state.places, key, owner)
    for key, owner in wanted.items():
        _set_trainable(whole_tensor(model, state.places, key, state.places[key]), False)
        _set_trainable(put_in_place(model, state.places, key, owner), owner != BASE and acting[owner].trainable)


def _set_trainable(tensor: Tensor, trainable: bool) -> None:
    """Set requires_grad, unless it is a buffer."""
    if isinstance(tensor, nn.Parameter):
        tensor.requires_grad_(trainable)


def _modules_by_rows(model: nn.Module, records: dict[str, AdapterRecord]) -> list[str]:
    """Paths of the modules that run once for each adapter of a mixed batch; none of them lies in another.

    They are the modules to save of the adapters, and for a bias the module that adds it.
    """
    keys = {key for record in records.values() for key in record.saved}
    modules = {key.rpartition(".")[0] for key in keys}
    for record in records.values():
        saved = Pattern(record.config.modules_to_save)
        for path, _ in model_modules(model):
            if saved.matches(path) and any(key.startswith(f"{path}.") for key in keys):
                modules.add(path)
    outermost: list[str] = []
    for path in sorted(modules, key=len):
        if not any(_lies_in(path, outer) for outer in outermost):
            outermost.append(path)
    for path, module in model_modules(model):
        unseen = [inner for inner in outermost if inner != path and _lies_in(inner, path)]
        if isinstance(module, nn.MultiheadAttention) and not isinstance(module, LoRALayer) and unseen:
            raise ValueError(
                f"Adapters {sorted(records)} own a head or biases in {unseen[0]}, which {path} never calls, so they "
                "cannot differ by row. Run each adapter in a batch of its own, or adapt the attention too."
            )
    return outermost


class _ByRows:
    """The forward of a module while the rows of its batch belong to several adapters.

    It calls the module's own forward once for each adapter, on the adapter's rows, as if that adapter acted alone.
    """

    def __init__(self, model: nn.Module, path: str, rows_of: dict[str | None, Tensor]) -> None:
        self.model, self.path, self.rows_of = model, path, rows_of
        self.module = model.get_submodule(path)
        self.forward = self.module.forward
        self.replaced = vars(self.module).get("forward")
        self.hosts = [module for module in self.module.modules() if isinstance(module, LoRALayer)]
        self.keys = [key for key in state_of(model).places if _lies_in(key, path)]

    def give_back(self) -> None:
        """Let the module have its forward back."""
        vars(self.module).pop("forward", None)
        if self.replaced is not None:
            self.module.forward = self.replaced

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        state = state_of(self.model)
        if not state.by_rows:  # within disable_adapters
            return self.forward(*args, **kwargs)
        count = sum(map(len, self.rows_of.values()))
        sizes = [len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()]
        if count not in sizes:
            raise ValueError(
                f"mixed_batch was given {count} adapter names, but {self.path or 'the model'}, where adapters own a "
                f"head or biases, sees {sizes[0] if sizes else 'no'} rows. Give one name for each row of the batch. A "
                "module whose first dimension is not the batch cannot be mixed: run each adapter in its own batch."
            )
        results = []
        for name, rows in self.rows_of.items():
            with self._alone(state, name):
                own = _rows((args, kwargs), rows, count)
                own = in_own_dtype(self.module, own) if self.path in state.bridges else own
                results.append(self.forward(*own[0], **own[1]))
        return self._joined(results)

    @contextmanager
    def _alone(self, state: LoRAState, name: str | None) -> Iterator[None]:
        """Within the context the module is as the adapter alone makes it."""
        saved = () if name is None else state.adapters[name].saved
        before = [(host, host.active_adapters, host.row_adapters) for host in self.hosts]
        try:
            for host in self.hosts:
                host.row_adapters = None
                host.active_adapters = () if name is None or name not in host.lora else (name,)
            for key in self.keys:
                put_in_place(self.model, state.places, key, name if name is not None and key in saved else BASE)
            yield
        finally:
            for host, active, rows in before:
                host.active_adapters, host.row_adapters = active, rows
            for key in self.keys:
                put_in_place(self.model, state.places, key, BASE)

    def _joined(self, results: list[Any]) -> Any:
        """The results of all adapters as one, the rows in the order of the batch."""
        first = results[0]
        if first is None:
            return None
        if isinstance(first, dict):
            whole = {key: self._joined([part[key] for part in results]) for key in first}
            return whole if type(first) is dict else type(first)(**whole)  # a ModelOutput of transformers
        if type(first) in (tuple, list):
            return type(first)(self._joined(list(parts)) for parts in zip(*results, strict=True))
        rows_of = list(self.rows_of.values())
        if isinstance(first, Tensor) and all(
            part.dim() and len(part) == len(rows) for part, rows in zip(results, rows_of, strict=True)
        ):
            return torch.cat(results)[torch.cat(rows_of).argsort()]
        raise ValueError(
            f"{self.path or 'The model'} returns a {type(first).__name__} that has no row for each of the batch, so "
            "adapters that own a head or biases in it cannot be mixed. Run each adapter in a batch of its own."
        )


def _rows(value: Any, rows: Tensor, count: int) -> Any:
    """``rows`` of the tensors in a module's arguments whose first dimension is the batch; the others as they are."""
    if isinstance(value, Tensor):
        return value[rows] if value.dim() and len(value) == count else value
    if type(value) in (tuple, list):
        return type(value)(_rows(part, rows, count) for part in value)
    if type(value) is dict:
        return {key: _rows(part, rows, count) for key, part in value.items()}
    return value


def _lies_in(path: str, outer: str) -> bool:
    """Whether ``path`` is ``outer`` or lies in it."""
    return not outer or f"{path}.".startswith(f"{outer}.")
