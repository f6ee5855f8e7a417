"""Adapters on disk, in PEFT's format: adapter_config.json and adapter_model.safetensors.

A key is `base_model.model.` + the path in the model + the tensor's name, without the adapter's name:
`base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight`. Saved modules and biases stand under
their own path, except that the bias of an adapted layer has `base_layer.` before it, as PEFT's wrapper has. Every
adapter is written in a plain form that needs only the untouched base, whatever it started from.

In reading order: writing an adapter; reading one; PEFT's keys; the config as the file needs it; the names that
transformers 5 gave to vision transformers (formats/vit_names.py).
"""

import dataclasses
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora_core.adapters import delete_adapter, hosts, record_of, set_adapter, state_of, whole_tensors
from lora_core.config import CONFIG_FILE, TASK_TYPES, LoRAConfig
from lora_core.files import make_folder, regular_file, replacing
from lora_core.formats.pickled import read_pickle
from lora_core.formats.vit_names import (
    DINOV2_MARK,
    NEW_MARK,
    OLD_MARK,
    any_path,
    to_dinov2_name,
    to_new_name,
    to_old_name,
)
from lora_core.inject import add_exactly, eject_lora
from lora_core.layers import model_modules, unwrapped
from lora_core.patterns import Pattern, ends_of
from lora_core.targets import (
    attention_outputs,
    host_class,
    preset_of,
    without_idle_patterns,
)
from lora_core.updates import ThirdsUpdate

logger = logging.getLogger("lora_core")

WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_WEIGHTS_FILE = "adapter_model.bin"

PREFIX = "base_model.model."
"""Start of every key: the model inside PEFT's two wrappers."""

SHOWN = 10
"""Tensors that a message names."""

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
    tensors = {}
    for path, host in hosts(model):
        if adapter_name in host.lora:
            tensors |= {
                f"{path}.{name}": tensor for name, tensor in host.update_of(adapter_name).file_tensors().items()
            }
    return tensors | whole_tensors(model, adapter_name)


def save_adapter(model: nn.Module, folder: str | Path, adapter_name: str = "default") -> Path:
    """Write one adapter into ``folder``, in PEFT's format, and return the folder.

    Its config names the base model if that is known: by the adapter's own config, or by what the model was loaded from.
    Both files are whole before they replace those of an earlier save.

    Raises:
        ValueError: no such adapter, or a tensor holds NaN or infinity (named).
    """
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in lora_state_dict(model, adapter_name).items()}
    tied = Counter(tensor.data_ptr() for tensor in tensors.values())
    tensors = {key: tensor.clone() if tied[tensor.data_ptr()] > 1 else tensor for key, tensor in tensors.items()}
    refuse_non_finite(tensors, "The adapter was not saved")
    folder = make_folder(folder)
    config = record_of(model, adapter_name).config
    head = config.modules_to_save
    task_type = TASK_TYPES.get(getattr(model, "task", "")) if head else None  # PEFT adds a head by itself for a task
    base = config.base_model_name_or_path or getattr(model, "name_or_path", None) or None  # as transformers has it too
    config = dataclasses.replace(
        file_config(model, adapter_name),
        inference_mode=True,
        task_type=config.task_type or task_type,
        base_model_name_or_path=base,
    )
    tensors, config = for_transformers(model, tensors, config)
    size = sum(tensor.nbytes for tensor in tensors.values())
    with replacing(folder / CONFIG_FILE) as new_config, replacing(folder / WEIGHTS_FILE, size) as new_weights:
        new_config.write_text(config.to_json(), encoding="utf-8")
        save_file(tensors, new_weights, metadata={"format": "pt"})
    return folder


