"""Adapters on disk, in PEFT's format: adapter_config.json and adapter_model.safetensors.

A key is `base_model.model.` + the path in the model + the tensor's name, without the adapter's name:
`base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight`. Saved modules and biases stand under
their own path, except that the bias of an adapted layer has `base_layer.` before it, as PEFT's wrapper has.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora_core.adapters import delete_adapter, hosts, record_of, set_adapter, state_of
from lora_core.config import CONFIG_FILE, TASK_TYPES, LoRAConfig
from lora_core.inject import add_adapter

WEIGHTS_FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def lora_state_dict(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """The tensors of one adapter under PEFT's keys; they share memory with the model's."""
    return {_file_key(model, adapter_name, key): tensor for key, tensor in adapter_tensors(model, adapter_name).items()}


def adapter_tensors(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """The tensors of one adapter under their paths in the model, the adapter's name left out."""
    record = record_of(model, adapter_name)
    tensors = {}
    for path, host in hosts(model):
        if adapter_name in host.lora:
            for name, parameter in host.lora[adapter_name].named_parameters():
                tensors[f"{path}.{name}"] = parameter
    return tensors | record.saved


def save_adapter(model: nn.Module, folder: str | Path, adapter_name: str = "default") -> Path:
    """Write one adapter into ``folder``, in PEFT's format, and return the folder.

    Files of an earlier save are replaced one by one, each atomically, weights first.

    Raises:
        ValueError: no such adapter, or a tensor holds NaN or infinity (named).
    """
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in lora_state_dict(model, adapter_name).items()}
    _refuse_non_finite(tensors, "The adapter was not saved")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = record_of(model, adapter_name).config
    head = config.modules_to_save
    task_type = TASK_TYPES.get(getattr(model, "task", "")) if head else None  # PEFT adds a head by itself for a task
    config = dataclasses.replace(config, inference_mode=True, task_type=config.task_type or task_type,
                                 target_modules=_portable_targets(config, model, adapter_name))  # fmt: skip
    weights = folder / f".{WEIGHTS_FILE}.{os.getpid()}"
    try:
        save_file(tensors, weights, metadata={"format": "pt"})
        os.replace(weights, folder / WEIGHTS_FILE)
    finally:
        weights.unlink(missing_ok=True)
    config.save(folder)
    return folder


def load_adapter(
    model: nn.Module, folder: str | Path, adapter_name: str = "default", *, trainable: bool = True, active: bool = True,
    adapter_dtype: torch.dtype | None = None,
) -> nn.Module:  # fmt: skip
    """Add the adapter saved in ``folder`` to ``model``, in place, and return the model. Reads local files only.

    Args:
        adapter_name: its name in this model.
        trainable: whether it can be trained further; the base is frozen either way.
        active: whether it acts from now on, alone.
        adapter_dtype: as for ``inject_lora``.

    Raises:
        ValueError: a file is missing or damaged, keys are missing, unknown or misshapen (all listed), or a tensor
            holds NaN or infinity. The model is unchanged then.
    """
    folder = Path(folder)
    config = LoRAConfig.load(folder)
    tensors = _read(folder / WEIGHTS_FILE)
    config = dataclasses.replace(config, modules_to_save=_saved_modules(model, config.modules_to_save or (), tensors))
    fresh = not hasattr(model, "lora_state")
    was_active = () if fresh else state_of(model).active
    was_trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    with torch.random.fork_rng(devices=[]):  # the random start is overwritten and must not move the user's generator
        add_adapter(model, adapter_name, config=_unset_start(config), trainable=trainable, adapter_dtype=adapter_dtype)
    try:
        _fill(model, adapter_name, tensors, folder / WEIGHTS_FILE)
    except ValueError:
        delete_adapter(model, adapter_name)
        if fresh:
            del model.lora_state
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(was_trainable[name])
        raise
    record = record_of(model, adapter_name)
    record.config = dataclasses.replace(record.config, init_lora_weights=config.init_lora_weights)
    set_adapter(model, adapter_name if active else was_active)
    return model


