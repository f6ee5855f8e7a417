"""ViT (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929) and DeiT (Touvron et al. 2021,
https://arxiv.org/abs/2012.12877): the encoders and their classifiers, under their checkpoints' names.

DeiT is ViT with a second special token, which learned from a teacher. DeiT checkpoints without that token are plain
ViT, in their config.json too.

transformers 5 gives its modules other names in memory, but writes and reads these in checkpoints. Adapters are
written under the other names, as PEFT needs them there; `lora_core.vit_names` has both sets.

Shapes: B images, C channels, P patches, S special tokens (the class token; in DeiT the distillation token too),
T = S + P tokens, H hidden size, F intermediate size, L labels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_core.dropout import Dropout
from lora_core.models.encoder import Encoder, EncoderConfig
from lora_core.models.encoders.bert import BertIntermediate
from lora_core.models.layers import (
    GraphBuilder,
    LayerParts,
    LayerStack,
    MultiHeadAttention,
    TransformerLayer,
)
from lora_core.models.task_model import ImageModel
from lora_core.vit_names import to_old_name


@dataclass(frozen=True)
class ViTConfig(EncoderConfig):
    """Sizes of a ViT encoder; the defaults are vit-base-patch16-224."""

    model_type = "vit"
    activation_field = "hidden_act"
    attention_dropout_field = "attention_probs_dropout_prob"
    hidden_dropout_field = "hidden_dropout_prob"

    hidden_size: int = 768
    """Width H of the hidden states."""
    num_hidden_layers: int = 12
    """Transformer layers."""
    num_attention_heads: int = 12
    """Attention heads a layer; divides hidden_size."""
    intermediate_size: int = 3072
    """Width F of the feed-forward layers."""
    hidden_act: str = "gelu"
    """Activation of the feed-forward layers."""
    hidden_dropout_prob: float = 0.0
    """Dropout after the embeddings and before each residual sum."""
    attention_probs_dropout_prob: float = 0.0
    """Dropout of the attention weights."""
    initializer_range: float = 0.02
    """Standard deviation of new weights."""
    layer_norm_eps: float = 1e-12
    """Added to the variance in each LayerNorm."""
    image_size: int | tuple = 224
    """Pixels of an image: the side of a square, or (height, width). Multiples of patch_size."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    num_channels: int = 3
    """Channels C of an image."""
    qkv_bias: bool = True
    """Whether query, key and value projections have a bias."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ViTConfig":
        """As for all families; JSON has a list where image_size is (height, width)."""
        size = values.get("image_size")
        return super().from_dict({**values, "image_size": tuple(size)} if isinstance(size, list) else values)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        sides = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2
        if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
            raise ValueError(f"image_size is {self.image_size!r}; expected pixels, or (height, width)")
        if any(side < 1 or side % self.patch_size for side in sides):
            raise ValueError(f"image_size is {self.image_size!r}; expected multiples of patch_size {self.patch_size}")

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) of an image in pixels."""
        height, width = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2
        return height, width

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.image_shape
        return height // self.patch_size, width // self.patch_size


class ViTPatchEmbeddings(nn.Module):
    """One linear map of each patch's pixels, (B, C, height, width) -> (B, P, H), the patches by rows."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.image_shape = config.image_shape
        self.num_channels = config.num_channels
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        check_images(pixel_values, self.num_channels, self.image_shape)
        patches = self.projection(pixel_values.to(self.projection.weight.dtype))  # (B, H, rows, columns)
        return patches.flatten(2).transpose(1, 2)


class ViTEmbeddings(nn.Module):
    """Special tokens, then the patches, each with its position's embedding."""

    special_token_names: ClassVar[tuple[str, ...]] = ("cls_token",)
    """Parameters (1, 1, H) of the tokens before the patches, in their order."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        rows, columns = config.grid
        tokens = len(self.special_token_names) + rows * columns
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.empty(1, tokens, config.hidden_size))
        self.patch_embeddings = ViTPatchEmbeddings(config)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embeddings(pixel_values)  # (B, P, H)
        tokens: list[Tensor] = [self.get_parameter(name) for name in self.special_token_names]
        special = torch.cat(tokens, dim=1).expand(len(patches), -1, -1)  # (B, S, H)
        return self.dropout(torch.cat((special, patches), dim=1) + self.position_embeddings)  # (B, T, H)

    def onnx(self, graph: GraphBuilder, pixels: str) -> str:
        """`forward` as a graph. The special tokens with their positions are the same for every image."""
        path, projection = graph.path(self), self.patch_embeddings.projection
        places, names = graph.array(self, "position_embeddings"), self.special_token_names
        special = np.concatenate([graph.array(self, name) for name in names], axis=1)  # (1, S, H)
        count = special.shape[1]
        sources = [(self, name) for name in (*names, "position_embeddings")]
        special_name = graph.derived(f"{path}.special", special + places[:, :count], sources)
        patch_places = graph.derived(f"{path}.places", places[:, count:], [(self, "position_embeddings")])
        weights = graph.parameter(projection), graph.parameter(projection, "bias")
        sides = list(projection.kernel_size)
        patches = graph.op("Conv", pixels, *weights, kernel_shape=sides, strides=sides)
        patches = graph.op("Reshape", patches, graph.constant([0, special.shape[2], -1]))
        patches = graph.op("Transpose", patches, perm=[0, 2, 1])  # (B, P, H)
        shape = graph.op("Concat", graph.op("Shape", pixels, start=0, end=1), graph.constant(special.shape[1:]), axis=0)
        expanded = graph.op("Expand", special_name, shape)  # (B, S, H)
        return graph.op("Concat", expanded, graph.op("Add", patches, patch_places), axis=1)


class ViTSelfAttention(MultiHeadAttention):
    """Multi-head attention without its output projection."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float, bias: bool) -> None:
        super().__init__(num_heads, dropout)
        self.query = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.key = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.value = nn.Linear(hidden_size, hidden_size, bias=bias)

    def forward(self, hidden: Tensor, read: int | None) -> Tensor:
        query = self.query(first_tokens(hidden, read))  # (B, read, H)
        return self.attend(query, self.key(hidden), self.value(hidden), None)


