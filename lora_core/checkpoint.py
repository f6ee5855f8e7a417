"""Adapters on disk, in PEFT's format: adapter_config.json and adapter_model.safetensors.

A key is `base_model.model.` + the path in the model + the tensor's name, without the adapter's name:
`base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight`. Saved modules and biases stand under
their own path, except that the bias of an adapted layer has `base_layer.` before it, as PEFT's wrapper has. Every
adapter is written in a plain form that needs only the untouched base, whatever it started from.
"""

import dataclasses
import logging
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_core.adapters import delete_adapter, hosts, record_of, set_adapter, state_of
from lora_core.config import TASK_TYPES, LoRAConfig
from lora_core.file_format import (
    WEIGHTS_FILE,
    counts_twice,
    file_config,
    file_keys,
    read_weights,
    refuse_non_finite,
    saved_modules,
)
from lora_core.inject import add_exactly, eject_lora
from lora_core.layers import model_modules
from lora_core.targets import without_idle_patterns
from lora_core.vit_names import for_transformers, in_names_of

logger = logging.getLogger("lora_core")

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def lora_state_dict(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """The tensors of one adapter under PEFT's keys, in the form that is saved.

    They share memory with the model's, except where the saved form is another: started by PiSSA or OLoRA, on thirds
    of a fused layer, or on an nn.MultiheadAttention.
    """
    tensors = adapter_tensors(model, adapter_name)
    keys = file_keys(model, adapter_name, tensors)
    return {keys[key]: tensor / 2 if counts_twice(keys[key]) else tensor for key, tensor in tensors.items()}


def adapter_tensors(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """The tensors of ``lora_state_dict`` under their paths in the model, the adapter's name left out."""
    record = record_of(model, adapter_name)
    tensors = {}
    for path, host in hosts(model):
        if adapter_name in host.lora:
            tensors |= {f"{path}.{name}": tensor for name, tensor in host.adapter(adapter_name).file_tensors().items()}
    return tensors | record.saved


def save_adapter(model: nn.Module, folder: str | Path, adapter_name: str = "default") -> Path:
    """Write one adapter into ``folder``, in PEFT's format, and return the folder.

    Files of an earlier save are replaced one by one, each atomically, weights first.

    Raises:
        ValueError: no such adapter, or a tensor holds NaN or infinity (named).
    """
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in lora_state_dict(model, adapter_name).items()}
    refuse_non_finite(tensors, "The adapter was not saved")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = record_of(model, adapter_name).config
    head = config.modules_to_save
    task_type = TASK_TYPES.get(getattr(model, "task", "")) if head else None  # PEFT adds a head by itself for a task
    config = dataclasses.replace(
        file_config(model, adapter_name), inference_mode=True, task_type=config.task_type or task_type
    )
    tensors, config = for_transformers(model, tensors, config)
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
    config, tensors = read_adapter(model, folder)
    fresh = not hasattr(model, "lora_state")
    was_active = () if fresh else state_of(model).active
    with torch.random.fork_rng(devices=[]):  # the random start is overwritten and must not move the user's generator
        add_exactly(model, adapter_name, _unset_start(config), adapter_dtype=adapter_dtype, trainable=trainable)
    try:
        _fill(model, adapter_name, tensors, folder / WEIGHTS_FILE)
    except ValueError:
        if fresh:
            eject_lora(model)
        else:
            delete_adapter(model, adapter_name)
        raise
    record = record_of(model, adapter_name)
    record.config = dataclasses.replace(record.config, init_lora_weights=config.init_lora_weights)
    set_adapter(model, adapter_name if active else was_active)
    return model


def read_adapter(model: nn.Module, folder: Path) -> tuple[LoRAConfig, dict[str, Tensor]]:
    """An adapter's config and tensors from disk, under this model's names and PEFT's keys; errors of load_adapter."""
    config, tensors = LoRAConfig.load(folder), read_weights(folder)
    tensors, config = in_names_of((path for path, _ in model_modules(model)), tensors, config)
    names = saved_modules(model, config.modules_to_save or (), tensors)
    tensors = {key: tensor * 2 if counts_twice(key) else tensor for key, tensor in tensors.items()}
    config = dataclasses.replace(config, modules_to_save=names)
    return without_idle_patterns(model, config), tensors


def _fill(model: nn.Module, adapter_name: str, tensors: dict[str, Tensor], file: Path) -> None:
    """Copy the file's tensors into the adapter, or raise with every difference listed."""
    own = {f"{path}.{name}": tensor for path, host in hosts(model) if adapter_name in host.lora
           for name, tensor in host.adapter(adapter_name).named_tensors().items()}  # fmt: skip
    own |= record_of(model, adapter_name).saved
    expected = {key: own[path] for path, key in file_keys(model, adapter_name, own).items()}
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
    refuse_non_finite(tensors, f"{file} was not loaded")
    with torch.no_grad():
        for key, tensor in expected.items():
            tensor.copy_(tensors[key])


def _unset_start(config: LoRAConfig) -> LoRAConfig:
    """The same adapter with the cheapest start that its weights can replace.

    PEFT's own unconverted PiSSA and OLoRA files are factors beside a base from which the start was taken away, so
    they start the same way here.
    """
    if config.initialisation == "olora" or config.initialisation.startswith("pissa"):
        if config.pissa_iterations is not None:
            logger.warning(
                "The adapter was saved unconverted after pissa_niter, whose start is random: the outputs will differ a "
                "little. Save it in PEFT with path_initial_model_for_weight_conversion for an exact copy."
            )
        return config
    return dataclasses.replace(config, init_lora_weights="gaussian")
