"""What PEFT's adapter files say, in this library's terms and back: keys, ranks and scalings, names of targets."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lora_core.adapters import hosts, record_of
from lora_core.config import LoRAConfig
from lora_core.fused_qkv import ThirdsAdapter
from lora_core.layers import model_modules
from lora_core.targets import attention_outputs, preset_of
from lora_core.updates import Adapter

WEIGHTS_FILE = "adapter_model.safetensors"

PREFIX = "base_model.model."


def file_keys(model: nn.Module, adapter_name: str, keys: Iterable[str]) -> dict[str, str]:
    """PEFT's keys of tensors by their paths in the model, the adapter's name left out.

    PEFT wraps an adapted layer, so its own bias and, of an nn.MultiheadAttention, its output projection lie one
    `base_layer.` deeper.
    """
    targets = set(record_of(model, adapter_name).targets)
    outputs = {output: f"{path}.base_layer.out_proj" for path, output in attention_outputs(model).items()}
    found = {}
    for key in keys:
        path, _, leaf = key.rpartition(".")
        name = f"{path}.base_layer.bias" if leaf == "bias" and path in targets else key
        wrapped = next((output for output in outputs if output in targets and name.startswith(f"{output}.")), None)
        found[key] = PREFIX + (name if wrapped is None else outputs[wrapped] + name[len(wrapped) :])
    return found


def counts_twice(key: str) -> bool:
    """Whether PEFT acts with twice the update that the tensor at ``key`` stands for.

    PEFT (0.21.2 at least) adds the update of an nn.MultiheadAttention's output projection to its weight twice, so a
    file must hold half of it for the same outputs.
    """
    return ".base_layer.out_proj.lora_B." in key


def file_config(model: nn.Module, adapter_name: str) -> LoRAConfig:
    """The adapter's config as its file needs it: targets that PEFT knows, and the ranks and scalings that it has now.

    These differ from the config's where the file holds a plain adapter in place of another form: PiSSA and OLoRA
    have twice the rank, n thirds of a fused layer n times.
    """
    record = record_of(model, adapter_name)
    config, outputs = record.config, set(attention_outputs(model).values())
    adapters = {path: host.adapter(adapter_name) for path, host in hosts(model) if path in record.targets}
    sizes = {
        path: (_file_rank(adapter), float(adapter.scaling)) for path, adapter in adapters.items() if path not in outputs
    }
    if any((config.rank_of(path), config.scaling_of(path)) != size for path, size in sizes.items()):
        config = explicit_config(config, sizes)
    if any(isinstance(adapter, ThirdsAdapter) for adapter in adapters.values()):
        config = explicit_targets(config, sizes)
    elif preset_of(config.target_modules, [path for path, _ in model_modules(model)]) is not None:
        config = dataclasses.replace(config, target_modules=tuple(sorted(sizes)))
    if config.initialisation in ("eva", "olora") or config.initialisation.startswith("pissa"):
        config = dataclasses.replace(
            config, init_lora_weights=True
        )  # the file holds a plain adapter of the untouched base
    return config


def explicit_config(config: LoRAConfig, sizes: Mapping[str, tuple[int, float]]) -> LoRAConfig:
    """``config`` with the ranks and scalings of ``sizes``, by path; the commonest of each needs no pattern."""
    ranks = {path: r for path, (r, _) in sizes.items()}
    alphas = {path: _tidy(scaling * (math.sqrt(r) if config.use_rslora else r)) for path, (r, scaling) in sizes.items()}
    r, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    # A pattern also matches longer paths of the same end, here and in PEFT; ^ keeps it from them.
    keys = {path: f"^{path}" if any(other.endswith(f".{path}") for other in sizes) else path for path in sizes}
    return dataclasses.replace(
        config, r=int(r), lora_alpha=alpha,
        rank_pattern={keys[path]: value for path, value in ranks.items() if value != r},
        alpha_pattern={keys[path]: value for path, value in alphas.items() if value != alpha})  # fmt: skip


def explicit_targets(config: LoRAConfig, paths: Iterable[str]) -> LoRAConfig:
    """``config`` that adapts just the layers at ``paths``."""
    return dataclasses.replace(config, target_modules=tuple(sorted(paths)), exclude_modules=None,
                               layers_to_transform=None, layers_pattern=None)  # fmt: skip


def saved_modules(model: nn.Module, names: Sequence[str], tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """A file's modules_to_save in this model's terms.

    PEFT adds "classifier" and "score" for a task whether the model has both or not, and its names match the end
    of a path's text, so "classifier" also takes DistilBERT's pre_classifier. A name without a module is dropped
    here; had the file tensors under it, they are reported as unknown.
    """
    paths = [path for path, _ in model_modules(model) if path]
    found = []
    for name in names:
        ends = [path for path in paths if path.endswith(name)]
        exact = [path for path in ends if path == name or path.endswith(f".{name}")]
        found += [name] if exact else []
        found += [p for p in ends if p not in exact and any(key.startswith(f"{PREFIX}{p}.") for key in tensors)]
    return tuple(dict.fromkeys(found))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of adapter_model.safetensors in ``folder``, less the copies of the head of PEFT's bias="all"."""
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        remedy = (
            " Convert adapter_model.bin with PEFT: pickles are not read here."
            if file.with_suffix(".bin").is_file()
            else ""
        )
        raise ValueError(f"{file} does not exist.{remedy}")
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}). Copy or save it again.") from error
    copies = (".modules_to_save.", ".original_module.")
    return {key: tensor for key, tensor in tensors.items() if not any(part in key for part in copies)}


def refuse_non_finite(tensors: Mapping[str, Tensor], consequence: str) -> None:
    """ValueError that names the first tensor with NaN or infinity."""
    for key, tensor in tensors.items():
        suspect = not math.isfinite(tensor.sum(dtype=torch.float64))  # cheaper; a sum can also be too large
        if suspect and not torch.isfinite(tensor).all():
            raise ValueError(f"{consequence}: {key} holds NaN or infinity.")


def _file_rank(adapter: Adapter) -> int:
    return adapter.file_tensors()[adapter.factor_names[0]].shape[0]


def _tidy(alpha: float) -> float:
    """A whole number where only rounding keeps it from being one, as PEFT writes it."""
    return round(alpha) if abs(alpha - round(alpha)) < 1e-9 else alpha