class ViTOutput(nn.Module):
    """End of each half layer: project to H and add the half layer's input."""

    def __init__(self, in_features: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, hidden_size)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.dropout(self.dense(hidden)) + residual


class ViTAttention(nn.Module):
    """Attention and its output projection; the names are the checkpoint's."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.attention = ViTSelfAttention(
            config.hidden_size, config.num_attention_heads, config.attention_probs_dropout_prob, config.qkv_bias
        )
        self.output = ViTOutput(config.hidden_size, config.hidden_size, config.hidden_dropout_prob)

    def forward(self, normed: Tensor, residual: Tensor, read: int | None) -> Tensor:
        return self.output(self.attention(normed, read), first_tokens(residual, read))


class ViTLayer(TransformerLayer):
    """One transformer layer, normalised before each half."""

    norm_first = True

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.attention = ViTAttention(config)
        self.intermediate = BertIntermediate(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.output = ViTOutput(config.intermediate_size, config.hidden_size, config.hidden_dropout_prob)
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor, mask: None = None, read: int | None = None) -> Tensor:
        attended = self.attention(self.layernorm_before(hidden), hidden, read)  # (B, read, H)
        return self.output(self.intermediate(self.layernorm_after(attended)), attended)

    def parts(self) -> LayerParts:
        attention, intermediate = self.attention.attention, self.intermediate
        attention_output, output = self.attention.output, self.output
        return LayerParts(
            attention=attention,
            query_key_value=(attention.query, attention.key, attention.value),
            attention_output=attention_output.dense,
            attention_output_dropout=attention_output.dropout,
            attention_norm=self.layernorm_before,
            intermediate=intermediate.dense,
            activation=intermediate.intermediate_act_fn,
            output=output.dense,
            output_dropout=output.dropout,
            output_norm=self.layernorm_after,
        )


class ImageClassifier(ImageModel):
    """One linear layer over the class token."""

    tokens_read = 1

    def __init__(self, encoder: Encoder, labels: Sequence[str]) -> None:
        super().__init__(encoder, labels)
        self.classifier = nn.Linear(self.config.hidden_size, len(self.labels))

    def logits(self, hidden: Tensor) -> Tensor:
        return self.classifier(hidden[:, 0])  # (B, L)

    def onnx(self, graph: GraphBuilder, hidden: str, input_ids: str, mask: str) -> str:
        return graph.label_layer(graph.tokens(hidden, 0), self.classifier)


class ViTModel(Encoder):
    """The encoder without a head."""

    config_class = ViTConfig
    embeddings_class: ClassVar[type[ViTEmbeddings]] = ViTEmbeddings
    base_model_prefix = "vit"
    architecture_stem = "ViT"
    heads = (ImageClassifier,)
    reads = "images"
    has_pooler = True
    unread_tensors = frozenset({"embeddings.mask_token"})
    """The stand-in of hidden patches in pretraining."""
    other_heads = Encoder.other_heads | {"decoder"}
    renamed_in_transformers_5: ClassVar[bool] = True

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.embeddings = self.embeddings_class(config)
        self.encoder = nn.ModuleDict({"layer": LayerStack(ViTLayer(config) for _ in range(config.num_hidden_layers))})
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor, read: int | None = None) -> Tensor:
        """Return the last hidden state (B, T, H), normalised.

        Args:
            pixel_values: (B, C, height, width), normalised as the checkpoint's preprocessor_config.json says.
            read: the number of leading tokens whose states are wanted (None: all); the last layer then computes no
                others, and the result is (B, read, H).

        Raises:
            ValueError: the images have another size or other channels than the config says:
                `load_pretrained(..., image_size=...)` changes the size.
        """
        return self.layernorm(self.encoder["layer"](self.embeddings(pixel_values), None, read=read))

    def norm_after_layers(self) -> nn.Module:
        return self.layernorm

    @property
    def image_tokens(self) -> int:
        return self.embeddings.position_embeddings.shape[1]

    @staticmethod
    def own_name(name: str) -> str:
        return to_old_name(Encoder.own_name(name))

    @classmethod
    def for_images(
        cls, config: ViTConfig, tensors: Mapping[str, Tensor], image_size: int | tuple[int, int]
    ) -> tuple[ViTConfig, dict[str, Tensor]]:
        new, name = dataclasses.replace(config, image_size=image_size), "embeddings.position_embeddings"
        resized = {name: resize_positions(tensors[name], config.grid, new.grid)} if name in tensors else {}
        return new, {**tensors, **resized}

    def draw(self, module: nn.Module, parameter: Tensor, generator: torch.Generator) -> None:
        """Special tokens and positions are cut off at 2 and -2."""
        if module is self.embeddings:
            nn.init.trunc_normal_(parameter, std=self.config.initializer_range, generator=generator)
        else:
            super().draw(module, parameter, generator)

    def onnx_embeddings(self, graph: GraphBuilder, inputs: str) -> str:
        return self.embeddings.onnx(graph, inputs)


@dataclass(frozen=True)
class DeiTConfig(ViTConfig):
    """Sizes of a distilled DeiT encoder; the defaults are deit-base-distilled-patch16-224."""

    model_type = "deit"


class DeiTEmbeddings(ViTEmbeddings):
    """ViT's embeddings with the distillation token after the class token."""

    special_token_names: ClassVar[tuple[str, ...]] = ("cls_token", "distillation_token")

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.distillation_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))


