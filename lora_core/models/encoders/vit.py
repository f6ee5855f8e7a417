"""ViT (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929) and DeiT (Touvron et al. 2021,
https://arxiv.org/abs/2012.12877): the encoders and their classifiers, under their checkpoints' names.

DeiT is ViT with a second special token, which learned from a teacher. DeiT checkpoints without that token are plain
ViT, in their config.json too.

transformers 5 gives its modules other names in memory, but writes and reads these in checkpoints. Adapters are
written under the other names, as PEFT needs them there; `lora_core.formats.vit_names` has both sets.

Shapes: B images, C channels, P patches, S special tokens (the class token; in DeiT the distillation token too),
T = S + P tokens, H hidden size, F intermediate size, L labels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lora_core.dropout import Dropout
from lora_core.formats.vit_names import to_new_name, to_old_name
from lora_core.models.encoder import Encoder
from lora_core.models.encoders.bert import BertIntermediate
from lora_core.models.encoders.patches import ImageConfig, ImageEmbeddings, resize_positions
from lora_core.models.layers import (
    GraphBuilder,
    LayerParts,
    LayerStack,
    MultiHeadAttention,
    TransformerLayer,
)
from lora_core.models.task_model import ImageModel


@dataclass(frozen=True)
class ViTConfig(ImageConfig):
    """Sizes of a ViT encoder; the defaults are vit-base-patch16-224."""

    model_type = "vit"

    intermediate_size: int = 3072
    """Width F of the feed-forward layers."""


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
    embeddings_class: ClassVar[type[ImageEmbeddings]] = ImageEmbeddings
    layer_class: ClassVar[type[TransformerLayer]] = ViTLayer
    base_model_prefix = "vit"
    architecture_stem = "ViT"
    heads = (ImageClassifier,)
    reads = "images"
    has_pooler = True
    unread_tensors = frozenset({"embeddings.mask_token"})
    """The stand-in of hidden patches in pretraining."""
    other_heads = Encoder.other_heads | {"decoder"}
    name_in_transformers_5 = staticmethod(to_new_name)
    """The path there of a module of this encoder."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.embeddings = self.embeddings_class(config)
        layers = (self.layer_class(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": LayerStack(layers)})
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


class DeiTEmbeddings(ImageEmbeddings):
    """ViT's embeddings with the distillation token after the class token."""

    special_token_names: ClassVar[tuple[str, ...]] = ("cls_token", "distillation_token")

    def __init__(self, config: ImageConfig) -> None:
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
    embeddings_class: ClassVar[type[ImageEmbeddings]] = DeiTEmbeddings
    base_model_prefix = "deit"
    architecture_stem = "DeiT"
    heads = (DeiTImageClassifier,)


def first_tokens(hidden: Tensor, read: int | None) -> Tensor:
    """The first `read` tokens of (B, T, H); None means all."""
    return hidden if read is None else hidden[:, :read]
