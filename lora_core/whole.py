"""Tensors that adapters train in full: those of a task head (modules_to_save), and biases.

The base model and each adapter have their own of such a tensor, and just one of them is in its place at a time. The
others wait, registered in the same module under names of their own (the base model's as `_waiting_weight`, an adapter's
as `_waiting_weight_of_NAME`): so they are moved and cast, kept by `state_dict` and seen by an optimiser like all else.
What is in place is the truth: it may be replaced there, as `load_state_dict(assign=True)` does.

In a model in half precision, which would round small steps away, a module of which an adapter owns every parameter is
trained in fp32: two hooks are its bridge to the model around it and cast its inputs to its own dtype and its outputs
back.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lora_core.layers import LoRALayer

BASE = ""
"""The base model among the owners, which are adapters by name otherwise."""
HALF = (torch.float16, torch.bfloat16)
_WAITING = "_waiting_"
"""Begins with what no module calls its parameters."""


def is_waiting(path: str) -> bool:
    """Whether ``path`` is that of a tensor that waits, and so none of the model's own."""
    return path.rpartition(".")[2].startswith(_WAITING)


def get_tensor(model: nn.Module, path: str) -> Tensor:
    """The parameter or buffer at ``path``."""
    parent, _, leaf = path.rpartition(".")
    return getattr(model.get_submodule(parent), leaf)


def whole_tensor(model: nn.Module, places: Mapping[str, str], key: str, owner: str) -> Tensor:
    """The tensor at path ``key`` that is the owner's, in place or waiting; the unmerged one of a merged layer.

    Args:
        places: by path, whose tensor is in place.

    Raises:
        ValueError: it is gone, for the module has been replaced by another.
    """
    module, leaf = _module_of(model, key)
    if places[key] == owner:
        if isinstance(module, LoRALayer) and module.merged_adapters and leaf in module.frozen:
            return module.frozen[leaf]
        return _slots(module, leaf)[leaf]
    waiting = _slots(module, leaf).get(_waiting_name(leaf, owner))
    if waiting is None:
        whose = f"adapter {owner!r}" if owner else "the base model"
        raise ValueError(
            f"{key} of {whose} is gone: {key.rpartition('.')[0]} has been replaced by another module since the "
            "adapters came. Replace modules before lora_core.inject_lora."
        )
    return waiting


def add_waiting(model: nn.Module, key: str, owner: str, tensor: Tensor) -> None:
    """Register a tensor of a new owner beside the one at path ``key``, without putting it in place."""
    module, leaf = _module_of(model, key)
    _slots(module, leaf)[_waiting_name(leaf, owner)] = _frozen(tensor)


def remove_waiting(model: nn.Module, key: str, owner: str) -> None:
    """Forget a tensor that waits."""
    module, leaf = _module_of(model, key)
    _slots(module, leaf).pop(_waiting_name(leaf, owner), None)


def put_in_place(model: nn.Module, places: dict[str, str], key: str, owner: str) -> Tensor:
    """Let the owner's tensor take its place, and the one that is there wait, and return the former.

    Raises:
        ValueError: it is gone, as `whole_tensor` says.
    """
    tensor = whole_tensor(model, places, key, owner)
    if places[key] != owner:
        module, leaf = _module_of(model, key)
        slots = _slots(module, leaf)
        slots[_waiting_name(leaf, places[key])] = slots[leaf]
        del slots[_waiting_name(leaf, owner)]
        slots[leaf] = tensor
        places[key] = owner
    return tensor


def _module_of(model: nn.Module, key: str) -> tuple[nn.Module, str]:
    parent, _, leaf = key.rpartition(".")
    return model.get_submodule(parent), leaf


def _slots(module: nn.Module, leaf: str) -> dict[str, Any]:
    """Where the module has its parameters, or its buffers, whichever ``leaf`` is of."""
    return module._parameters if leaf in module._parameters else module._buffers


def _waiting_name(leaf: str, owner: str) -> str:
    return f"{_WAITING}{leaf}_of_{owner}" if owner else f"{_WAITING}{leaf}"


def _frozen(tensor: Tensor) -> Tensor:
    return tensor.requires_grad_(False) if isinstance(tensor, nn.Parameter) else tensor


class DtypeBridge:
    """Two hooks on one module: its inputs are cast to its parameters' dtype and its outputs back again."""

    def __init__(self, outside: torch.dtype) -> None:
        self.outside = outside

    def widen(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Forward pre-hook."""
        self.outside = next((value.dtype for value in _floating((args, kwargs))), self.outside)
        return in_own_dtype(module, args), in_own_dtype(module, kwargs)

    def narrow(self, module: nn.Module, args: tuple, output: object) -> object:
        """Forward hook."""
        return _cast(output, self.outside)


def in_own_dtype(module: nn.Module, arguments: Any) -> Any:
    """Arguments of ``module``, the floating tensors in the dtype of its parameters."""
    return _cast(arguments, next(module.parameters(recurse=False)).dtype)


def half_modules(model: nn.Module, saved: Iterable[str], base: Mapping[str, Tensor]) -> list[str]:
    """Paths of the modules in half precision of which an adapter owns every parameter: they are trained in fp32.

    ``base`` holds the base model's own tensors by path. A module that gives an adapter its bias alone is not among
    them: its weight and bias must keep one dtype.
    """
    keys = set(saved)
    found = []
    for path in dict.fromkeys(key.rpartition(".")[0] for key in saved):
        module = model.get_submodule(path)
        own = [name for name, _ in module.named_parameters(prefix=path, recurse=False) if not is_waiting(name)]
        if own and keys.issuperset(own) and all(base[name].dtype in HALF for name in own):
            found.append(path)
    return found


def bridge(module: nn.Module, outside: torch.dtype) -> tuple[RemovableHandle, RemovableHandle]:
    """Attach a DtypeBridge to ``module``, whose neighbours are ``outside``; the handles take it off again."""
    hooks = DtypeBridge(outside)
    return module.register_forward_pre_hook(hooks.widen, with_kwargs=True), module.register_forward_hook(hooks.narrow)


def _floating(value: Any) -> Iterator[Tensor]:
    """The floating tensors in nested tuples, lists and dicts."""
    if _is_floating(value):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _floating(part)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """The same with its floating tensors, in nested tuples, lists and dicts, in ``dtype``."""
    if _is_floating(value):
        return value.to(dtype)
    if type(value) in (tuple, list):
        return type(value)(_cast(part, dtype) for part in value)
    if isinstance(value, dict):
        parts = {key: _cast(part, dtype) for key, part in value.items()}
        return parts if type(value) is dict else type(value)(**parts)  # a ModelOutput of transformers
    return value


def _is_floating(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.is_floating_point()
