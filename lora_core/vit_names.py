"""The two sets of module names of vision transformers: transformers 5 renamed what checkpoints and adapters had."""

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn

from lora_core.config import LoRAConfig
from lora_core.file_format import PREFIX, explicit_config, explicit_targets

_NAMES = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
"""Inside a layer: the names before transformers 5 and since."""

_OLD_MARK = re.compile(r"(.*\.)?encoder\.layer\.\d+\.attention\.attention\.(query|key|value)(\..*)?")
_NEW_MARK = re.compile(r"(.*\.)?(?<!encoder\.)layers\.\d+\.(attention\.[qkvo]_proj|mlp\.fc[12])(\..*)?")


def to_new_name(path: str) -> str:
    """`vit.encoder.layer.0.attention.attention.query` as `vit.layers.0.attention.q_proj`; other paths stay."""
    return _rename(path, "encoder.layer", "layers", _NAMES)


def to_old_name(path: str) -> str:
    """The other way round."""
    return _rename(path, "layers", "encoder.layer", {new: old for old, new in _NAMES.items()})


def in_names_of(
    model_paths: Iterable[str], tensors: Mapping[str, Tensor], config: LoRAConfig
) -> tuple[dict[str, Tensor], LoRAConfig]:
    """An adapter file's tensors and config under the names that the model has, where both differ only in the set."""
    paths = list(model_paths)
    keys = [key.removeprefix(PREFIX) for key in tensors]
    if _any(_NEW_MARK, paths) and _any(_OLD_MARK, keys):
        rename = to_new_name
    elif _any(_OLD_MARK, paths) and (_any(_NEW_MARK, keys) and not _any(_OLD_MARK, keys)):
        rename = to_old_name
    else:
        return dict(tensors), config
    return _renamed(tensors, config, rename)


def for_transformers(
    model: nn.Module, tensors: Mapping[str, Tensor], config: LoRAConfig
) -> tuple[dict[str, Tensor], LoRAConfig]:
    """An adapter's tensors and config as PEFT reads them beside transformers 5.

    They are under other names than the model's only if it is a ViT of this library, which keeps those of checkpoints.
    """
    if any(getattr(module, "renamed_in_transformers_5", False) for module in model.modules()):
        return _renamed(tensors, config, to_new_name)
    return dict(tensors), config


def _renamed(
    tensors: Mapping[str, Tensor], config: LoRAConfig, rename: Callable[[str], str]
) -> tuple[dict[str, Tensor], LoRAConfig]:
    keys = [key.removeprefix(PREFIX) for key in tensors]
    adapted = [key.partition(".lora_")[0] for key in keys if ".lora_" in key]
    sizes = {rename(path): (config.rank_of(path), config.scaling_of(path)) for path in adapted}
    renamed = {PREFIX + rename(key): tensor for key, tensor in zip(keys, tensors.values(), strict=True)}
    return renamed, explicit_targets(explicit_config(config, sizes), sizes)


def _rename(path: str, layers: str, new_layers: str, names: Mapping[str, str]) -> str:
    match = re.fullmatch(rf"((?:.*\.)?){re.escape(layers)}\.(\d+)\.(.+)", path)
    if match is None:
        return path
    before, number, inner = match.groups()
    name = next((name for name in names if inner == name or inner.startswith(f"{name}.")), None)
    if name is not None:
        inner = names[name] + inner[len(name) :]
    return f"{before}{new_layers}.{number}.{inner}"


def _any(mark: re.Pattern[str], paths: Iterable[str]) -> bool:
    return any(mark.fullmatch(path) for path in paths)