def load_adapter(
    model: nn.Module,
    folder: str | Path,
    adapter_name: str = "default",
    *,
    trainable: bool = True,
    active: bool = True,
    adapter_dtype: torch.dtype | None = None,
) -> nn.Module:
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
    folder, model_given, model = Path(folder), model, unwrapped(model)
    config, tensors = read_adapter(model, folder)
    _refuse_head_of_another_task(model, config, folder)
    fresh = not hasattr(model, "lora_state")
    was_active = () if fresh else state_of(model).active
    with torch.random.fork_rng(devices=[]):  # the random start is overwritten and must not move the user's generator
        try:
            add_exactly(model, adapter_name, _unset_start(config), adapter_dtype=adapter_dtype, trainable=trainable)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
    try:
        _fill(model, adapter_name, tensors, _weights_file(folder))
    except ValueError:
        if fresh:
            eject_lora(model)
        else:
            delete_adapter(model, adapter_name)
        raise
    record = record_of(model, adapter_name)
    record.config = dataclasses.replace(record.config, init_lora_weights=config.init_lora_weights)
    at_random = [name for name in getattr(model, "fresh_parameters", ()) if name not in record.saved]
    if at_random:
        logger.warning(
            "%s does not hold %s, which the model was given at random: its outputs are not those that the adapter was "
            "trained for. Load the model from a checkpoint that has them, or train and save them with the adapter.",
            folder,
            ", ".join(at_random),
        )
    set_adapter(model, adapter_name if active else was_active)
    return model_given


def read_adapter(model: nn.Module, folder: Path) -> tuple[LoRAConfig, dict[str, Tensor]]:
    """An adapter's config and tensors from disk, under this model's names and PEFT's keys.

    Raises:
        ValueError: a file is missing or damaged, or holds an adapter of another kind.
    """
    config, tensors = LoRAConfig.load(folder), read_weights(folder)
    modules = dict(model_modules(model))
    tensors, config = in_names_of(modules, tensors, config)
    names = saved_modules(modules, config.modules_to_save or _heads_of_task(modules, config, tensors), tensors)
    names = (*names, *_whole_embeddings(model, names, tensors))
    tensors = {key: tensor * 2 if counts_twice(key) else tensor for key, tensor in tensors.items()}
    try:
        config, layers = without_idle_patterns(model, modules, dataclasses.replace(config, modules_to_save=names))
        _refuse_excess({path: modules[path] for path in layers}, model, config, tensors)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE}: {error}") from error
    return config, tensors


def _refuse_head_of_another_task(model: nn.Module, config: LoRAConfig, folder: Path) -> None:
    """A head's rows mean something else to another task, even where they are as many.

    Raises:
        ValueError: the adapter brings one.
    """
    task = getattr(model, "task", None)
    trained_for = next((name for name, short in TASK_TYPES.items() if short == config.task_type), None)
    if config.modules_to_save and trained_for is not None and task in TASK_TYPES and task != trained_for:
        raise ValueError(
            f"{folder} holds a head for {trained_for}, but the model is for {task}. Load it into a model of its task: "
            f"load_pretrained(..., {trained_for!r}, labels=...)."
        )


def _refuse_excess(
    layers: Mapping[str, nn.Module], model: nn.Module, config: LoRAConfig, tensors: Mapping[str, Tensor]
) -> None:
    """Check the ranks of a file's config for its ``layers`` before memory is taken for them: no adapter is larger than
    its model, or than the file that holds it.

    Raises:
        ValueError: this one is.
    """
    held = sum(tensor.numel() for tensor in tensors.values())
    wanted = 0
    for path, layer in layers.items():
        host = host_class(layer)
        weight = None if host is None else getattr(layer, host.weight_name)
        r = config.rank_of(path)
        wanted += r * sum(weight.shape[:2]) if weight is not None else 0
        if wanted > held and wanted > sum(parameter.numel() for parameter in model.parameters()):
            raise ValueError(
                f"{path} has the rank {r}, with which the adapter would have {wanted:,} numbers or more, but "
                f"{WEIGHTS_FILE} holds {held:,}: r or rank_pattern is wrong. Copy or save the adapter again."
            )


