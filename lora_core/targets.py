"""Which layers of a model an adapter goes into, which host adapts each, and which tensors the adapter owns in full.

In reading order: `find_targets`, the layers that a config names; `find_saved`, the tensors owned in full; what is known
of models and their layers (heads, hosts, fused query-key-value layers, the input embedding); errors.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from itertools import pairwise

from torch import nn

from lora_core.config import LoRAConfig, Names
from lora_core.layers import (
    LoRAConv1D,
    LoRAConv2d,
    LoRAEmbedding,
    LoRALayer,
    LoRALinear,
    LoRAMultiheadAttention,
    model_modules,
)
from lora_core.patterns import Pattern, ends_of, shown
from lora_core.updates import THIRDS
from lora_core.whole import is_waiting

ATTENTION_NAMES = (
    # query, key, value, output projection
    ("query", "key", "value", "attention.output.dense"),  # BERT, RoBERTa, ELECTRA, ViT
    ("query", "key", "value", "attention.dense"),  # ALBERT
    ("q_lin", "k_lin", "v_lin", "out_lin"),  # DistilBERT
    ("attn.q", "attn.k", "attn.v", "attn.o"),  # MPNet
    ("q_proj", "k_proj", "v_proj", "o_proj"),  # newer transformers
    ("q_proj", "k_proj", "v_proj", "out_proj"),  # CLIP, BART
    ("query_proj", "key_proj", "value_proj", "attention.output.dense"),  # DeBERTa v2
    ("to_q", "to_k", "to_v", "to_out.0"),
)

"""Names of attention projections in the field, most common first."""

FUSED_OUTPUTS = ("attn.proj", "attn.Wo")
"""Output projections beside fused query-key-value layers: timm, ModernBERT."""

PRESETS = ("qv", "qkv", "attention", "all-linear")
"""Values of target_modules that are no pattern."""

_HEAD_NAMES = ("classifier", "pre_classifier", "score", "qa_outputs", "head", "heads", "fc", "lm_head")
"""Names of task heads in the field."""

_FUSED_NAMES = ("qkv", "Wqkv")
"""Names of layers that hold query, key and value projections one after the other: timm, ModernBERT."""

Modules = dict[str, nn.Module]
"""What is in a model, by path, as `model_modules` gives it."""

HOSTS: dict[type[nn.Module], type[LoRALayer]] = {
    nn.Linear: LoRALinear,
    nn.Embedding: LoRAEmbedding,
    nn.Conv2d: LoRAConv2d,
    nn.MultiheadAttention: LoRAMultiheadAttention,
}
"""The host that adapts each kind of layer; transformers' Conv1D, which need not be installed, has LoRAConv1D."""


def find_targets(model: nn.Module, config: LoRAConfig) -> list[str]:
    """Paths of the layers that ``config`` adapts, in the model's order; "path.q" is a third of a fused layer.

    Raises:
        ValueError: a pattern (of targets, exclusions, ranks, alphas or layer indices) matches nothing.
    """
    modules = dict(model_modules(model))
    return _targets(model, modules, _adaptable(modules), config)


def _targets(model: nn.Module, modules: Modules, adaptable: list[str], config: LoRAConfig) -> list[str]:
    """`find_targets` in a model of these modules."""
    if not adaptable:
        kinds = ", ".join(cls.__name__ for cls in HOSTS)
        raise ValueError(f"{type(model).__name__} has no layer that LoRA can adapt ({kinds}).")
    saved = Pattern(_saved_names(model, config))
    refused = _refused(modules, config, saved)
    if refused:
        raise ValueError(f"target_modules: {refused}")
    targets = [path for path in _matches(model, modules, adaptable, config.target_modules) if not saved.contains(path)]
    if config.exclude_modules is not None:
        odd = [path for path, module in modules.items() if refusal(path, module)]
        excluded = set(_named("exclude_modules", config.exclude_modules, [*adaptable, *odd]))
        targets = [path for path in targets if path not in excluded]
    if config.layers_to_transform is not None:
        targets = _by_layer(targets, config.layers_to_transform, config.layers_pattern)
    if not targets:
        raise ValueError(
            f"exclude_modules {shown(config.exclude_modules)} and modules_to_save leave no layer to adapt."
        )
    layers = split_thirds(targets, _fused(modules))
    for field in ("rank_pattern", "alpha_pattern"):
        for key in getattr(config, field):
            if not Pattern.at_end(key).matches_any(layers):
                raise _no_match(field, key, targets)
    return targets


