"""The two sets of module names of vision transformers: transformers 5 renamed what checkpoints and adapters had."""

import re
from collections.abc import Iterable, Mapping

_NAMES = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
"""Inside a layer: the names before transformers 5 and since."""

# Paths by which a model or a file shows the names that it has.
OLD_MARK = re.compile(r"(.*\.)?encoder\.layer\.\d+\.attention\.attention\.(query|key|value)(\..*)?")
NEW_MARK = re.compile(r"(.*\.)?(?<!encoder\.)layers\.\d+\.(attention\.[qkvo]_proj|mlp\.fc[12])(\..*)?")


def to_new_name(path: str) -> str:
    """`vit.encoder.layer.0.attention.attention.query` as `vit.layers.0.attention.q_proj`; other paths stay."""
    return _rename(path, "encoder.layer", "layers", _NAMES)


def to_old_name(path: str) -> str:
    """`vit.layers.0.attention.q_proj` as `vit.encoder.layer.0.attention.attention.query`; other paths stay."""
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