def _heads_of_task(paths: Iterable[str], config: LoRAConfig, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The heads that an adapter holds without saying so.

    PEFT before 0.11 saved "classifier" and "score" for these two tasks and left modules_to_save empty.
    """
    if config.task_type not in ("SEQ_CLS", "TOKEN_CLS"):
        return ()
    ends = [path for path in paths if path.endswith(("classifier", "score"))]
    return tuple(path for path in ends if any(key.startswith(f"{PREFIX}{path}.") for key in tensors))


def _whole_embeddings(model: nn.Module, names: Sequence[str], tensors: Mapping[str, Tensor]) -> list[str]:
    """Embeddings, and layers that turn vectors into words again, that a file holds whole without saying so.

    PEFT adds them where a vocabulary was extended before the training.
    """
    words = getattr(model, "get_output_embeddings", lambda: None)()
    saved = Pattern(tuple(names))
    return [
        path
        for path, module in model_modules(model)
        if (isinstance(module, nn.Embedding) or (words is not None and module is words))
        and f"{PREFIX}{path}.weight" in tensors
        and not saved.contains(path)
    ]


def _weights_file(folder: Path) -> Path:
    """The file of ``folder`` that holds its tensors: the pickle where there is nothing else."""
    pickled = folder / PICKLED_WEIGHTS_FILE
    return pickled if pickled.exists() and not (folder / WEIGHTS_FILE).exists() else folder / WEIGHTS_FILE


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of adapter_model.safetensors in ``folder``, or of the pickle that older versions of PEFT wrote; less
    the copies of the head of PEFT's bias="all"."""
    file = _weights_file(folder)
    if not file.exists():
        raise ValueError(
            f"{file} does not exist, nor does {PICKLED_WEIGHTS_FILE} there. Copy or save the adapter again."
        )
    try:
        tensors = (load_file if file.name == WEIGHTS_FILE else read_pickle)(regular_file(file))
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}). Copy or save it again.") from error
    copies = (".modules_to_save.", ".original_module.")
    return {key: tensor for key, tensor in tensors.items() if not any(part in key for part in copies)}


def refuse_non_finite(tensors: Mapping[str, Tensor], consequence: str) -> None:
    """Check that tensors hold numbers only.

    Raises:
        ValueError: some hold NaN or infinity; the message is ``consequence`` and their names.
    """
    found = []
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
        if not math.isfinite(total) and not torch.isfinite(tensor).all():  # a sum is cheaper, but can be too large
            found.append(key)
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        verb = "holds" if len(found) == 1 else "hold"
        raise ValueError(f"{consequence}: {', '.join(found[:SHOWN])}{more} {verb} NaN or infinity.")


def _fill(model: nn.Module, adapter_name: str, tensors: dict[str, Tensor], file: Path) -> None:
    """Copy the file's tensors into the adapter.

    Raises:
        ValueError: they do not fit; every difference is listed.
    """
    own = whole_tensors(model, adapter_name)
    for path, host in hosts(model):
        if adapter_name in host.lora:
            own |= {f"{path}.{name}": tensor for name, tensor in host.update_of(adapter_name).named_tensors().items()}
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
    """``config`` with the cheapest start that an adapter's weights from a file can replace.

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


def saved_modules(paths: Iterable[str], names: Sequence[str], tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """A file's modules_to_save in the terms of a model with modules at ``paths``.

    PEFT adds "classifier" and "score" for a task whether the model has both or not, and its names match the end
    of a path's text, so "classifier" also takes DistilBERT's pre_classifier. A name without a module is dropped
    here; had the file tensors under it, they are reported as unknown.
    """
    found = []
    for name in names:
        ends = [path for path in paths if path and path.endswith(name)]
        exact = [path for path in ends if Pattern((name,)).matches(path)]
        found += [name] if exact else []
        for path in ends:
            if path not in exact and any(key.startswith(f"{PREFIX}{path}.") for key in tensors):
                found.append(path)
    return tuple(dict.fromkeys(found))


def file_config(model: nn.Module, adapter_name: str) -> LoRAConfig:
    """The adapter's config as its file needs it: targets that PEFT knows, and the ranks and scalings that it has now.

    These differ from the config's where the file holds a plain adapter in place of another form: PiSSA and OLoRA
    have twice the rank, n thirds of a fused layer n times.
    """
    record = record_of(model, adapter_name)
    config, outputs = record.config, set(attention_outputs(model).values())
    updates = {path: host.update_of(adapter_name) for path, host in hosts(model) if path in record.targets}
    sizes = {}
    for path, update in updates.items():
        if path not in outputs:
            rank = len(update.file_tensors()[update.factor_names[0]])
            sizes[path] = rank, float(update.scaling)
    if any((config.rank_of(path), config.scaling_of(path)) != size for path, size in sizes.items()):
        config = explicit_config(config, sizes)
    paths = [path for path, _ in model_modules(model)]
    if any(isinstance(update, ThirdsUpdate) for update in updates.values()):
        config = explicit_targets(config, sizes, paths)
    elif preset_of(config.target_modules, paths) is not None:
        config = dataclasses.replace(config, target_modules=_only(sizes, paths))
    if config.initialisation in ("eva", "olora") or config.initialisation.startswith("pissa"):
        # The file holds a plain adapter of the untouched base.
        config = dataclasses.replace(config, init_lora_weights=True)
    return config


def explicit_config(config: LoRAConfig, sizes: Mapping[str, tuple[int, float]]) -> LoRAConfig:
    """``config`` with the ranks and scalings of ``sizes``, by path; the commonest of each needs no pattern."""
    ranks = {path: r for path, (r, _) in sizes.items()}
    alphas = {path: _tidy(scaling * (math.sqrt(r) if config.use_rslora else r)) for path, (r, scaling) in sizes.items()}
    r, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    # A pattern also matches longer paths of the same end, here and in PEFT; ^ keeps it from them.
    keys = {path: f"^{path}" if any(other.endswith(f".{path}") for other in sizes) else path for path in sizes}
    return dataclasses.replace(
        config,
        r=int(r),
        lora_alpha=alpha,
        rank_pattern={keys[path]: value for path, value in ranks.items() if value != r},
        alpha_pattern={keys[path]: value for path, value in alphas.items() if value != alpha},
    )


def _tidy(alpha: float) -> float:
    """A whole number where only rounding keeps it from being one, as PEFT writes it."""
    return round(alpha) if abs(alpha - round(alpha)) < 1e-9 else alpha


def explicit_targets(config: LoRAConfig, paths: Iterable[str], all_paths: Iterable[str]) -> LoRAConfig:
    """``config`` that adapts just the layers at ``paths``, of a model with modules at ``all_paths``."""
    return dataclasses.replace(
        config,
        target_modules=_only(paths, all_paths),
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
    )


def _only(paths: Iterable[str], all_paths: Iterable[str]) -> tuple[str, ...] | str:
    """target_modules that mean these layers and no others: their paths; or a pattern, where one of them is the end of
    another module's path, which its name would mean, too."""
    wanted = set(paths)
    others = {end for path in all_paths if path not in wanted for end in ends_of(path)}
    return "|".join(map(re.escape, sorted(wanted))) if wanted & others else tuple(sorted(wanted))