class DeiTImageClassifier(ImageModel):
    """The mean of two classifiers, over the class token and the distillation token (DeiT paper, section 4)."""

    architecture_suffix = "ForImageClassificationWithTeacher"
    head_names = label_layers = ("cls_classifier", "distillation_classifier")
    tokens_read = 2

    def __init__(self, encoder: Encoder, labels: Sequence[str]) -> None:
        super().__init__(encoder, labels)
        self.cls_classifier = nn.Linear(self.config.hidden_size, len(self.labels))
        self.distillation_classifier = nn.Linear(self.config.hidden_size, len(self.labels))

    def logits(self, hidden: Tensor) -> Tensor:
        return (self.cls_classifier(hidden[:, 0]) + self.distillation_classifier(hidden[:, 1])) / 2  # (B, L)

    def onnx(self, graph: GraphBuilder, hidden: str, input_ids: str, mask: str) -> str:
        first = graph.label_layer(graph.tokens(hidden, 0), self.cls_classifier)
        second = graph.label_layer(graph.tokens(hidden, 1), self.distillation_classifier)
        return graph.op("Div", graph.op("Add", first, second), graph.constant(2, np.float32))


class DeiTModel(ViTModel):
    """The encoder without a head."""

    config_class = DeiTConfig
    embeddings_class: ClassVar[type[ViTEmbeddings]] = DeiTEmbeddings
    base_model_prefix = "deit"
    architecture_stem = "DeiT"
    heads = (DeiTImageClassifier,)


def first_tokens(hidden: Tensor, read: int | None) -> Tensor:
    """The first `read` tokens of (B, T, H); None means all."""
    return hidden if read is None else hidden[:, :read]


def check_images(pixel_values: Tensor, num_channels: int, image_shape: tuple[int, int]) -> None:
    """Refuse images that do not fit, where the layers would fail with an unrelated message.

    Raises:
        ValueError: `pixel_values` is not (B, C, height, width) of these numbers, in floating point.
    """
    shape = tuple(pixel_values.shape)
    if len(shape) != 4:
        raise ValueError(f"pixel_values has shape {shape}; expected (images, channels, height, width)")
    if not pixel_values.is_floating_point():
        raise ValueError(f"pixel_values is {pixel_values.dtype}; expected normalised floating point")
    if shape[1] != num_channels:
        raise ValueError(
            f"the images have {shape[1]} channels, the model reads {num_channels}; convert them (grey to colour: "
            f"pixel_values.expand(-1, {num_channels}, -1, -1))"
        )
    if shape[2:] != image_shape:
        raise ValueError(
            f"the images have {shape[2]} x {shape[3]} pixels, the model reads {image_shape[0]} x {image_shape[1]}; "
            f"resize them, or load the model with image_size={shape[2:]}"
        )


def resize_positions(positions: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Position embeddings (1, S + P, H) of a grid of patches (rows, columns), bicubically for another grid.

    Those of the special tokens stay. Source: the ViT paper, section 3.2; the arithmetic is that of transformers'
    `interpolate_pos_encoding`.
    """
    if grid == new_grid:
        return positions
    rows, columns = grid
    special, patches = positions.float().split([positions.shape[1] - rows * columns, rows * columns], dim=1)
    image = patches.unflatten(1, grid).permute(0, 3, 1, 2)  # (1, H, rows, columns)
    resized = F.interpolate(image, size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat((special, resized.flatten(2).transpose(1, 2)), dim=1)