def without_idle_patterns(model: nn.Module, modules: Modules, config: LoRAConfig) -> tuple[LoRAConfig, list[str]]:
    """``config`` less what matches nothing in ``model``, for a config from a file; and the layers that it adapts.

    PEFT writes such names, and whether the file fits is told by its tensors. Targets of which none matches stay.
    """
    paths = _adaptable(modules)
    ends = {end for path in paths for end in ends_of(path)}
    parts = {part for path in paths for part in path.split(".")}

    def used(names: Names) -> Names:
        if isinstance(names, str):
            return names if Pattern(names).matches_any(paths) else None
        return tuple(name for name in names or () if name in ends) or None

    indices = [i for i in config.layers_to_transform or () if str(i) in parts]
    kept = dataclasses.replace(
        config,
        target_modules=used(config.target_modules) or config.target_modules,
        exclude_modules=used(config.exclude_modules),
        layers_to_transform=tuple(indices) or config.layers_to_transform,
        rank_pattern={},
        alpha_pattern={},
    )
    layers = list(split_thirds(_targets(model, modules, paths, kept), _fused(modules)))
    ranks = {key: r for key, r in config.rank_pattern.items() if Pattern.at_end(key).matches_any(layers)}
    alphas = {key: alpha for key, alpha in config.alpha_pattern.items() if Pattern.at_end(key).matches_any(layers)}
    return dataclasses.replace(kept, rank_pattern=ranks, alpha_pattern=alphas), layers


def _adaptable(modules: Modules) -> list[str]:
    """Paths that targets can name: adaptable layers, and the thirds of fused ones."""
    outputs = set(_outputs(modules).values())
    paths = []
    for path, module in modules.items():
        if path and host_class(module) is not None and path not in outputs:
            paths.append(path)
            if is_fused_qkv(path, module):
                paths += [f"{path}.{third}" for third in THIRDS]
    return paths


def _refused(modules: Modules, config: LoRAConfig, saved: Pattern) -> str | None:
    """Why a layer that the targets name and nothing excludes cannot be adapted; None when all can."""
    outputs = {output: path for path, output in _outputs(modules).items()}
    excluded, named = Pattern(config.exclude_modules), Pattern(config.target_modules)
    for path, module in modules.items():
        why = refusal(path, module)
        if (why is None and path not in outputs) or saved.contains(path) or excluded.matches(path):
            continue
        if path in outputs and not _is_preset(config.target_modules) and named.matches(path):
            return f"{path} is never called by its nn.MultiheadAttention. Target {outputs[path]}, which adapts both."
        wanted = config.target_modules == "all-linear" and isinstance(module, nn.Linear)
        if why is not None and (wanted or named.matches(path)):
            return why
    return None


def _is_preset(names: Names) -> bool:
    return names is None or (isinstance(names, str) and names in PRESETS)


def _matches(model: nn.Module, modules: Modules, adaptable: list[str], targets: Names) -> list[str]:
    preset = preset_of(targets, adaptable)
    if preset is None:
        assert targets is not None
        return _named("target_modules", targets, adaptable)
    linear = [path for path in adaptable if _is_linear(modules.get(path))]
    if preset == "all-linear":
        heads = Pattern(head_names(model))
        return [path for path in linear if not heads.contains(path)]
    for query, key, value, output in ATTENTION_NAMES:
        names = {"qv": (query, value), "qkv": (query, key, value), "attention": (query, key, value, output)}[preset]
        if all(Pattern((name,)).matches_any(linear) for name in names):
            projections = Pattern(names)
            return [path for path in linear if projections.matches(path)]
    fused = _fused(modules) & set(adaptable)
    if fused:
        thirds = {f"{path}.{third}" for path in fused for third in ("q", "v" if preset == "qv" else "k", "v")}
        outputs = Pattern(FUSED_OUTPUTS if preset == "attention" else ())
        return [path for path in adaptable if path in thirds or outputs.matches(path)]
    whole = [path for path in adaptable if isinstance(modules.get(path), nn.MultiheadAttention)]
    if whole and preset == "attention":
        return whole
    remedy = (
        'nn.MultiheadAttention is adapted as a whole: target_modules="attention".'
        if whole
        else f"Its linear layers end in: {', '.join(_endings(linear))}."
    )
    raise ValueError(
        f"{type(model).__name__} has no attention projections under a known name, so target_modules must say what "
        f"to adapt. {remedy}"
    )