def in_names_of(
    model_paths: Iterable[str], tensors: Mapping[str, Tensor], config: LoRAConfig
) -> tuple[dict[str, Tensor], LoRAConfig]:
    """An adapter file's tensors and config under the model's names, where transformers 5 renamed one of the two."""
    paths = list(model_paths)
    keys = [key.removeprefix(PREFIX) for key in tensors]
    if any_path(NEW_MARK, paths) and any_path(OLD_MARK, keys):
        rename = to_dinov2_name if any_path(DINOV2_MARK, paths) else to_new_name
    elif any_path(OLD_MARK, paths) and (any_path(NEW_MARK, keys) and not any_path(OLD_MARK, keys)):
        rename = to_old_name
    else:
        return dict(tensors), config
    return _renamed(tensors, config, rename)


def for_transformers(
    model: nn.Module, tensors: Mapping[str, Tensor], config: LoRAConfig
) -> tuple[dict[str, Tensor], LoRAConfig]:
    """An adapter's tensors and config as PEFT reads them beside transformers 5.

    They are under other names than the model's only if it is a ViT of this library, which keeps those of checkpoints.
    An adapter of DINOv2's gated layers keeps them, too: transformers 5 has two layers in the place of one there.
    """
    renames = (getattr(module, "name_in_transformers_5", None) for module in model.modules())
    rename = next((rename for rename in renames if rename is not None), None)
    if rename is not None and any(".mlp.weights_in." in key for key in tensors):
        logger.warning(
            "the adapter holds mlp.weights_in, which transformers 5 splits in two: it is saved under the checkpoint's "
            "own names, for this library"
        )
    elif rename is not None:
        return _renamed(tensors, config, rename)
    return dict(tensors), config


def _renamed(
    tensors: Mapping[str, Tensor], config: LoRAConfig, rename: Callable[[str], str]
) -> tuple[dict[str, Tensor], LoRAConfig]:
    keys = [key.removeprefix(PREFIX) for key in tensors]
    adapted = [key.partition(".lora_")[0] for key in keys if ".lora_" in key]
    sizes = {rename(path): (config.rank_of(path), config.scaling_of(path)) for path in adapted}
    renamed = {PREFIX + rename(key): tensor for key, tensor in zip(keys, tensors.values(), strict=True)}
    return renamed, explicit_targets(explicit_config(config, sizes), sizes, sizes)
