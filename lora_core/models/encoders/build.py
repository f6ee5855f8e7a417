"""The families of encoders, and from a config to a model with random weights."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lora_core.models.encoder import Encoder, EncoderConfig
from lora_core.models.encoders.albert import AlbertModel
from lora_core.models.encoders.bert import BertModel
from lora_core.models.encoders.deberta import DebertaV2Model
from lora_core.models.encoders.dinov2 import Dinov2Model
from lora_core.models.encoders.distilbert import DistilBertModel
from lora_core.models.encoders.electra import ElectraModel
from lora_core.models.encoders.modernbert import ModernBertModel
from lora_core.models.encoders.mpnet import MPNetModel
from lora_core.models.encoders.recurrent import BiLSTMModel, LSTMModel
from lora_core.models.encoders.roberta import CamembertModel, RobertaModel, XLMRobertaModel
from lora_core.models.encoders.vit import DeiTModel, ViTModel
from lora_core.models.heads import HEADS
from lora_core.models.labels import check_labels
from lora_core.models.task_model import Head, TaskModel
from lora_core.patterns import shown

_FAMILIES: tuple[type[Encoder], ...] = (
    BertModel,
    RobertaModel,
    XLMRobertaModel,
    CamembertModel,
    DistilBertModel,
    ElectraModel,
    AlbertModel,
    MPNetModel,
    DebertaV2Model,
    ModernBertModel,
    ViTModel,
    DeiTModel,
    Dinov2Model,
    LSTMModel,
    BiLSTMModel,
)

ENCODERS: dict[str, type[Encoder]] = {encoder.config_class.model_type: encoder for encoder in _FAMILIES}
"""The encoder of each `model_type`. What else there is to know of a family, its class says."""

TASKS = ("encoder", "token-classification", "text-classification", "image-classification")


def config_from_dict(values: Mapping[str, Any]) -> EncoderConfig:
    """Build the config of the family that `values["model_type"]` names, from the content of a config.json.

    Raises:
        ValueError: the family is unknown, or a value is malformed or not implemented.
    """
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in ENCODERS:
        raise ValueError(f"model_type is {shown(model_type)}; implemented are {', '.join(ENCODERS)}")
    return ENCODERS[model_type].config_class.from_dict(values)


def find_head(model_type: str, task: str, head: str = "default") -> type[Head]:
    """Return the head of a family for a task.

    Args:
        head: "default", the family's own, or a name in `HEADS`.

    Raises:
        ValueError: there is none.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")
    encoder = ENCODERS[model_type]
    own = {found.task: found for found in encoder.heads}
    if task not in own:
        raise ValueError(f"{model_type} models do not do {task}; they do encoder, {', '.join(own)}")
    if head == "default":
        return own[task]
    possible = {name: found for name, found in HEADS.items() if found.task == task}
    if head not in possible:
        raise ValueError(f"there is no head {head!r} for {task}; there are {', '.join(['default', *possible])}")
    if possible[head].tokens_read is not None and not encoder.first_token_sees_all:
        others = [name for name, found in possible.items() if found.tokens_read is None]
        raise ValueError(
            f"the head {head!r} reads the first token, where {model_type} models have not seen the text; "
            f"take {', '.join(others)}"
        )
    return possible[head]


def architecture_name(model_type: str, head: type[Head] | Encoder | TaskModel) -> str:
    """Return the name of transformers' class for this model, as config.json states it in `architectures`."""
    return ENCODERS[model_type].architecture_stem + head.architecture_suffix


def task_of_architectures(names: Iterable[str]) -> str | None:
    """Return the task that the `architectures` in a config.json tell; None: they tell none."""
    names = list(names)
    heads = (head for encoder in ENCODERS.values() for head in encoder.heads)
    told = (head.task for head in heads if any(name.endswith(head.architecture_suffix) for name in names))
    return next(told, None)


def build_model(
    config: EncoderConfig,
    task: str = "encoder",
    labels: Sequence[str] | None = None,
    *,
    head: str = "default",
    seed: int = 0,
) -> Encoder | TaskModel:
    """Build the model with random weights, in eval mode, on torch's default device.

    The same `seed` gives the same weights, and torch's own random state stays as it was. Under `torch.device("meta")`
    no memory is taken and nothing is drawn.

    Args:
        config: of one of the families in `ENCODERS`.
        task: one of `TASKS`.
        labels: the names in the order of the logits; a bare encoder has none.
        head: "default", the family's own, or a name in `lora_core.models.heads.HEADS`.
        seed: of the weights.

    Raises:
        ValueError: the family does not do the task, or the labels are missing or malformed.
    """
    if task == "encoder":
        if labels is not None or head != "default":
            raise ValueError(f"a bare encoder has no head; leave out {labels=} and {head=}")
        model = assemble_encoder(config)
    else:
        find_head(config.model_type, task, head)
        if labels is None:
            raise ValueError(f"{task} needs labels: a list of names in the order of the logits")
        model = assemble(config, task, check_labels(labels), head=head)
    device = torch.empty(0).device  # torch 2.6's get_default_device does not see `with torch.device(...)`
    if device.type != "meta":
        model.to_empty(device=device)
        initialise(model, model.state_dict(), seed)
    return model


def assemble_encoder(config: EncoderConfig, *, with_pooler: bool = False) -> Encoder:
    """Build the encoder in eval mode on the meta device: names and shapes, no memory.

    `with_pooler` gives it the pooler that only some heads need, if the family has one.
    """
    with torch.device("meta"), _NothingDrawn():
        encoder = ENCODERS[config.model_type](config)
        if with_pooler:
            encoder.add_pooler()
    return encoder.eval()


def assemble(config: EncoderConfig, task: str, labels: tuple[str, ...], *, head: str = "default") -> TaskModel:
    """Build a task model in eval mode on the meta device: names and shapes, no memory."""
    encoder = assemble_encoder(config)
    with torch.device("meta"), _NothingDrawn():
        return find_head(config.model_type, task, head).build(encoder, labels).eval()


class _NothingDrawn(TorchFunctionMode):
    """Passes over torch.nn.init. On the meta device there is nothing to fill, and drawing there would import torch's
    compiler: more than a second, and 37 MB."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return (*args, *kwargs.values())[0]  # the tensor
        return func(*args, **kwargs)


@torch.no_grad()
def initialise(model: Encoder | TaskModel, names: Collection[str], seed: int) -> None:
    """Draw the named parameters as transformers does for new layers, and set the named buffers to zero.

    Biases are zero; a LayerNorm starts as the identity; LSTMs and convolutions over text are uniform within
    1 / sqrt(states) and 1 / sqrt(inputs), as torch draws them; other weights are drawn by the model (`Encoder.draw`).
    """
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if name not in names:
                continue
            if isinstance(module, (nn.LSTM, nn.Conv1d)):
                inputs = module.hidden_size if isinstance(module, nn.LSTM) else module.weight[0].numel()
                parameter.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
            elif isinstance(module, nn.LayerNorm):
                parameter.fill_(1)
            else:
                model.draw(module, parameter, generator)
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name in names:
                buffer.zero_()
