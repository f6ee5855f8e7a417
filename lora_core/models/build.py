"""From a config to a model with random weights."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lora_core.models.bert import BertConfig, BertModel
from lora_core.models.distilbert import DistilBertConfig, DistilBertModel
from lora_core.models.heads import HEADS, TASK_MODELS
from lora_core.models.recurrent import BiLSTMModel, LSTMConfig, LSTMModel
from lora_core.models.roberta import CamembertModel, RobertaModel, XLMRobertaModel
from lora_core.models.task_model import Encoder, TaskModel, check_labels
from lora_core.models.vit import DeiTModel, ViTConfig, ViTEmbeddings, ViTModel

Config = BertConfig | DistilBertConfig | ViTConfig | LSTMConfig

_ENCODERS: tuple[type[Encoder], ...] = (
    *(BertModel, RobertaModel, XLMRobertaModel, CamembertModel, DistilBertModel),
    *(ViTModel, DeiTModel),
    *(LSTMModel, BiLSTMModel),
)

ENCODERS: dict[str, type[Encoder]] = {encoder.config_class.model_type: encoder for encoder in _ENCODERS}
"""The encoder of each `model_type`."""

FIRST_TOKEN_HEADS = ("linear", "mlp")
"""Heads of any encoder that read the first token only."""

TASKS = ("encoder", "token-classification", "text-classification", "image-classification")


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """Build the config of the family that `values["model_type"]` names, from the content of a config.json.

    Raises ValueError when the family is unknown or a value is malformed or not implemented.
    """
    model_type = values.get("model_type")
    if model_type not in ENCODERS:
        raise ValueError(f"model_type is {model_type!r}; implemented are {', '.join(ENCODERS)}")
    return ENCODERS[model_type].config_class.from_dict(values)


def task_model_class(model_type: str, task: str, head: str = "default") -> type[TaskModel]:
    """Return the task model of this family with this head. Raises ValueError when there is none."""
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")
    encoder = ENCODERS[model_type]
    if (encoder, task) not in TASK_MODELS:
        possible = [known for family, known in TASK_MODELS if family is encoder]
        raise ValueError(f"{model_type} models do not do {task}; they do encoder, {', '.join(possible)}")
    if head == "default":
        return TASK_MODELS[encoder, task]
    possible = [name for name, model in HEADS.items() if model.task == task]
    if head not in possible:
        raise ValueError(f"there is no head {head!r} for {task}; there are {', '.join(['default', *possible])}")
    if head in FIRST_TOKEN_HEADS and issubclass(encoder, LSTMModel):
        raise ValueError(f"the head {head!r} reads the first token, where {model_type} models have not seen the text; "
                         f"take {', '.join(name for name in possible if name not in FIRST_TOKEN_HEADS)}")  # fmt: skip
    return HEADS[head]


def architecture_name(model_type: str, model: type[Encoder | TaskModel] | Encoder | TaskModel) -> str:
    """Return the name of transformers' class for this model, as config.json states it in `architectures`."""
    return ENCODERS[model_type].architecture_stem + model.architecture_suffix


def build_model(
    config: Config,
    task: str = "encoder",
    labels: Sequence[str] | None = None,
    *,
    head: str = "default",
    seed: int = 0,
) -> Encoder | TaskModel:
    """Build the model with random weights, in eval mode, on torch's default device.

    `task` is one of TASKS, `labels` the names in the order of the logits; a bare encoder has none. `head` is
    "default", the family's own, or a name in `lora_core.models.heads.HEADS`. The same `seed` gives the same weights,
    and torch's own random state stays as it was. Under `torch.device("meta")` no memory is taken and nothing is drawn.

    Raises ValueError when the family does not do the task or the labels are missing or malformed.
    """
    if task == "encoder":
        if labels is not None or head != "default":
            raise ValueError(f"a bare encoder has no head; leave out {labels=} and {head=}")
        model = assemble(config, task, ())
    else:
        task_model_class(config.model_type, task, head)
        if labels is None:
            raise ValueError(f"{task} needs labels: a list of names in the order of the logits")
        model = assemble(config, task, check_labels(labels), head=head)
    device = torch.get_default_device()
    if device.type != "meta":
        model.to_empty(device=device)
        initialise(model, model.state_dict(), seed)
    return model


def assemble(
    config: Config, task: str, labels: tuple[str, ...], *, head: str = "default", with_pooler: bool = False
) -> Encoder | TaskModel:
    """Build the model in eval mode on the meta device: names and shapes, no memory.

    `with_pooler` gives an encoder the pooler that its task does not need; DistilBERT has none.
    """
    with torch.device("meta"), _NothingDrawn():
        encoder = cast(Callable[[Any], Encoder], ENCODERS[config.model_type])(config)
        if with_pooler and isinstance(encoder, (BertModel, ViTModel)):
            encoder.add_pooler()
        if task == "encoder":
            return encoder.eval()
        return task_model_class(config.model_type, task, head)(encoder, labels).eval()


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

    Weights are normal with the config's `initializer_range`; biases and the padding row of an embedding are
    zero; a LayerNorm starts as the identity. ViT's special tokens and positions are cut off at 2 and -2. LSTMs and
    convolutions are uniform within 1 / sqrt(states) and 1 / sqrt(inputs), as torch draws them.
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
            elif isinstance(module, ViTEmbeddings):
                nn.init.trunc_normal_(parameter, std=model.config.initializer_range, generator=generator)
            else:
                parameter.normal_(0, model.config.initializer_range, generator=generator)
                if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                    parameter[module.padding_idx] = 0
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name in names:
                buffer.zero_()