def preset_of(targets: Names, adaptable: Sequence[str]) -> str | None:
    """The preset that ``targets`` names; None for patterns. A list of one name means the layer of that name, if any."""
    if isinstance(targets, tuple) and len(targets) == 1 and not Pattern(targets).matches_any(adaptable):
        targets = targets[0]
    preset = "qv" if targets is None else targets
    return preset if isinstance(preset, str) and preset in PRESETS else None


def _is_linear(module: nn.Module | None) -> bool:
    """Whether a layer is a matrix for "all-linear": nn.Linear, transformers' Conv1D, nn.MultiheadAttention."""
    return module is not None and host_class(module) in (LoRALinear, LoRAConv1D, LoRAMultiheadAttention)


def _named(field: str, names: str | Sequence[str], paths: list[str]) -> list[str]:
    """The ``paths`` that the names in a field of the config mean; each name must mean at least one."""
    if isinstance(names, str):
        hint = "A single string is a regular expression for a whole path; give a list to match suffixes. "
        if not Pattern(names).matches_any(paths):
            raise _no_match(field, names, paths, hint)
    else:
        ends = {end for path in paths for end in ends_of(path)}
        for name in names:
            if name not in ends:
                raise _no_match(field, name, paths)
    pattern = Pattern(names)
    return [path for path in paths if pattern.matches(path)]


def _by_layer(paths: list[str], indices: Sequence[int], pattern: Names) -> list[str]:
    lists = None if pattern is None else (pattern,) if isinstance(pattern, str) else tuple(pattern)
    found: dict[int, list[str]] = {}
    for path in paths:
        parts = path.split(".")
        for before, part in pairwise(parts):
            if part.isdigit() and (lists is None or before in lists):
                found.setdefault(int(part), []).append(path)
                break
    missing = sorted(set(indices) - set(found))
    if missing:
        raise ValueError(
            f"layers_to_transform: no adapted layer has index {shown(missing)}; there are {sorted(found)}."
        )
    chosen = {path for index in indices for path in found[index]}
    return [path for path in paths if path in chosen]


def find_saved(model: nn.Module, config: LoRAConfig, targets: Sequence[str]) -> list[str]:
    """Paths of the parameters and buffers that an adapter owns in full: saved modules, and biases by ``bias``."""
    paths = [path for path, _ in model_modules(model) if path]
    modules = _named("modules_to_save", _saved_names(model, config), paths)
    for path in modules:
        module = model.get_submodule(path)
        if isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)):
            raise ValueError(
                f"modules_to_save: {path} is a {type(module).__name__}, which has no forward. "
                "Name the modules inside it."
            )
    inside_updates = tuple(f"{path}.lora." for path, module in model_modules(model) if isinstance(module, LoRALayer))
    named = model.state_dict(keep_vars=True)
    own = [key for key in named if not key.startswith(inside_updates) and not is_waiting(key)]
    keys = [key for key in own if key.startswith(tuple(f"{path}." for path in modules))]
    if config.bias != "none":
        biases = [key for key in own if key == "bias" or key.endswith(".bias")]
        if config.bias == "lora_only":
            biases = [key for key in biases if key.rpartition(".")[0] in targets]
        keys += [key for key in biases if key not in set(keys)]
    return keys


