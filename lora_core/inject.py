"""Put adapters into a model, and take them out."""

import dataclasses
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lora_core.adapters import STATE, AdapterRecord, LoRAState, get, hosts, set_adapter, state_of
from lora_core.config import LoRAConfig
from lora_core.initialise import initialise
from lora_core.layers import HOSTS, LoRALayer
from lora_core.targets import find_saved, find_targets, head_names

_NAME = re.compile(r"[A-Za-z0-9_\-]+")


def inject_lora(
    model: nn.Module,
    r: int = 8,
    lora_alpha: float | None = None,
    lora_dropout: float = 0.0,
    target_modules: str | Sequence[str] | None = None,
    modules_to_save: Sequence[str] | None = None,
    bias: str = "none",
    init_lora_weights: str | bool = "gaussian",
    *,
    config: LoRAConfig | None = None,
    adapter_name: str = "default",
    adapter_dtype: torch.dtype | None = None,
    **options,
) -> nn.Module:
    """Put low-rank adapters into ``model``, in place, freeze the rest, and return the same object.

    By default the attention's query and value projections get Gaussian A and zero B, so the model's outputs do
    not change until it is trained, and the task head is trained in full. Source: Hu et al. 2021,
    https://arxiv.org/abs/2106.09685.

    Args:
        model: any module; layers of type nn.Linear, nn.Embedding and nn.Conv2d can be adapted.
        r, lora_alpha, lora_dropout, target_modules, modules_to_save, bias, init_lora_weights, options: the fields
            of LoRAConfig, which says what each means.
        config: all of them in one object instead; it is not changed.
        adapter_name: name of this adapter.
        adapter_dtype: dtype of A and B; None means fp32 on a half-precision base, else the base's.

    Raises:
        ValueError: a pattern that matches nothing (with the nearest names), a model without known attention (with
            the layers that could be adapted), an adapter of that name, or a value out of range. The model is
            unchanged then.
    """
    fields = LoRAConfig(r=r, lora_alpha=lora_alpha, lora_dropout=lora_dropout, target_modules=target_modules,
                        modules_to_save=modules_to_save, bias=bias, init_lora_weights=init_lora_weights,
                        **options)  # fmt: skip
    if config is None:
        config = fields
    elif fields != LoRAConfig():
        raise ValueError("Give either config or single fields, not both: dataclasses.replace(config, r=16) combines them.")
    add_adapter(model, adapter_name, config=config, adapter_dtype=adapter_dtype)
    set_adapter(model, adapter_name)
    return model


def add_adapter(
    model: nn.Module,
    adapter_name: str,
    *,
    config: LoRAConfig | None = None,
    adapter_dtype: torch.dtype | None = None,
    trainable: bool = True,
    **fields,
) -> None:
    """Add an adapter without making it act; arguments and errors as for ``inject_lora``."""
    if config is not None and fields:
        raise ValueError(f"Give either config or single fields, not both; the fields are {sorted(fields)}.")
    config = LoRAConfig(**fields) if config is None else config
    state = getattr(model, STATE, None) or LoRAState(was_trainable={n: p.requires_grad for n, p in model.named_parameters()})
    _check_name(adapter_name, state)
    merged = sorted({name for _, host in hosts(model) for name in host.merged_adapters})
    if merged:
        raise ValueError(f"Adapters {merged} are merged. Call lora_core.unmerge_lora(model) before another is added.")
    targets = find_targets(model, config)
    saved = find_saved(model, config, targets)
    new = {path: _new_adapter(model.get_submodule(path), path, config, adapter_dtype) for path in targets}

    # Nothing below can fail for a reason the user could mend, so a refused injection leaves the model as it was.
    if not state.adapters:
        model.requires_grad_(False)
    for path, adapter in new.items():
        layer = model.get_submodule(path)
        host = layer if isinstance(layer, LoRALayer) else HOSTS[type(layer)].adopt(layer)
        host.lora[adapter_name] = adapter.train(host.training)
    for key in saved:
        state.base.setdefault(key, get(model, key))
    fresh = {key: _copy(state.base[key], adapter_dtype) for key in saved}
    config = dataclasses.replace(config.with_alphas(), modules_to_save=_saved_modules(model, config))
    state.adapters[adapter_name] = AdapterRecord(config, tuple(targets), fresh, trainable)
    setattr(model, STATE, state)
    set_adapter(model, state.active)


def eject_lora(model: nn.Module) -> nn.Module:
    """Remove every adapter, in place, and return the model with its plain layers.

    Merged adapters stay in the weights, with their head and biases; otherwise the base model comes back exactly.
    requires_grad is as it was before the injection.
    """
    state = state_of(model)
    layers = list(hosts(model))
    if not any(host.merged_adapters for _, host in layers):
        set_adapter(model, ())
    for _, host in layers:
        host.release()
    delattr(model, STATE)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(state.was_trainable[name])
    return model


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """(trainable, total) numbers of parameters; a shared parameter counts once."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trainable in sizes if trainable), sum(n for n, _ in sizes)


def _check_name(name: str, state: LoRAState) -> None:
    if not _NAME.fullmatch(name) or hasattr(nn.ModuleDict(), name):
        raise ValueError(
            f"An adapter's name may hold letters, digits, '_' and '-' and must not be an attribute of torch's modules, "
            f"but it is {name!r}. Choose another, for example {'my_' + re.sub(r'[^A-Za-z0-9_-]', '_', name)!r}."
        )
    if name in state.adapters:
        raise ValueError(f"There is an adapter {name!r} already. Choose another name, or delete_adapter(model, {name!r}) first.")


def _new_adapter(layer: nn.Module, path: str, config: LoRAConfig, dtype: torch.dtype | None) -> nn.Module:
    """The adapter for ``layer``, initialised, on its device."""
    weight = layer.weight
    if dtype is None:
        dtype = torch.float32 if weight.dtype in (torch.float16, torch.bfloat16) else weight.dtype
    host_class = type(layer) if isinstance(layer, LoRALayer) else HOSTS[type(layer)]
    try:
        with torch.device(weight.device):
            adapter = host_class.new_adapter(
                layer, r=config.rank_of(path), scaling=config.scaling_of(path), lora_dropout=config.lora_dropout,
                use_dora=config.use_dora, lora_bias=config.lora_bias, dtype=dtype)  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    initialise(adapter, weight, config)
    return adapter


def _copy(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A trainable copy of a base tensor; fp32 when the base is in half precision."""
    if not isinstance(tensor, nn.Parameter):
        return tensor.clone()
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return nn.Parameter(tensor.detach().to(dtype or (torch.float32 if half else tensor.dtype), copy=True))


def _saved_modules(model: nn.Module, config: LoRAConfig) -> tuple[str, ...]:
    return head_names(model) if config.modules_to_save is None else config.modules_to_save
