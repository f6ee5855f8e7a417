"""Which layers of a model an adapter goes into, and which tensors it owns in full."""

import difflib
import re
from collections.abc import Iterable, Sequence

from torch import nn

from lora_core.config import LoRAConfig, Names
from lora_core.layers import HOSTS, LoRALayer

ATTENTION_NAMES = (
    # query, key, value, output projection
    ("query", "key", "value", "attention.output.dense"),  # BERT, RoBERTa, ELECTRA, ViT
    ("q_lin", "k_lin", "v_lin", "out_lin"),  # DistilBERT
    ("q_proj", "k_proj", "v_proj", "o_proj"),  # newer transformers
    ("q_proj", "k_proj", "v_proj", "out_proj"),  # CLIP, BART
    ("query_proj", "key_proj", "value_proj", "attention.output.dense"),  # DeBERTa v2
    ("to_q", "to_k", "to_v", "to_out.0"),
)
"""Names of attention projections in the field, most common first."""

PRESETS = ("qv", "qkv", "attention", "all-linear")

_HEAD_NAMES = ("classifier", "pre_classifier", "score", "qa_outputs", "head", "heads", "fc", "lm_head")


def find_targets(model: nn.Module, config: LoRAConfig) -> list[str]:
    """Paths of the layers that ``config`` adapts, in the model's order.

    Raises:
        ValueError: a pattern (of targets, exclusions, ranks, alphas or layer indices) matches nothing.
    """
    adaptable = [path for path, module in model.named_modules() if path and is_adaptable(module)]
    if not adaptable:
        kinds = ", ".join(cls.__name__ for cls in HOSTS)
        raise ValueError(f"{type(model).__name__} has no layer that LoRA can adapt ({kinds}).")
    targets = _matches(model, adaptable, config.target_modules)
    saved = set(config.modules_to_save or ()) if config.modules_to_save is not None else set(head_names(model))
    targets = [path for path in targets if not _suffix_match(path, saved) and not _inside(path, saved, model)]
    if config.exclude_modules is not None:
        excluded = set(_by_names(config.exclude_modules, adaptable, "exclude_modules"))
        targets = [path for path in targets if path not in excluded]
    if config.layers_to_transform is not None:
        targets = _by_layer(targets, config.layers_to_transform, config.layers_pattern)
    if not targets:
        raise ValueError(f"exclude_modules {config.exclude_modules!r} and modules_to_save leave no layer to adapt.")
    for name, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for pattern in patterns:
            if not any(re.fullmatch(rf"(.*\.)?({pattern})", path) for path in targets):
                raise _no_match(name, pattern, targets)
    return targets


