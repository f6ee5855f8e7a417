"""Load a checkpoint in the transformers layout into our modules, and save one that transformers' Auto classes read.

The modules bear the checkpoint's names, so loading is: read, split off the prefix, check, copy.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lora_core.checkpoint import refuse_non_finite
from lora_core.files import make_folder, replacing, write_json
from lora_core.models.encoder import Encoder
from lora_core.models.encoders.build import (
    architecture_name,
    assemble,
    assemble_encoder,
    config_from_dict,
    find_head,
    initialise,
)
from lora_core.models.heads import HEADS
from lora_core.models.labels import (
    ProblemType,
    are_placeholders,
    check_labels,
    labels_of_config,
    problem_type_of_config,
    rows_for,
)
from lora_core.models.pretrained.source import (
    CONFIG_FILE,
    SINGLE_FILE,
    read_config,
    read_tensors,
    resolve,
    split_encoder,
)
from lora_core.models.task_model import Head, TaskModel
from lora_core.patterns import shown

logger = logging.getLogger("lora_core")

HEAD_FIELD = "head"
"""In config.json: the name of a head that is not the family's own."""

SHARED_LAYERS = 100
"""Layers that may be of the same tensors, as ALBERT's are; it has 12 or 24."""

SHOWN = 10
"""Names that an error message lists of each kind."""


def load_pretrained(
    source: str | Path,
    task: str = "encoder",
    labels: Sequence[str] | None = None,
    *,
    checkpoint_labels: Sequence[str] | None = None,
    revision: str | None = None,
    attention_dropout: float | None = None,
    hidden_dropout: float | None = None,
    image_size: int | tuple[int, int] | None = None,
    head: str | None = None,
    fresh_head: bool = False,
    head_follows: bool = False,
    to_be_trained: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Encoder | TaskModel:
    """Load a pretrained model in eval mode, on torch's default device.

    A head that the checkpoint lacks is drawn from `seed`: its parameters are named in `model.fresh_parameters` and in
    a logged warning. BERT's text classifier needs the pooler, ModernBERT's classifiers the head of its pretraining.
    Where the checkpoint has none it is drawn at random and counts as a part of the head, so that it is trained and
    saved with an adapter.

    `model.problem_type` is what config.json says of the head of texts or images that was kept; None for a new head.

    Args:
        source: a folder in the transformers layout, a hub id or `"embedded"`, see `resolve` in source.py.
        task: `encoder`, `token-classification`, `text-classification` or `image-classification`.
        labels: the label names in the order of the logits; None takes those of the checkpoint's head. Where both exist
            they must be the same names, and the head's rows are brought into the order of `labels`. The rows of a
            checkpoint that only says LABEL_0, LABEL_1... are taken as they come, which is logged.
        checkpoint_labels: what the rows of the checkpoint's head stand for, where its config.json does not say.
        revision: of a hub id.
        attention_dropout: replaces the config's probability in all layers.
        hidden_dropout: likewise. Dropout that the config sets for the head alone (`classifier_dropout`,
            `seq_classif_dropout`) stays.
        image_size: the side of the images in pixels, or (height, width), when they are not of the checkpoint's size; a
            vision model's position embeddings are interpolated to it, bicubically.
        head: "default", the family's own, or a name in `lora_core.models.heads.HEADS`; None takes what the checkpoint
            was saved with. A head of another name than the checkpoint's is a new one.
        fresh_head: leave out the checkpoint's head, but not what its pretraining made of it (ModernBERT).
        head_follows: an adapter with a head is loaded next, so nothing is logged about a new one.
        to_be_trained: the head is trained next, so that a new one is nothing to warn of.
        seed: of new parameters.
        dtype: of all parameters, whatever the checkpoint's file has. In half precision a model takes half the memory
            and is for inference, or the frozen base of adapters that `lora_core.inject_lora` keeps in float32.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: the checkpoint is damaged, is of a family that is not implemented, does not have exactly the
            encoder's tensors, holds NaN or infinity (the tensors are named), or has other labels.
    """
    folder = resolve(source, revision)
    values = read_config(folder)
    try:
        config = config_from_dict(values)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE}: {error}") from error
    config = config.with_dropout(attention=attention_dropout, hidden=hidden_dropout)
    held = read_tensors(folder)
    encoder = _encoder_of(config, len(held), folder)
    found, outside = split_encoder(held, encoder)
    if image_size is not None:
        expected = encoder.state_dict()
        both = found.keys() & expected.keys()
        _check_fit({name: expected[name] for name in both}, {name: found[name] for name in both}, folder)
        config, found = encoder.for_images(config, found, image_size)
    if task == "encoder":
        if labels is not None or fresh_head or head is not None:
            raise ValueError(f"a bare encoder has no head; leave out {labels=}, {head=} and {fresh_head=}")
        model = assemble_encoder(config, with_pooler=any(name.startswith("pooler.") for name in found))
    else:
        head_class = find_head(config.model_type, task, _head_name(values, task) if head is None else head)
        names, tensors = _read_head(
            folder, values, outside, head_class, labels, checkpoint_labels, fresh_head, head_follows
        )
        model = assemble(config, task, names, head=head_class.head_kind)
        if tensors and task != "token-classification":
            model.problem_type = _problem_type(folder, values)
        tensors |= _parts(outside, head_class.pretrained_names)
        found = {f"{model.base_model_prefix}.{name}": tensor for name, tensor in found.items()} | tensors
    lacking = _fill(model.to(dtype), found, folder)
    initialise(model, lacking, seed)
    model.name_or_path = str(source)
    model.fresh_parameters = tuple(name for name, _ in model.named_parameters() if name in lacking)
    if isinstance(model, TaskModel):
        pretrained = (f"{model.base_model_prefix}.pooler", *model.pretrained_names)
        fresh = [part for part in pretrained if any(name.startswith(f"{part}.") for name in lacking)]
        model.head_names = (*model.head_names, *fresh)
    _report(model, outside, folder, head_follows, to_be_trained)
    return model


