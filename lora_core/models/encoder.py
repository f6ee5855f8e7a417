"""What every encoder shares: its config, and all that the rest of the library asks of its family.

A new family is one file with a subclass of `EncoderConfig` and one of `Encoder`, named in `ENCODERS`
(encoders/build.py). It is trained, adapted, saved and loaded then; with its layers in a `LayerStack` it is fused too
(lora_core.kernels), and with `onnx_embeddings` besides it is exported (lora_core.export).

Shapes: B texts or images, T tokens (padded), H hidden size.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from lora_core.config import check_types
from lora_core.models.layers import ACTIVATIONS, GraphBuilder, LayerStack, Pooler

Config = TypeVar("Config", bound="EncoderConfig")

ONLY_SUPPORTED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
"""Fields of config.json that change the computation, with the one value that is implemented."""


@dataclass(frozen=True)
class EncoderConfig:
    """Base of the configs; a subclass's fields bear the names and defaults of transformers' config.

    Raises:
        ValueError: a field has a value of another type, or one that is not implemented.
    """

    model_type: ClassVar[str]
    """Name of the family in config.json."""
    activation_field: ClassVar[str | None]
    """Field that names the activation of the feed-forward layers; None: it has none."""
    attention_dropout_field: ClassVar[str]
    """Field with the dropout probability of the attention weights."""
    hidden_dropout_field: ClassVar[str]
    """Field with the dropout probability of embeddings and layer outputs."""
    least: ClassVar[Mapping[str, int]] = {"pad_token_id": 0}
    """The least values of whole numbers that may be below 1."""
    above_one: ClassVar[frozenset[str]] = frozenset()
    """Numbers that may be 1 and more; the others are shares."""

    @classmethod
    def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
        """Build the config from the content of a config.json, leaving aside fields that have no use here.

        Raises:
            ValueError: a value is malformed, or this implementation would not honour it.
        """
        for name, supported in ONLY_SUPPORTED.items():
            if values.get(name, supported) != supported:
                raise ValueError(f"{name} is {values[name]!r}; only {supported!r} is implemented")
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in names})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and `model_type`, as config.json holds them."""
        return {"model_type": self.model_type, **dataclasses.asdict(self)}

    def with_dropout(self: Config, *, attention: float | None, hidden: float | None) -> Config:
        """Return a copy with other dropout probabilities; None keeps the present one."""
        changes = {self.attention_dropout_field: attention, self.hidden_dropout_field: hidden}
        return dataclasses.replace(self, **{name: p for name, p in changes.items() if p is not None})

    def __post_init__(self) -> None:
        check_types(self)
        for field in dataclasses.fields(self):
            kind: Any = field.type
            value = getattr(self, field.name)
            least = self.least.get(field.name, 1)
            if kind is int and value < least:
                raise ValueError(f"{field.name} is {value}; expected at least {least}")
            if kind not in (float, float | None) or value is None:
                continue
            if field.name in self.above_one and not 0 < value < math.inf:
                raise ValueError(f"{field.name} is {value}; expected a number above 0")
            if field.name not in self.above_one and not 0 <= value < 1:
                raise ValueError(f"{field.name} is {value}; expected at least 0 and below 1")
        pad, words = getattr(self, "pad_token_id", 0), getattr(self, "vocab_size", None)
        if words is not None and pad >= words:
            raise ValueError(f"pad_token_id is {pad}; expected an id below vocab_size, {words}")
        activation = None if self.activation_field is None else getattr(self, self.activation_field)
        if activation is not None and activation not in ACTIVATIONS:
            raise ValueError(f"{self.activation_field} is {activation!r}; implemented are {', '.join(ACTIVATIONS)}")