def _fill(model: nn.Module, adapter_name: str, tensors: dict[str, Tensor], file: Path) -> None:
    """Copy the file's tensors into the adapter, or raise with every difference listed."""
    expected = lora_state_dict(model, adapter_name)
    copies = (".modules_to_save.", ".original_module.")  # PEFT's bias="all" also writes its own copies of the head
    tensors = {key: tensor for key, tensor in tensors.items() if not any(part in key for part in copies)}
    problems = [f"  missing: {key} {tuple(tensor.shape)}" for key, tensor in expected.items() if key not in tensors]
    problems += [f"  unknown: {key} {tuple(tensor.shape)}" for key, tensor in tensors.items() if key not in expected]
    problems += [
        f"  misshapen: {key} is {tuple(tensors[key].shape)}, the model needs {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in tensors and tensors[key].shape != tensor.shape
    ]
    problems += [
        f"  of the wrong kind: {key} is {tensors[key].dtype}, the model needs {tensor.dtype}"
        for key, tensor in expected.items()
        if key in tensors and tensors[key].dtype not in (*_FLOATS, tensor.dtype)
    ]
    if problems:
        shown = "\n".join(problems[:20] + ([f"  and {len(problems) - 20} more"] if len(problems) > 20 else []))
        raise ValueError(
            f"{file} does not fit this {type(model).__name__}:\n{shown}\n"
            "Load it into the model that it was trained on, with the same task and number of labels."
        )
    _refuse_non_finite(tensors, f"{file} was not loaded")
    with torch.no_grad():
        for key, tensor in expected.items():
            tensor.copy_(tensors[key])


def _file_key(model: nn.Module, adapter_name: str, key: str) -> str:
    path, _, leaf = key.rpartition(".")
    adapted_bias = leaf == "bias" and path in record_of(model, adapter_name).targets
    return f"{_PREFIX}{path}.base_layer.bias" if adapted_bias else _PREFIX + key


def _portable_targets(config: LoRAConfig, model: nn.Module, adapter_name: str) -> str | tuple[str, ...]:
    """Targets in words that PEFT has too: presets and the default are written out as suffixes."""
    paths = record_of(model, adapter_name).targets
    return tuple(sorted(paths)) if _is_preset(config.target_modules) else config.target_modules


def _is_preset(targets: str | tuple[str, ...] | None) -> bool:
    from lora_core.targets import PRESETS

    return targets is None or targets in PRESETS or (isinstance(targets, tuple) and len(targets) == 1 and targets[0] in PRESETS)


def _saved_modules(model: nn.Module, names: Sequence[str], tensors: dict[str, Tensor]) -> tuple[str, ...]:
    """A file's modules_to_save in this model's terms.

    PEFT adds "classifier" and "score" for a task whether the model has both or not, and its names match the end
    of a path's text, so "classifier" also takes DistilBERT's pre_classifier. A name without a module is dropped
    here; had the file tensors under it, they are reported as unknown.
    """
    paths = [path for path, _ in model.named_modules() if path]
    found = []
    for name in names:
        ends = [path for path in paths if path.endswith(name)]
        exact = [path for path in ends if path == name or path.endswith(f".{name}")]
        found += [name] if exact else []
        found += [p for p in ends if p not in exact and any(key.startswith(f"{_PREFIX}{p}.") for key in tensors)]
    return tuple(dict.fromkeys(found))


def _unset_start(config: LoRAConfig) -> LoRAConfig:
    """The same adapter with the cheapest start, since the file's weights replace it."""
    return dataclasses.replace(config, init_lora_weights="gaussian")


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        remedy = " Convert adapter_model.bin with PEFT: pickles are not read here." if file.with_suffix(".bin").is_file() else ""
        raise ValueError(f"{file} does not exist.{remedy}")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}). Copy or save it again.") from error


def _refuse_non_finite(tensors: dict[str, Tensor], consequence: str) -> None:
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{consequence}: {key} holds NaN or infinity.")