def _encoder_of(config: Any, tensors: int, folder: Path) -> Encoder:
    """The encoder without memory, for a checkpoint of so many tensors.

    Raises:
        ValueError: the config has more layers than tensors, or sizes that no tensor can have.
    """
    if config.num_hidden_layers > max(tensors, SHARED_LAYERS):
        raise ValueError(
            f"{folder / CONFIG_FILE} says that there are {shown(config.num_hidden_layers)} layers, but the weights "
            f"beside it are {tensors} tensors. Check that both files are of one model"
        )
    try:
        return assemble_encoder(config, with_pooler=True)
    except (RuntimeError, TypeError, OverflowError) as error:  # torch's, of sizes beyond 64 bits
        raise ValueError(
            f"{folder / CONFIG_FILE} names sizes that no tensor can have ({str(error).splitlines()[0][:200]}). "
            "Download or save the model again"
        ) from error


def _problem_type(folder: Path, values: Mapping[str, Any]) -> ProblemType | None:
    """What config.json says that the logits are for."""
    try:
        return problem_type_of_config(values)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE}: {error}") from error


def _head_name(values: Mapping[str, Any], task: str) -> str:
    """The head that a config.json names, if it is one for this task."""
    head = values.get(HEAD_FIELD, "default")
    return head if isinstance(head, str) and head in HEADS and HEADS[head].task == task else "default"


def _read_head(
    folder: Path,
    values: Mapping[str, Any],
    outside: Mapping[str, Tensor],
    head_class: type[Head],
    labels: Sequence[str] | None,
    checkpoint_labels: Sequence[str] | None,
    fresh_head: bool,
    head_follows: bool,
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Return the label names, and the checkpoint's head with rows in their order (empty for a new head)."""
    if fresh_head and labels is not None:
        return check_labels(labels), {}
    label_weight = outside.get(f"{head_class.label_layers[0]}.weight")
    # Heads of different tasks share tensor names; the class that wrote the file tells them apart.
    architecture = architecture_name(values["model_type"], head_class)
    if label_weight is None or architecture not in (values.get("architectures") or [architecture]):
        if labels is None:
            raise ValueError(
                f"{folder} has no head for {head_class.task} (architectures in its {CONFIG_FILE}: "
                f"{values.get('architectures')}), so its labels are not known; pass labels=[...]"
            )
        return check_labels(labels), {}
    try:
        known = labels_of_config(values, rows=len(label_weight))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE}: {error}") from error
    if checkpoint_labels is not None:
        known = _named_rows(folder, known, checkpoint_labels)
    names = known if labels is None else check_labels(labels)
    if fresh_head:
        return names, {}
    if are_placeholders(known) and not are_placeholders(names) and not head_follows:
        logger.warning(
            "%s says only LABEL_0, LABEL_1...: the rows of its head are taken for %s, in this order. If it is another, "
            "give it as checkpoint_labels (--checkpoint-labels), or start a new head.",
            folder / CONFIG_FILE,
            ", ".join(names),
        )
    head = _parts(outside, head_class.head_names)
    return names, head_class.with_label_rows(head, rows_for(names, known))


def _parts(tensors: Mapping[str, Tensor], modules: Collection[str]) -> dict[str, Tensor]:
    """The tensors of some of the top-level modules."""
    return {name: tensor for name, tensor in tensors.items() if name.split(".")[0] in modules}


def _named_rows(folder: Path, known: tuple[str, ...], given: Sequence[str]) -> tuple[str, ...]:
    """The names that a user gives to the rows of a checkpoint's head.

    Raises:
        ValueError: the checkpoint has names of its own that are others, or another number of rows.
    """
    names = check_labels(given)
    if len(names) != len(known):
        raise ValueError(
            f"checkpoint_labels names {len(names)} labels, but the head in {folder} has {len(known)} rows. Give one "
            "name for each row, in the head's order"
        )
    if not are_placeholders(known) and names != known:
        raise ValueError(f"the head in {folder} has names of its own, {list(known)}: leave out checkpoint_labels")
    return names