def _saved_names(model: nn.Module, config: LoRAConfig) -> tuple[str, ...]:
    """Names of the modules to train in full: None in the config means the head."""
    return head_names(model) if config.modules_to_save is None else config.modules_to_save


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that form the task head; empty for a model without one.

    Known from `head_names` (this library), `base_model_prefix` (transformers: every child beside the encoder),
    `get_classifier` (timm), or the usual names among the model's children.
    """
    own = getattr(model, "head_names", None)
    if own is not None:
        return tuple(own)
    children = {name: child for name, child in model.named_children() if any(True for _ in child.parameters())}
    prefix = getattr(model, "base_model_prefix", None)
    if prefix in children:
        return tuple(name for name in children if name != prefix)
    get_classifier = getattr(model, "get_classifier", None)
    if callable(get_classifier):
        head = get_classifier()
        return tuple(path for path, module in model.named_modules() if module is head and isinstance(head, nn.Linear))
    return tuple(name for name in _HEAD_NAMES if name in children)


def fused_layers(model: nn.Module) -> set[str]:
    """Paths of the layers that hold query, key and value in one."""
    return _fused(dict(model_modules(model)))


def _fused(modules: Modules) -> set[str]:
    return {path for path, module in modules.items() if is_fused_qkv(path, module)}


def attention_outputs(model: nn.Module) -> dict[str, str]:
    """{path of an nn.MultiheadAttention: path of its output projection, which is adapted with it}."""
    return _outputs(dict(model_modules(model)))


def _outputs(modules: Modules) -> dict[str, str]:
    return {path: f"{path}.out_proj" for path, m in modules.items() if isinstance(m, nn.MultiheadAttention)}


def host_class(layer: nn.Module) -> type[LoRALayer] | None:
    """The host of ``layer``; None when there is none for what it computes."""
    if isinstance(layer, LoRALayer):
        return type(layer)
    kind = _kind(layer)
    if kind is not None and _own_forward(layer, kind):
        return None
    if type(layer).__name__ == "Conv1D" and hasattr(layer, "nf") and getattr(layer, "weight", None) is not None:
        return LoRAConv1D  # transformers', known by its looks so that transformers need not be there
    return None if kind is None else HOSTS[kind]


def refusal(path: str, layer: nn.Module) -> str | None:
    """Why a layer that looks adaptable is not; None when it is, or does not look so."""
    if _kind(layer) is None or host_class(layer) is not None:
        return None
    return (
        f"{path} is a {type(layer).__name__} with a computation of its own, which an adapter would bypass. "
        "Leave it out by exclude_modules."
    )


def _kind(layer: nn.Module) -> type[nn.Module] | None:
    """Which of the adaptable kinds of layer ``layer`` descends from."""
    return next((kind for kind in HOSTS if isinstance(layer, kind)), None)


def _own_forward(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether ``layer`` computes something else than the kind of layer it descends from."""
    changed = type(layer).forward is not kind.forward
    computed = HOSTS[kind].weight_name not in layer._parameters  # by pruning, weight norm or spectral norm
    return changed or computed or "forward" in vars(layer) or "parametrizations" in layer._modules


def is_fused_qkv(path: str, module: nn.Module) -> bool:
    """Whether the layer at ``path`` holds query, key and value projections one after the other."""
    named = path.rpartition(".")[2] in _FUSED_NAMES
    return named and isinstance(module, nn.Linear) and module.out_features % 3 == 0


def split_thirds(targets: Sequence[str], fused: set[str]) -> dict[str, tuple[str, ...]]:
    """Targets as {path of the layer: the thirds to adapt, () for all of it}; ``fused`` has the fused layers' paths."""
    layers: dict[str, tuple[str, ...]] = {}
    for target in targets:
        path, _, third = target.rpartition(".")
        if path in fused and third in THIRDS:
            if layers.get(path) == ():
                raise ValueError(f"target_modules matches both {path} and its part {target}; name one of them.")
            layers[path] = (*layers.get(path, ()), third)
        else:
            layers[target] = ()
    return layers


def input_embedding(model: nn.Module) -> str:
    """Path of the embedding that turns token ids into vectors: the model's own word for it, or its first one."""
    own = getattr(model, "get_input_embeddings", None)
    wanted = own() if callable(own) else None
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and (wanted is None or module is wanted):
            return path
    raise ValueError(f"{type(model).__name__} has no nn.Embedding, so trainable_token_indices has no rows to train.")


def _endings(paths: Iterable[str]) -> list[str]:
    """Distinct last names of paths, without layer indices, in order."""
    endings = []
    for path in paths:
        name = path.rpartition(".")[2]
        endings.append(path if name.isdigit() else name)
    return list(dict.fromkeys(endings))


def _no_match(field: str, pattern: str, paths: Sequence[str], hint: str = "") -> ValueError:
    names = list(dict.fromkeys([*_endings(paths), *paths]))
    near = difflib.get_close_matches(pattern[:200], names, n=3, cutoff=0.4) or _endings(paths)[:20]
    return ValueError(f"{field}: {shown(pattern)} matches nothing. {hint}Nearest names: {', '.join(near)}.")
