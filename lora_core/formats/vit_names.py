"""The two sets of module names of vision transformers: transformers 5 renamed what checkpoints and adapters had."""

import re
from collections.abc import Iterable, Mapping

_ATTENTION = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
_NAMES = {**_ATTENTION, "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2"}
"""Inside a layer of ViT: the names before transformers 5 and since. DINOv2's are renamed in the attention only."""

# Paths by which a model or a file shows the names that it has.
OLD_MARK = re.compile(r"(.*\.)?encoder\.layer\.\d+\.attention\.attention\.(query|key|value)(\..*)?")
NEW_MARK = re.compile(
    r"(.*\.)?((?<!encoder\.)layers\.\d+\.(attention\.[qkvo]_proj|mlp\.fc[12])|"
    r"encoder\.layer\.\d+\.attention\.[qkvo]_proj)(\..*)?"
)
DINOV2_MARK = re.compile(r"(.*\.)?encoder\.layer\.\d+\.attention\.[qkvo]_proj(\..*)?")


def to_new_name(path: str) -> str:
    """`vit.encoder.layer.0.attention.attention.query` as `vit.layers.0.attention.q_proj`; other paths stay."""
    return _rename(path, "encoder.layer", "layers", _NAMES)


def to_dinov2_name(path: str) -> str:
    """`dinov2.encoder.layer.0.attention.attention.query` as `dinov2.encoder.layer.0.attention.q_proj`; other paths
    stay."""
    return _rename(path, "encoder.layer", "encoder.layer", _ATTENTION)


def to_old_name(path: str) -> str:
    """The inverse of both; other paths stay."""
    if DINOV2_MARK.fullmatch(path):
        return _rename(path, "encoder.layer", "encoder.layer", {new: old for old, new in _ATTENTION.items()})
    return _rename(path, "layers", "encoder.layer", {new: old for old, new in _NAMES.items()})


def _rename(path: str, layers: str, new_layers: str, names: Mapping[str, str]) -> str:
    match = re.fullmatch(rf"((?:.*\.)?){re.escape(layers)}\.(\d+)\.(.+)", path)
    if match is None:
        return path
    before, number, inner = match.groups()
    name = next((name for name in names if inner == name or inner.startswith(f"{name}.")), None)
    if name is not None:
        inner = names[name] + inner[len(name) :]
    return f"{before}{new_layers}.{number}.{inner}"


def any_path(mark: re.Pattern[str], paths: Iterable[str]) -> bool:
    """Whether any of ``paths`` has the names that ``mark`` stands for."""
    return any(mark.fullmatch(path) for path in paths)