def find_saved(model: nn.Module, config: LoRAConfig, targets: Sequence[str]) -> list[str]:
    """Paths of the parameters and buffers that an adapter owns in full: saved modules, and biases by ``bias``."""
    paths = [path for path, _ in model.named_modules() if path]
    names = head_names(model) if config.modules_to_save is None else config.modules_to_save
    modules = []
    for name in names:
        found = [path for path in paths if _suffix_match(path, (name,)) and ".lora." not in path]
        if not found:
            raise _no_match("modules_to_save", name, paths)
        modules += found
    for path in modules:
        module = model.get_submodule(path)
        if isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)):
            raise ValueError(
                f"modules_to_save: {path} is a {type(module).__name__}, which has no forward. Name the modules inside it."
            )
    wanted = [f"{path}." for path in modules]
    tensors = dict(model.named_parameters()) | {
        name: buffer for name, buffer in model.named_buffers() if name in model.state_dict(keep_vars=True)
    }
    own = [name for name in tensors if ".lora." not in name]
    keys = [name for name in own if name.startswith(tuple(wanted))] if wanted else []
    if config.bias != "none":
        biases = [name for name in own if name == "bias" or name.endswith(".bias")]
        if config.bias == "lora_only":
            biases = [name for name in biases if name.removesuffix(".bias") in set(targets)]
        keys += [name for name in biases if name not in set(keys)]
    return keys


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that form the task head; empty for a model without one.

    Known from `head_names` (this library), `base_model_prefix` (transformers: every child beside the encoder),
    `get_classifier` (timm), or the usual names among the model's children.
    """
    if hasattr(model, "head_names"):
        return tuple(model.head_names)
    children = {name: child for name, child in model.named_children() if any(True for _ in child.parameters())}
    prefix = getattr(model, "base_model_prefix", None)
    if prefix in children:
        return tuple(name for name in children if name != prefix)
    if callable(getattr(model, "get_classifier", None)):
        head = model.get_classifier()
        return tuple(path for path, module in model.named_modules() if module is head and isinstance(head, nn.Linear))
    return tuple(name for name in _HEAD_NAMES if name in children)


def is_adaptable(module: nn.Module) -> bool:
    """Whether a host exists for exactly this class of layer."""
    return type(module) in HOSTS or isinstance(module, LoRALayer)


def _matches(model: nn.Module, adaptable: list[str], targets: Names) -> list[str]:
    preset = "qv" if targets is None else targets[0] if isinstance(targets, tuple) and len(targets) == 1 else targets
    if preset not in PRESETS:
        assert targets is not None
        return _by_names(targets, adaptable, "target_modules")
    linear = [path for path in adaptable if isinstance(model.get_submodule(path), nn.Linear)]
    if preset == "all-linear":
        return linear
    for query, key, value, output in ATTENTION_NAMES:
        names = {"qv": (query, value), "qkv": (query, key, value), "attention": (query, key, value, output)}[preset]
        if all(any(_suffix_match(path, (name,)) for path in linear) for name in names):
            return [path for path in linear if _suffix_match(path, names)]
    raise ValueError(
        f"{type(model).__name__} has no attention projections under a known name, so target_modules must say what "
        f"to adapt. Its linear layers end in: {', '.join(_endings(linear))}."
    )


def _by_names(names: str | Sequence[str], paths: list[str], field: str) -> list[str]:
    """Paths that a regular expression (one string) or suffixes (a sequence) match; an error for one that matches none."""
    if isinstance(names, str):
        found = [path for path in paths if re.fullmatch(names, path)]
        if not found:
            raise _no_match(field, names, paths, "A single string is a regular expression for a whole path; give a list to match suffixes. ")
        return found
    for name in names:
        if not any(_suffix_match(path, (name,)) for path in paths):
            raise _no_match(field, name, paths)
    return [path for path in paths if _suffix_match(path, names)]


def _by_layer(paths: list[str], indices: Sequence[int], pattern: Names) -> list[str]:
    lists = None if pattern is None else (pattern,) if isinstance(pattern, str) else tuple(pattern)
    found: dict[int, list[str]] = {}
    for path in paths:
        parts = path.split(".")
        for before, part in zip(parts, parts[1:], strict=False):
            if part.isdigit() and (lists is None or before in lists):
                found.setdefault(int(part), []).append(path)
                break
    missing = sorted(set(indices) - set(found))
    if missing:
        raise ValueError(f"layers_to_transform: no adapted layer has index {missing}; there are {sorted(found)}.")
    chosen = {path for index in indices for path in found[index]}
    return [path for path in paths if path in chosen]


def _suffix_match(path: str, names: Iterable[str]) -> bool:
    return any(path == name or path.endswith(f".{name}") for name in names)


def _inside(path: str, names: Iterable[str], model: nn.Module) -> bool:
    parents = path.split(".")
    return any(_suffix_match(".".join(parents[:depth]), names) for depth in range(1, len(parents)))


def _endings(paths: Iterable[str]) -> list[str]:
    """Distinct last names of paths, without layer indices, in order."""
    return list(dict.fromkeys(path.rpartition(".")[2] if not path.rpartition(".")[2].isdigit() else path for path in paths))


def _no_match(field: str, pattern: str, paths: Sequence[str], hint: str = "") -> ValueError:
    names = list(dict.fromkeys([*_endings(paths), *paths]))
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or _endings(paths)[:20]
    return ValueError(f"{field}: {pattern!r} matches nothing. {hint}Nearest names: {', '.join(near)}.")