@torch.no_grad()
def _fill(model: Encoder | TaskModel, found: dict[str, Tensor], folder: Path) -> tuple[str, ...]:
    """Give a model on the meta device memory and the tensors in `found`; return the names that `found` lacks.

    Only the pooler, the head and what is pretrained beside the encoder may be lacking, each as a whole. A pooler that
    the model has no use for is passed over.
    """
    wanted = model.state_dict()
    prefix = "" if model.task == "encoder" else f"{model.base_model_prefix}."
    pooler = {name for name in wanted if name.startswith(f"{prefix}pooler.")}
    head = {name for name in wanted if isinstance(model, TaskModel) and model.in_head(name)}
    beside = [{*_parts(wanted, [name])} for name in getattr(model, "pretrained_names", ())]
    lacking = {name for part in (pooler, head, *beside) if part.isdisjoint(found) for name in part}
    if not pooler:
        found = {name: tensor for name, tensor in found.items() if not name.startswith(f"{prefix}pooler.")}
    _check_fit({name: tensor for name, tensor in wanted.items() if name not in lacking}, found, folder)
    model.to_empty(device=torch.empty(0).device)
    for name, tensor in model.state_dict().items():
        if name not in lacking:
            # A copy even of float32: the file's memory is unaligned, and lost if the file is cut short.
            tensor.copy_(found[name])
    loaded = {name: tensor for name, tensor in model.state_dict().items() if name not in lacking}
    refuse_non_finite(loaded, f"{folder} cannot be used (download the model again, or take another)")
    return tuple(name for name in wanted if name in lacking)


def _check_fit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], folder: Path) -> None:
    """Compare the tensors of a checkpoint with those of the model.

    Raises:
        ValueError: `found` does not have exactly the wanted names and shapes, in floating point.
    """
    differences = {
        "missing": [name for name in wanted if name not in found],
        "extra": [name for name in found if name not in wanted],
        "of another shape": [
            f"{name} {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in found and found[name].shape != tensor.shape
        ],
        "not floating point": [name for name, tensor in found.items() if not tensor.is_floating_point()],
    }
    problems = [
        f"{len(names)} {what}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        for what, names in differences.items()
        if names
    ]
    if problems:
        raise ValueError(
            f"the tensors in {folder} are not those of the model that its {CONFIG_FILE} describes: "
            f"{'; '.join(problems)}. Check that both files are of one model, whole and not quantised"
        )


def _report(
    model: Encoder | TaskModel, outside: Mapping[str, Tensor], folder: Path, head_follows: bool, to_be_trained: bool
) -> None:
    """Log what a user must know: parameters drawn at random, and tensors that nobody expected."""
    if model.fresh_parameters and to_be_trained and isinstance(model, TaskModel):
        logger.info("a new head for %d labels starts untrained", len(model.labels))
    elif model.fresh_parameters and not head_follows:
        names = ", ".join(model.fresh_parameters)
        logger.warning("drawn at random, train before use (not taken from %s): %s", folder, names)
    encoder = model if isinstance(model, Encoder) else model.base_model
    known = encoder.other_heads.union(*(head.head_names for head in encoder.heads))
    unknown = sorted({name.split(".")[0] for name in outside} - known)
    if unknown:
        logger.warning("left out, belong to no known part (in %s): %s", folder, ", ".join(unknown))


def save_pretrained(model: Encoder | TaskModel, folder: str | Path) -> None:
    """Write the model's config.json and model.safetensors to `folder`, which is made if need be.

    Each file is there as a whole or as it was before; the weights are written first. The tokenizer's files are not the
    model's: copy them from its source.

    Raises:
        ValueError: the model has other parameters than its architecture, such as unmerged adapters.
    """
    if isinstance(model, Encoder):
        head, expected = "default", assemble_encoder(model.config, with_pooler=model.pooler is not None)
    elif isinstance(model, TaskModel):
        head = model.head_kind
        expected = assemble(model.config, model.task, model.labels, head=head)
    else:
        raise ValueError(f"cannot save a {type(model).__name__}; expected a model of load_pretrained or build_model")
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    differing = sorted(expected.state_dict().keys() ^ tensors.keys())
    if differing:
        raise ValueError(
            f"the model has other parameters than its architecture, first {differing[0]}; before saving it call "
            "lora_core.merge_lora, if its adapters are to stay in the weights, and lora_core.eject_lora; or save the "
            "adapter alone"
        )
    values = {"architectures": [architecture_name(model.config.model_type, model)], **model.config.to_dict()}
    if head != "default":
        values[HEAD_FIELD] = head
    if model.labels:
        values["id2label"] = {str(row): name for row, name in enumerate(model.labels)}
        values["label2id"] = {name: row for row, name in enumerate(model.labels)}
    if isinstance(model, TaskModel) and model.problem_type is not None:
        values["problem_type"] = model.problem_type
    folder = make_folder(folder)
    with replacing(folder / SINGLE_FILE, sum(tensor.nbytes for tensor in tensors.values())) as path:
        save_file(tensors, path, metadata={"format": "pt"})
    write_json(folder / CONFIG_FILE, values)
