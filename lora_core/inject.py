"""Put adapters into a model, and take them out.

In reading order: `inject_lora` and `add_adapter`, which build an adapter (`add_exactly`) and install it (`install`);
`eject_lora`; `parameter_counts`; names, and how one update is made.
"""

import dataclasses
import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lora_core.adapters import (
    STATE,
    AdapterRecord,
    LoRAState,
    enabled_state_of,
    hosts,
    remove_bridge,
    set_adapter,
    state_of,
)
from lora_core.config import LoRAConfig
from lora_core.initialise import initialise
from lora_core.layers import LoRALayer, block_fast_paths, model_modules, restore_fast_paths, unwrapped
from lora_core.targets import (
    attention_outputs,
    find_saved,
    find_targets,
    fused_layers,
    head_names,
    host_class,
    input_embedding,
    refusal,
    split_thirds,
)
from lora_core.updates import TokenRows, Update
from lora_core.whole import (
    BASE,
    HALF,
    add_waiting,
    bridge,
    get_tensor,
    half_modules,
    is_waiting,
    remove_waiting,
    whole_tensor,
)

logger = logging.getLogger("lora_core")

OTHER_NAMES = {"rank": "r", "lora_rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
"""What fields are called elsewhere."""
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
        model: any module; nn.Linear, nn.Embedding, nn.Conv2d, nn.MultiheadAttention (input and output projection
            together) and transformers' Conv1D can be adapted, and thirds of a fused qkv Linear ("qkv.q", "qkv.v").
        r, lora_alpha, lora_dropout, target_modules, modules_to_save, bias, init_lora_weights: fields of LoRAConfig,
            which says what each means.
        config: all of them in one object instead; it is not changed.
        adapter_name: name of this adapter.
        adapter_dtype: dtype of A and B; None means fp32 on a half-precision base, else the base's.
        options: further fields of LoRAConfig.

    Raises:
        ValueError: a pattern that matches nothing (with the nearest names), a model without known attention (with
            the layers that could be adapted), an adapter of that name, or a value out of range. The model is
            unchanged then.
    """
    _refuse_unknown(options)
    options |= {"target_modules": target_modules, "modules_to_save": modules_to_save}
    options |= {"bias": bias, "init_lora_weights": init_lora_weights}
    fields = LoRAConfig(r=r, lora_alpha=lora_alpha, lora_dropout=lora_dropout, **options)
    if config is None:
        config = fields
    elif fields != LoRAConfig():
        raise ValueError(
            "Give either config or single fields, not both: dataclasses.replace(config, r=16) combines them."
        )
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
    """Add an adapter without making it act.

    Args:
        model: as for `inject_lora`, and so are config and adapter_dtype.
        adapter_name: name of this adapter.
        trainable: whether it is trained when it acts.
        fields: fields of LoRAConfig, in place of ``config``.

    Raises:
        ValueError: as for `inject_lora`; the model is unchanged then.
    """
    if config is not None and fields:
        raise ValueError(f"Give either config or single fields, not both; the fields are {sorted(fields)}.")
    _refuse_unknown(fields)
    config, model = LoRAConfig(**fields) if config is None else config, unwrapped(model)
    config = dataclasses.replace(config, modules_to_save=_with_head(model, config.modules_to_save))
    add_exactly(model, adapter_name, config, adapter_dtype=adapter_dtype, trainable=trainable)


def _refuse_unknown(options: Mapping[str, object]) -> None:
    """Raises TypeError for what is no field of LoRAConfig."""
    fields = [field.name for field in dataclasses.fields(LoRAConfig)]
    for name in options:
        if name not in fields:
            near = OTHER_NAMES.get(name) or next(iter(difflib.get_close_matches(name, fields, 1)), "")
            meant = f": did you mean {near}?" if near else f"; there are {', '.join(fields)}."
            raise TypeError(f"{name!r} is no field of LoRAConfig{meant}")


def add_exactly(
    model: nn.Module, adapter_name: str, config: LoRAConfig, *, adapter_dtype: torch.dtype | None, trainable: bool
) -> None:
    """``add_adapter`` without its care for the head: modules_to_save is taken as it stands, as a file needs it."""
    places = enabled_state_of(model).places if hasattr(model, STATE) else {}
    check_new_name(model, adapter_name)
    merged = sorted({name for _, host in hosts(model) for name in host.merged_adapters})
    if merged:
        raise ValueError(f"Adapters {merged} are merged. Call lora_core.unmerge_lora(model) before another is added.")
    thirds = split_thirds(find_targets(model, config), fused_layers(model))
    outputs = attention_outputs(model)
    targets = {path: (path, part) for path, part in thirds.items()}  # where the patterns look the rank up, and thirds
    targets |= {outputs[path]: (path, ()) for path in thirds if path in outputs}
    saved = find_saved(model, config, tuple(targets))
    base = {key: whole_tensor(model, {key: BASE} | places, key, BASE) for key in saved}
    new = {
        path: _new_update(model.get_submodule(path), named, config, adapter_dtype, part)
        for path, (named, part) in targets.items()
    }
    if config.trainable_token_indices:
        path = input_embedding(model)
        if path in new:
            raise ValueError(f"{path} is in target_modules and has trainable_token_indices too; choose one of them.")
        embedding = model.get_submodule(path)
        assert isinstance(embedding, nn.Embedding)
        if (reason := refusal(path, embedding)) is not None:
            raise ValueError(f"trainable_token_indices: {reason.partition(' Leave it')[0]}")
        tied = [other for other, module in model_modules(model)
                if module is not embedding and getattr(module, "weight", None) is embedding.weight]  # fmt: skip
        if tied:
            raise ValueError(
                f"trainable_token_indices: {tied[0]} shares its weight with {path} and would have to learn the tokens "
                "too, which is not supported. Adapt the embedding by target_modules, or train it by modules_to_save."
            )
        new[path] = TokenRows(embedding, config.trainable_token_indices, _dtype(embedding.weight, adapter_dtype))
    half = half_modules(model, saved, base)
    widened = adapter_dtype or torch.float32
    fresh = {key: _copy(base[key], widened if key.rpartition(".")[0] in half else None) for key in saved}
    config = config.with_alphas()
    install(model, adapter_name, AdapterRecord(config, tuple(targets), tuple(saved), trainable), new, fresh)
    if config.initialisation == "eva":
        logger.warning(
            "Adapter %r starts at random until lora_core.initialise_eva(model, batches) is called.", adapter_name
        )


def install(
    model: nn.Module,
    adapter_name: str,
    record: AdapterRecord,
    updates: Mapping[str, Update],
    whole: Mapping[str, Tensor],
) -> None:
    """Put the updates of a new adapter, by the path of their layer, and the tensors that it owns in full, by theirs,
    into the model, without making them act.

    Nothing here can fail for a reason that a user could mend, so a refused injection leaves the model as it was.
    """
    model = unwrapped(model)
    state = getattr(model, STATE, None) or LoRAState(
        was_trainable={n: p.requires_grad for n, p in model.named_parameters()}
    )
    if not state.adapters:
        model.requires_grad_(False)
    for path, update in updates.items():
        layer = model.get_submodule(path)
        kind = host_class(layer)
        assert kind is not None
        host = layer if isinstance(layer, LoRALayer) else kind.adopt(layer)
        host.lora[adapter_name] = update.train(host.training)
    for key, tensor in whole.items():
        state.places.setdefault(key, BASE)
        add_waiting(model, key, adapter_name, tensor)
    base = {key: whole_tensor(model, state.places, key, BASE) for key in whole}
    for path in half_modules(model, record.saved, base):
        if path not in state.bridges:
            first = next(key for key in record.saved if key.rpartition(".")[0] == path)
            state.bridges[path] = bridge(model.get_submodule(path), base[first].dtype)
    state.adapters[adapter_name] = record
    state.fast_paths |= block_fast_paths(model, {host for _, host in hosts(model)})
    setattr(model, STATE, state)
    set_adapter(model, state.active)


def eject_lora(model: nn.Module) -> nn.Module:
    """Remove every adapter, in place, and return the model with its plain layers.

    Merged adapters stay in the weights, with their head and biases; otherwise the base model comes back exactly.
    requires_grad is as it was before the injection.
    """
    given, model = model, unwrapped(model)
    state = enabled_state_of(model)
    layers = list(hosts(model))
    if not any(host.merged_adapters for _, host in layers):
        set_adapter(model, ())
    base_types = {key: whole_tensor(model, state.places, key, BASE).dtype for key in state.places}
    for _, host in layers:
        host.release()
    restore_fast_paths(model, state.fast_paths)
    for key, dtype in base_types.items():
        for owner in (BASE, *state.adapters):
            remove_waiting(model, key, owner)
        if key.rpartition(".")[0] in state.bridges:  # a head trained in fp32 stays after a merge: round it
            tensor = get_tensor(model, key)
            tensor.data = tensor.data.to(dtype)
    for path in list(state.bridges):
        remove_bridge(state, path)
    delattr(model, STATE)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(state.was_trainable.get(name, parameter.requires_grad))  # one may be new
    return given


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """(trainable, total) numbers of parameters; a shared parameter counts once, a head or bias that waits does not."""
    named = model.named_parameters(remove_duplicate=False)
    own = {parameter for path, parameter in named if not is_waiting(path)}
    return sum(p.numel() for p in own if p.requires_grad), sum(p.numel() for p in own)


def check_new_name(model: nn.Module, name: str) -> None:
    """Check that ``name`` can be the name of a further adapter.

    Raises:
        ValueError: torch's modules cannot have a child of that name, or there is such an adapter.
    """
    if not _NAME.fullmatch(name) or hasattr(nn.ModuleDict(), name):
        raise ValueError(
            f"An adapter's name may hold letters, digits, '_' and '-' and must not be an attribute of torch's modules, "
            f"but it is {name!r}. Choose another, for example {'my_' + re.sub(r'[^A-Za-z0-9_-]', '_', name)!r}."
        )
    if hasattr(model, STATE) and name in state_of(model).adapters:
        raise ValueError(
            f"There is an adapter {name!r} already. Choose another name, or delete_adapter(model, {name!r}) first."
        )


def _new_update(
    layer: nn.Module, path: str, config: LoRAConfig, dtype: torch.dtype | None, thirds: tuple[str, ...]
) -> Update:
    """The update for ``layer``, initialised, on its device."""
    kind = host_class(layer)
    assert kind is not None
    weight = getattr(layer, kind.weight_name)
    part = {"thirds": thirds} if thirds else {}
    try:
        if weight is None:
            raise ValueError(
                "its query, key and value projections are separate (kdim or vdim). Exclude it by exclude_modules."
            )
        with torch.device(weight.device):
            update = kind.new_update(
                cast(LoRALayer, layer),  # not a host yet; its own sizes are all that is read
                r=config.rank_of(path),
                scaling=config.scaling_of(path),
                lora_dropout=config.lora_dropout,
                use_dora=config.use_dora,
                lora_bias=config.lora_bias,
                dtype=_dtype(weight, dtype),
                **part,
            )
        initialise(update, kind.matrix(weight), config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return update


def _dtype(weight: Tensor, wanted: torch.dtype | None) -> torch.dtype:
    """``wanted``; by default fp32 for a weight in half precision, else its own dtype."""
    return wanted or (torch.float32 if weight.dtype in HALF else weight.dtype)


def _copy(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A trainable copy of a base tensor, in ``dtype`` (None: its own) if it is floating."""
    copied = tensor.detach().to(dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype, copy=True)
    return nn.Parameter(copied) if isinstance(tensor, nn.Parameter) else copied


def _with_head(model: nn.Module, names: tuple[str, ...] | None) -> tuple[str, ...]:
    """Modules to train in full: the named ones, and the head unless () freezes it or its parts are named."""
    if names == ():
        return ()
    named = names or ()
    heads = [h for h in head_names(model) if not any(name == h or name.startswith(f"{h}.") for name in named)]
    return (*named, *heads)
