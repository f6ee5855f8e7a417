"""The tensors that a graph is built from: a model's weights in fp32, with its adapters merged or kept apart.

Shapes: r rank; a linear layer maps (..., in) to (..., out).
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lora_core.adapters import exchange_frozen, hosts, record_of, state_of, whole_tensors
from lora_core.export.onnx_file import sha256_of
from lora_core.layers import LoRALayer, LoRALinear, model_modules
from lora_core.models.task_model import TaskModel
from lora_core.updates import LinearUpdate
from lora_core.whole import BASE, is_waiting


@dataclass(frozen=True)
class Parameters:
    """What `Graph` reads weights from."""

    tensors: Mapping[str, np.ndarray]
    """The model's parameters and buffers in fp32, by their path."""
    factors: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """A (in, r) and B (r, out), scaling included, of the layers whose update is computed beside them, by path."""
    settable: frozenset[str] = frozenset()
    """Paths of the tensors that an adapter may replace when the file is run."""


def merged_parameters(model: TaskModel) -> Parameters:
    """The weights of ``model`` as it acts now, updates merged in fp32 whatever its dtype; the model is not changed."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    tensors = {path: tensor.detach() for path, tensor in named if not is_waiting(path)}
    for path, module in model_modules(model):
        if isinstance(module, LoRALayer):
            for name in [name for name in tensors if name.startswith(f"{path}.")]:
                del tensors[name]
            tensors |= {f"{path}.{name}": tensor for name, tensor in _merged(path, module).items()}
    return Parameters({path: _numpy(tensor) for path, tensor in tensors.items()})


def base_parameters(model: TaskModel) -> Parameters:
    """The base's own weights, with an update of zero beside every layer that some adapter of ``model`` adapts."""
    paths = _adapted(model, tuple(state_of(model).adapters))
    tensors = _base_tensors(model)
    factors = {}
    for path in paths:
        layer = model.get_submodule(path)
        assert isinstance(layer, LoRALinear)
        factors[path] = (np.zeros((layer.in_features, 1), np.float32), np.zeros((1, layer.out_features), np.float32))
    return Parameters(tensors, factors, _settable(model, tuple(state_of(model).adapters)))


def adapter_parameters(model: TaskModel, adapter_name: str) -> Parameters:
    """What one adapter of ``model`` gives a base: its updates, and the tensors it owns in place of the base's."""
    tensors = _base_tensors(model) | {
        path: _numpy(tensor) for path, tensor in whole_tensors(model, adapter_name).items()
    }
    factors = {}
    for path in _adapted(model, (adapter_name,)):
        host = model.get_submodule(path)
        assert isinstance(host, LoRALinear)
        adapter = host.update_of(adapter_name)
        assert isinstance(adapter, LinearUpdate)
        a, b = adapter.factors()
        scaling = np.float32(adapter.scaling)
        factors[path] = (_numpy(a).T, _numpy(b).T * scaling)
        if adapter.lora_B.bias is not None:
            added = _numpy(adapter.lora_B.bias) * scaling
            tensors[f"{path}.bias"] = tensors.get(f"{path}.bias", np.float32(0)) + added
    return Parameters(tensors, factors, _settable(model, (adapter_name,)))


def base_sha256(model: TaskModel) -> str:
    """Digest of all that the adapters share; the head belongs to each adapter."""
    return sha256_of({path: tensor for path, tensor in _base_tensors(model).items() if not model.in_head(path)})


def _merged(path: str, host: LoRALayer) -> dict[str, Tensor]:
    """The host's own parameters with what acts on it inside, in fp32."""
    if host.row_adapters is not None:
        raise ValueError(f"{path} is inside lora_core.mixed_batch, which has no single set of weights; export outside.")
    wide = copy.deepcopy(host).float()
    if wide.merged_adapters:
        exchange_frozen(wide)
    names = wide.merged_adapters or wide.active_adapters
    try:
        merged = wide.merged_parameters(names)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for name, tensor in merged.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}.{name} holds NaN or infinity after merging {list(names)}; nothing was exported.")
    return merged


def _base_tensors(model: TaskModel) -> dict[str, np.ndarray]:
    """Every parameter and buffer of the base model, the adapters' own left out."""
    layers = dict(hosts(model))
    tensors = {path: _numpy(tensor) for path, tensor in whole_tensors(model, BASE).items()}
    for path, module in model_modules(model):
        for name, parameter in module.named_parameters(path, recurse=False):
            leaf = name.rpartition(".")[2]
            frozen = layers[path].frozen.get(leaf, parameter) if path in layers else parameter
            if name not in tensors and not is_waiting(name):
                tensors[name] = _numpy(frozen)
        for name, buffer in module.named_buffers(path, recurse=False):
            if name not in tensors and not is_waiting(name):
                tensors[name] = _numpy(buffer)
    return tensors


def _adapted(model: TaskModel, adapter_names: tuple[str, ...]) -> list[str]:
    """Paths of the layers that the named adapters adapt.

    Raises:
        ValueError: an adapter is of a kind that cannot stay apart.
    """
    paths = []
    for path, host in hosts(model):
        for name in adapter_names:
            if name not in host.lora:
                continue
            adapter = host.update_of(name)
            if not isinstance(host, LoRALinear) or not isinstance(adapter, LinearUpdate):
                raise ValueError(
                    f"Adapter {name!r} adapts {path}, a {host.original_class.__name__}; only updates of linear layers "
                    "can be switched in an ONNX base. Export it merged, with export_onnx."
                )
            if adapter.lora_magnitude_vector is not None:
                raise ValueError(
                    f"Adapter {name!r} uses DoRA, which rescales the whole of {path}; only plain updates can be "
                    "switched in an ONNX base. Export it merged, with export_onnx."
                )
            if path not in paths:
                paths.append(path)
    return paths


def _settable(model: TaskModel, adapter_names: tuple[str, ...]) -> frozenset[str]:
    """Paths that the adapters own in full, biases that they move, and the head."""
    owned = {path for name in adapter_names for path in record_of(model, name).saved}
    for path, host in hosts(model):
        for name in adapter_names:
            if name in host.lora and host.update_of(name).bias is not None:
                owned.add(f"{path}.bias")
    head = {path for path in model.state_dict() if model.in_head(path)}
    return frozenset(owned | {path for path in head if ".lora." not in path and not is_waiting(path)})


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float32).numpy()
