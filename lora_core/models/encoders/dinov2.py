"""DINOv2 (Oquab et al. 2023, https://arxiv.org/abs/2304.07193): ViT with a learned scale on each half layer's output, a
gated feed-forward layer in the giant, and a classifier that reads the patches' mean beside the class token.

Published checkpoints have positions for images of 518 pixels and are used with 224: `load_pretrained(...,
image_size=224)` interpolates them.

Shapes: B images, T tokens (the class token, then the patches), H hidden size, F intermediate size, L labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lora_core.formats.vit_names import to_dinov2_name
from lora_core.models.encoder import Encoder
from lora_core.models.encoders.patches import ImageConfig
from lora_core.models.encoders.vit import ViTModel, ViTSelfAttention, first_tokens
from lora_core.models.layers import GatedActivation, GraphBuilder, LayerParts, TransformerLayer, activation
from lora_core.models.task_model import ImageModel


@dataclass(frozen=True)
class Dinov2Config(ImageConfig):
    """Sizes of a DINOv2 encoder; the defaults are transformers' (dinov2-base states image_size 518)."""

    model_type = "dinov2"
    above_one = frozenset({"layerscale_value"})

    mlp_ratio: int = 4
    """Width F of the feed-forward layers in hidden sizes (of gated ones two thirds of it)."""
    hidden_dropout_prob: float = 0.0
    """Dropout after the embeddings."""
    layer_norm_eps: float = 1e-6
    """Added to the variance in each LayerNorm."""
    patch_size: int = 14
    """Side of a patch in pixels."""
    layerscale_value: float = 1.0
    """What new scales of the half layers' outputs begin with."""
    drop_path_rate: float = 0.0
    """Share of half layers left out in training; 0 is what is implemented, and what published models have."""
    use_swiglu_ffn: bool = False
    """Whether the feed-forward layers are gated, as in the giant."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drop_path_rate:
            raise ValueError(f"drop_path_rate is {self.drop_path_rate}; only 0 is implemented")

    @property
    def intermediate_size(self) -> int:
        """Width F; of gated layers two thirds, rounded up to a multiple of 8."""
        width = self.hidden_size * self.mlp_ratio
        return (int(width * 2 / 3) + 7) // 8 * 8 if self.use_swiglu_ffn else width


class LayerScale(nn.Module):
    """A factor for each of H states (Touvron et al. 2021, https://arxiv.org/abs/2103.17239)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.empty(hidden_size))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.lambda1

    def onnx(self, graph: GraphBuilder, x: str) -> str:
        """`forward` as a graph."""
        return graph.op("Mul", x, graph.parameter(self, "lambda1"))


class Dinov2Attention(nn.Module):
    """Attention and its output projection; the names are the checkpoint's."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.attention = ViTSelfAttention(
            config.hidden_size, config.num_attention_heads, config.attention_probs_dropout_prob, config.qkv_bias
        )
        self.output = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.hidden_size)})

    def forward(self, normed: Tensor, read: int | None) -> Tensor:
        return self.output["dense"](self.attention(normed, read))


class Dinov2MLP(nn.Module):
    """Two linear layers, H -> F -> H."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = activation(config.hidden_act)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(hidden)))


class Dinov2SwiGLUFFN(nn.Module):
    """Two linear layers, H -> 2 F -> H, the first half of the inner states gating the second."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.weights_in = nn.Linear(config.hidden_size, 2 * config.intermediate_size)
        self.activation = GatedActivation(nn.SiLU(), 0.0)
        self.weights_out = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.weights_out(self.activation(self.weights_in(hidden)))


class Dinov2Layer(TransformerLayer):
    """One transformer layer, normalised before each half."""

    norm_first = True

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Dinov2Attention(config)
        self.layer_scale1 = LayerScale(config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = (Dinov2SwiGLUFFN if config.use_swiglu_ffn else Dinov2MLP)(config)
        self.layer_scale2 = LayerScale(config.hidden_size)

    def forward(self, hidden: Tensor, mask: None = None, read: int | None = None) -> Tensor:
        attended = self.layer_scale1(self.attention(self.norm1(hidden), read)) + first_tokens(hidden, read)
        return self.layer_scale2(self.mlp(self.norm2(attended))) + attended  # (B, read, H)

    def parts(self) -> LayerParts:
        attention, mlp = self.attention.attention, self.mlp
        inner, outer = (mlp.fc1, mlp.fc2) if isinstance(mlp, Dinov2MLP) else (mlp.weights_in, mlp.weights_out)
        return LayerParts(
            attention=attention,
            query_key_value=(attention.query, attention.key, attention.value),
            attention_output=self.attention.output["dense"],
            attention_output_dropout=None,
            attention_norm=self.norm1,
            intermediate=inner,
            activation=mlp.activation,
            output=outer,
            output_dropout=None,
            output_norm=self.norm2,
            attention_scale=self.layer_scale1,
            output_scale=self.layer_scale2,
        )


class Dinov2ImageClassifier(ImageModel):
    """One linear layer over the class token and the mean of the patches, side by side."""

    def __init__(self, encoder: Encoder, labels: Sequence[str]) -> None:
        super().__init__(encoder, labels)
        self.classifier = nn.Linear(2 * self.config.hidden_size, len(self.labels))

    def logits(self, hidden: Tensor) -> Tensor:
        return self.classifier(torch.cat((hidden[:, 0], hidden[:, 1:].mean(1)), dim=1))  # (B, L)

    def onnx(self, graph: GraphBuilder, hidden: str, input_ids: str, mask: str) -> str:
        bounds = (graph.constant([number]) for number in (1, self.base_model.image_tokens, 1))
        patches = graph.op("ReduceMean", graph.op("Slice", hidden, *bounds), graph.constant([1]), keepdims=0)
        return graph.label_layer(graph.op("Concat", graph.tokens(hidden, 0), patches, axis=1), self.classifier)


class Dinov2Model(ViTModel):
    """The encoder without a head."""

    config_class = Dinov2Config
    layer_class = Dinov2Layer
    base_model_prefix = "dinov2"
    architecture_stem = "Dinov2"
    heads = (Dinov2ImageClassifier,)
    has_pooler = False
    name_in_transformers_5 = staticmethod(to_dinov2_name)

    def draw(self, module: nn.Module, parameter: Tensor, generator: torch.Generator) -> None:
        """Scales begin as the config says; the rest as in ViT."""
        if isinstance(module, LayerScale):
            parameter.fill_(self.config.layerscale_value)
        else:
            super().draw(module, parameter, generator)
