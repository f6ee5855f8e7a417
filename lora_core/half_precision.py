"""Modules that are trained in fp32 inside a model in half precision, which would round small steps away.

A head, or another module of which an adapter owns every parameter, is held in fp32 then, and two hooks are its bridge
to the model around it: they cast its inputs to its own dtype and its output back.
"""

from collections.abc import Iterable, Mapping
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

HALF = (torch.float16, torch.bfloat16)


class DtypeBridge:
    """Two hooks on one module: its inputs are cast to its parameters' dtype and its output back again."""

    def __init__(self, outside: torch.dtype) -> None:
        self.outside = outside

    def widen(self, module: nn.Module, args: tuple) -> tuple:
        """Forward pre-hook."""
        self.outside = next((arg.dtype for arg in args if _is_floating(arg)), self.outside)
        return in_own_dtype(module, args)

    def narrow(self, module: nn.Module, args: tuple, output: object) -> object:
        """Forward hook."""
        return output.to(self.outside) if _is_floating(output) else output


def in_own_dtype(module: nn.Module, args: tuple) -> tuple:
    """Positional arguments of ``module``, the floating ones in the dtype of its parameters."""
    own = next(module.parameters(recurse=False)).dtype
    return tuple(arg.to(own) if _is_floating(arg) else arg for arg in args)


def half_modules(model: nn.Module, saved: Iterable[str], base: Mapping[str, Tensor]) -> list[str]:
    """Paths of the modules in half precision of which an adapter owns every parameter: they are trained in fp32.

    ``base`` holds the base model's own tensors by path. A module that gives an adapter its bias alone is not among
    them: its weight and bias must keep one dtype.
    """
    keys = set(saved)
    found = []
    for path in dict.fromkeys(key.rpartition(".")[0] for key in saved):
        own = [name for name, _ in model.get_submodule(path).named_parameters(prefix=path, recurse=False)]
        if own and keys.issuperset(own) and all(base[name].dtype in HALF for name in own):
            found.append(path)
    return found


def bridge(module: nn.Module, outside: torch.dtype) -> tuple[RemovableHandle, RemovableHandle]:
    """Attach a DtypeBridge to ``module``, whose neighbours are ``outside``; the handles take it off again."""
    hooks = DtypeBridge(outside)
    return module.register_forward_pre_hook(hooks.widen), module.register_forward_hook(hooks.narrow)


def _is_floating(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.is_floating_point()