class Encoder(nn.Module):
    """An encoder without a head. A subclass adds its modules, under its checkpoints' names, and `forward`, which
    returns the last hidden state (B, T, H) of `forward(input_ids, attention_mask, token_type_ids)`, or of
    `forward(pixel_values, read)`.
    """

    config_class: ClassVar[type[EncoderConfig]]
    base_model_prefix: ClassVar[str]
    """Its name in a task model, with which its tensors' names in a checkpoint of one begin."""
    architecture_stem: ClassVar[str]
    """Beginning of the class names that checkpoints of the family state in config.json."""
    heads: ClassVar[tuple[type[Any], ...]]
    """The family's own heads (`lora_core.models.task_model.Head`), one for each task."""
    reads: ClassVar[Literal["text", "images"]] = "text"
    first_token_sees_all: ClassVar[bool] = True
    """Whether the first token's state depends on the whole text, so that heads may read it alone."""
    has_pooler: ClassVar[bool] = False
    """Whether checkpoints of the family may have a pooler."""
    unread_tensors: frozenset[str] = frozenset({"embeddings.position_ids", "embeddings.token_type_ids"})
    """Tensors of checkpoints that nothing here reads: these are counters of old transformers versions."""
    other_heads: ClassVar[frozenset[str]] = frozenset({"classifier", "qa_outputs", "pooler"})
    """Top-level modules of heads besides those in `heads`; a checkpoint's are left out without a warning."""

    architecture_suffix: ClassVar[str] = "Model"
    task: ClassVar[str] = "encoder"
    labels: ClassVar[tuple[str, ...]] = ()
    head_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.fresh_parameters: tuple[str, ...] = ()
        """Names of the parameters that the checkpoint lacked and that therefore start at random."""
        self.name_or_path: str | None = None
        """The hub id or folder it was loaded from, which a saved adapter names as its base."""
        self.pooler: nn.Module | None = None

    def add_pooler(self) -> None:
        """Give the encoder its pooler, if the family has one. `forward` does not call it: heads do."""
        if self.has_pooler:
            self.pooler = Pooler(self.config.hidden_size)

    def layer_stack(self) -> LayerStack | None:
        """The stack of transformer layers; None: there is none."""
        return next((module for module in self.modules() if isinstance(module, LayerStack)), None)

    def norm_after_layers(self) -> nn.Module | None:
        """The norm after the last layer; None: there is none."""
        return None

    @property
    def segments(self) -> int:
        """How many texts of one input `token_type_ids` can tell apart; 1: the encoder takes none."""
        return 1

    @property
    def image_tokens(self) -> int:
        """Tokens of one image; 0 for text."""
        return 0

    @staticmethod
    def own_name(name: str) -> str:
        """The name here of a tensor of a checkpoint. The oldest files call a LayerNorm's weight and bias gamma and
        beta."""
        return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")

    @classmethod
    def for_images(
        cls, config: Any, tensors: Mapping[str, Tensor], image_size: int | tuple[int, int]
    ) -> tuple[Any, dict[str, Tensor]]:
        """The config and a checkpoint's tensors (by their names in the encoder) for images of another size.

        Args:
            image_size: pixels: the side of a square, or (height, width).

        Raises:
            ValueError: the encoder reads text, or cannot have this size.
        """
        raise ValueError(f"{config.model_type} models read text; leave out {image_size=}")

    def draw(self, module: nn.Module, parameter: Tensor, generator: torch.Generator) -> None:
        """Fill a new weight of `module`, in the encoder or its head, as transformers does: normal, 0 for padding.

        Biases, norms, LSTMs and convolutions over text are drawn elsewhere (`initialise` in build.py).
        """
        parameter.normal_(0, self.config.initializer_range, generator=generator)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            parameter[module.padding_idx] = 0

    def onnx_embeddings(self, graph: GraphBuilder, inputs: str) -> str:
        """The embeddings as a graph: ids (B, T) int32, or pixels, -> (B, T, H). `layer_stack` says what follows.

        Raises:
            ValueError: the family has no graph.
        """
        raise no_graph(f"{self.config.model_type} models")

    def onnx_segments(self, graph: GraphBuilder, inputs: str, segments: str) -> str:
        """`onnx_embeddings` with token type ids (B, T) int32, of encoders with several `segments`."""
        raise no_graph(f"token_type_ids of {self.config.model_type} models")

    def onnx_shared(self, graph: GraphBuilder, inputs: str) -> tuple[str, ...]:
        """What `LayerStack.forward` takes as `shared`, as a graph."""
        return ()


def no_graph(what: str) -> ValueError:
    """The error of an encoder or head that cannot be exported."""
    return ValueError(
        f"{what} cannot be exported as ONNX; serve the run's folder with PyTorch, or train a transformer with "
        "another head"
    )
