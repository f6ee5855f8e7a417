"""Exchange an adapter's content for another one's from disk, in place: for servers that keep one compiled model."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_core.adapters import hosts, record_of, whole_tensors
from lora_core.checkpoint import explicit_targets, file_keys, read_adapter, refuse_non_finite
from lora_core.layers import LoRALayer, model_modules, unwrapped
from lora_core.targets import attention_outputs
from lora_core.updates import Conv2dUpdate, ThirdsUpdate, Update
from lora_core.whole import BASE


def prepare_hotswap(model: nn.Module, max_rank: int, adapter_name: str = "default") -> nn.Module:
    """Give an adapter room for ranks up to ``max_rank``, so that torch.compile sees no change when it is swapped.

    Its factors get rows and columns of zeros and its scaling becomes a tensor; what it computes and what is saved stay
    the same. Call it before torch.compile. Returns ``model``.

    Raises:
        ValueError: the adapter is unknown, merged, of a larger rank, or of a form that cannot be padded.
    """
    new = {}
    for slot in _slots(model, adapter_name).values():
        host, update = slot.host, slot.update
        if update.r > max_rank:
            raise ValueError(f"max_rank is {max_rank}, but adapter {adapter_name!r} has a layer of rank {update.r}.")
        if isinstance(update, Conv2dUpdate) and update.lora_B.groups > 1:
            raise ValueError(
                "The adapter of a grouped convolution cannot be padded: its rank is split among the groups."
            )
        new[host] = _resized(host, update, max_rank)
        del new[host].scaling
        scaling = torch.tensor(float(update.scaling), device=next(update.parameters()).device)
        new[host].register_buffer("scaling", scaling, persistent=False)
    for host, update in new.items():
        host.lora[adapter_name] = update
    return model


@torch.no_grad()
def hotswap_adapter(model: nn.Module, folder: str | Path, adapter_name: str = "default") -> nn.Module:
    """Replace the content of an adapter, head included, by the adapter saved in ``folder``; returns ``model``.

    The file may have other ranks and scalings, and fewer layers or no head (then the base's is used). With room made
    by ``prepare_hotswap`` every tensor keeps its place, so a compiled model is not compiled again.

    Raises:
        ValueError: the adapter is unknown or merged, or the file holds layers that it lacks, larger ranks than there
            is room for, tensors of a wrong shape, or NaN. Nothing is changed then.
    """
    folder = Path(folder)
    inner = unwrapped(model)
    record = record_of(inner, adapter_name)
    slots = _slots(inner, adapter_name)
    config, tensors = read_adapter(inner, folder)
    refuse_non_finite(tensors, f"{folder} was not loaded")
    owner = {output: path for path, output in attention_outputs(inner).items()}
    own = [f"{path}.{name}" for path, slot in slots.items() for name in slot.own]
    names = file_keys(inner, adapter_name, [*own, *record.saved])
    found: dict[str, dict[str, Tensor]] = {}
    problems = [f"unknown: {key}" for key in sorted(tensors.keys() - names.values())]
    for path, slot in slots.items():
        keys = {name: names[f"{path}.{name}"] for name in slot.own}
        found[path] = {name: tensors[key] for name, key in keys.items() if key in tensors}
        rank = config.rank_of(owner.get(path, path))
        problems += [f"missing: {key}" for key in keys.values() if found[path] and key not in tensors]
        problems += [p for name, tensor in found[path].items() if (p := _misfit(slot, name, tensor, rank, keys[name]))]
    head = {key: names[key] for key in record.saved}
    present = {key for key, name in head.items() if name in tensors}
    problems += [f"missing: {name}" for key, name in head.items() if present and key not in present]
    whole, base = whole_tensors(inner, adapter_name), whole_tensors(inner, BASE)
    problems += [f"misshapen: {head[key]}" for key in present if tensors[head[key]].shape != whole[key].shape]
    if problems:
        raise ValueError(f"{folder} does not fit adapter {adapter_name!r}:\n  " + "\n  ".join(problems[:20]))

    for path, slot in slots.items():
        _write(slot, adapter_name, found[path], config.scaling_of(owner.get(path, path)))
    for key, tensor in whole.items():
        tensor.copy_(tensors[head[key]] if key in present else base[key])
    if not all(found.values()):  # the adapter keeps the layers that the file lacks, with updates of zero
        config = explicit_targets(
            config, [path for path in record.targets if path not in owner], [path for path, _ in model_modules(inner)]
        )
    record.config = dataclasses.replace(config, modules_to_save=record.config.modules_to_save)
    return model


@dataclass(frozen=True)
class _Slot:
    """The adapter's update of one layer, and its parameters under PEFT's names."""

    host: LoRALayer
    update: Update
    own: dict[str, Tensor]


def _slots(model: nn.Module, adapter_name: str) -> dict[str, _Slot]:
    """The layers of an adapter in a plain form, by path."""
    record = record_of(model, adapter_name)
    found = {path: host for path, host in hosts(model) if adapter_name in host.lora}
    if any(adapter_name in host.merged_adapters for host in found.values()):
        raise ValueError(f"Adapter {adapter_name!r} is merged. Call lora_core.unmerge_lora(model) first.")
    updates = {path: host.update_of(adapter_name) for path, host in found.items()}
    special = any(isinstance(update, ThirdsUpdate) or update.has_start for update in updates.values())
    if special or record.config.trainable_token_indices:
        raise ValueError(
            f"Adapter {adapter_name!r} has a form that a file cannot replace in place (PiSSA, OLoRA, thirds of a fused "
            "layer, token rows). Save it and load it again: files hold the plain form."
        )
    return {path: _Slot(host, updates[path], updates[path].named_tensors()) for path, host in found.items()}


def _resized(host: LoRALayer, update: Update, rank: int) -> Update:
    """A copy of ``update`` with room for ``rank``."""
    old, new = update.named_tensors(), host.new_update_like(update, rank)
    new.r = update.r
    for name, tensor in new.named_tensors().items():
        _copy_into(tensor, old[name])
        tensor.requires_grad_(old[name].requires_grad)
    return new


def _write(slot: _Slot, adapter_name: str, found: dict[str, Tensor], scaling: float) -> None:
    """Put a file's tensors for one layer into its update; none means an update of zero."""
    update, own = slot.update, slot.own
    a, b = update.factor_names
    if not found:
        own[b].zero_()
        if update.lora_magnitude_vector is not None:
            update.lora_magnitude_vector.copy_(update.row_norms(slot.host.weight_matrix()))
        return
    rank = found[a].shape[0]
    if isinstance(update.scaling, Tensor):
        update.scaling.fill_(scaling)
    else:
        if update.r != rank:
            update = slot.host.lora[adapter_name] = _resized(slot.host, update, rank)
            own = update.named_tensors()
        update.scaling = scaling
    update.r = rank
    for name, tensor in own.items():
        _copy_into(tensor, found[name])


def _misfit(slot: _Slot, name: str, tensor: Tensor, rank: int, key: str) -> str | None:
    """What keeps ``tensor`` from being the update's ``name``, for an update of ``rank``."""
    own = slot.own[name]
    factors = slot.update.factor_names
    wanted = list(own.shape)
    if name in factors:
        groups = getattr(getattr(slot.update, "lora_B", None), "groups", 1)
        wanted[factors.index(name)] = rank // groups if name == factors[1] else rank
    if list(tensor.shape) != wanted:
        return f"misshapen: {key} is {tuple(tensor.shape)}, the adapter needs {tuple(wanted)}"
    if isinstance(slot.update.scaling, Tensor) and any(n > m for n, m in zip(wanted, own.shape, strict=True)):
        return f"too large: {key} has rank {rank}, prepare_hotswap made room for {own.shape[factors.index(name)]}"
    return None


@torch.no_grad()
def _copy_into(room: Tensor, tensor: Tensor) -> None:
    """``tensor`` in the first places of ``room``, zeros in the others; what does not fit is left out."""
    if room.shape != tensor.shape:
        room.zero_()
        part = tuple(slice(min(n, m)) for n, m in zip(room.shape, tensor.shape, strict=True))
        room, tensor = room[part], tensor[part]
    room.copy_(tensor)
