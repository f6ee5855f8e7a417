"""ModernBERT (Warner et al. 2024, https://arxiv.org/abs/2412.13663), and mmBERT, Ettin and gte-modernbert, which share
its model_type: the encoder, under its checkpoints' names.

Positions turn queries and keys (rotary.py). Some layers attend to the whole text, the others to a window around each
token.

Shapes: B sentences, T tokens (padded), H hidden size, N attention heads, D = H / N, F intermediate size, L labels.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lora_core.dropout import Dropout
from lora_core.models.checks import check_input
from lora_core.models.encoder import Encoder, EncoderConfig
from lora_core.models.layers import (
    ACTIVATIONS,
    MASKED,
    MICROSOFT,
    OUTSIDE,
    GatedActivation,
    GraphBuilder,
    LayerParts,
    LayerStack,
    MultiHeadAttention,
    TransformerLayer,
    activation,
    additive_mask,
    outside_window,
    real_tokens,
    windowed_attention,
)
from lora_core.models.rotary import onnx_rotate, onnx_rotation, rotate, rotation
from lora_core.models.task_model import TextModel

FULL, SLIDING = "full_attention", "sliding_attention"
"""Kinds of layers, as config.json names them."""
EVERY_N_LAYERS = 3
"""Every so manyth layer attends to the whole text, where config.json does not say."""
BLOCKS = 5
"""Texts longer than this times the window are attended to in blocks; in shorter ones a mask over all pairs is faster.
"""


@dataclass(frozen=True)
class ModernBertConfig(EncoderConfig):
    """Sizes of a ModernBERT encoder; the defaults are ModernBERT-base."""

    model_type = "modernbert"
    activation_field = "hidden_activation"
    attention_dropout_field = "attention_dropout"
    hidden_dropout_field = "mlp_dropout"
    above_one: ClassVar[frozenset[str]] = frozenset(
        {"global_rope_theta", "local_rope_theta", "initializer_cutoff_factor"}
    )

    vocab_size: int = 50368
    """Rows of the word embeddings."""
    hidden_size: int = 768
    """Width H of the hidden states."""
    intermediate_size: int = 1152
    """Width F of the feed-forward layers, after their gate."""
    num_hidden_layers: int = 22
    """Transformer layers."""
    num_attention_heads: int = 12
    """Attention heads a layer; divides hidden_size."""
    hidden_activation: str = "gelu"
    """Activation of the feed-forward layers."""
    max_position_embeddings: int = 8192
    """Longest input, special tokens included."""
    layer_types: tuple[str, ...] | None = None
    """"full_attention" or "sliding_attention" for each layer; None: every third from the first is full."""
    local_attention: int = 128
    """Tokens that a sliding layer attends to, half of them on either side."""
    global_rope_theta: float = 160_000.0
    """Base of the rotation's wavelengths in full layers."""
    local_rope_theta: float = 10_000.0
    """The same in sliding layers."""
    norm_eps: float = 1e-5
    """Added to the variance in each LayerNorm."""
    norm_bias: bool = False
    """Whether norms have a bias."""
    attention_bias: bool = False
    """Whether the attention's linear layers have a bias."""
    mlp_bias: bool = False
    """Whether the feed-forward layers have a bias."""
    embedding_dropout: float = 0.0
    """Dropout after the embeddings."""
    attention_dropout: float = 0.0
    """Dropout of the attention weights, and after the attention's output projection."""
    mlp_dropout: float = 0.0
    """Dropout after the gate of the feed-forward layers."""
    classifier_pooling: Literal["cls", "mean"] = "cls"
    """What the text classifier reads: the first token, or the mean of all."""
    classifier_activation: str = "gelu"
    """Activation of the heads' dense layer."""
    classifier_bias: bool = False
    """Whether that layer has a bias."""
    classifier_dropout: float = 0.0
    """Dropout before the classifier."""
    initializer_range: float = 0.02
    """Standard deviation of new weights."""
    initializer_cutoff_factor: float | None = 2.0
    """Standard deviations at which new weights are cut off; None: 3."""
    pad_token_id: int = 50283
    """Id of the padding token."""
    bos_token_id: int | None = 50281
    """Id of the token before a text; this and the next three are kept for those who read the saved model."""
    eos_token_id: int | None = 50282
    """Id of the token after a text."""
    cls_token_id: int | None = 50281
    """Id of the first token."""
    sep_token_id: int | None = 50282
    """Id of the token between texts."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModernBertConfig":
        """As for all families, from the fields of transformers 4 (`global_attn_every_n_layers` and two thetas) or 5
        (`layer_types` and `rope_parameters`). `position_embedding_type` has no meaning here: mmBERT says "sans_pos".
        """
        found = {name: value for name, value in values.items() if name != "position_embedding_type"}
        _check_rotation("rope_scaling", values.get("rope_scaling"))
        thetas = _thetas(values)
        found |= thetas
        layers, every = values.get("num_hidden_layers", cls.num_hidden_layers), values.get("global_attn_every_n_layers")
        if isinstance(values.get("layer_types"), list):
            found["layer_types"] = tuple(values["layer_types"])
        elif every is not None and isinstance(layers, int):
            found["layer_types"] = layer_types(layers, every)
        unset = {name for name in thetas if found[name] is None}
        return super().from_dict({name: value for name, value in found.items() if name not in unset})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer_types is None:
            object.__setattr__(self, "layer_types", layer_types(self.num_hidden_layers, EVERY_N_LAYERS))
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} is not an even multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        kinds = self.kinds
        if len(kinds) != self.num_hidden_layers or not {*kinds} <= {FULL, SLIDING}:
            raise ValueError(
                f"layer_types is {list(kinds)}; expected {FULL} or {SLIDING} for each of the {self.num_hidden_layers} "
                "layers"
            )
        if self.classifier_activation not in ACTIVATIONS:
            raise ValueError(
                f"classifier_activation is {self.classifier_activation!r}; implemented are {', '.join(ACTIVATIONS)}"
            )

    def with_dropout(self, *, attention: float | None, hidden: float | None) -> "ModernBertConfig":
        config = super().with_dropout(attention=attention, hidden=hidden)
        return config if hidden is None else dataclasses.replace(config, embedding_dropout=hidden)

    @property
    def kinds(self) -> tuple[str, ...]:
        """`layer_types`, filled in."""
        assert self.layer_types is not None
        return self.layer_types

    @property
    def window(self) -> int:
        """Tokens that a sliding layer attends to on either side of each."""
        return self.local_attention // 2

    @property
    def max_tokens(self) -> int:
        """Longest input, special tokens included."""
        return self.max_position_embeddings

    @property
    def head_dropout(self) -> float:
        """Dropout before the classifier."""
        return self.classifier_dropout


def layer_types(layers: int, every: int) -> tuple[str, ...]:
    """The kind of each layer, where every so manyth from the first attends to the whole text.

    Raises:
        ValueError: `every` is no number of layers.
    """
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"global_attn_every_n_layers is {every!r}; expected a whole number of at least 1")
    return tuple(SLIDING if number % every else FULL for number in range(layers))


def _thetas(values: Mapping[str, Any]) -> dict[str, Any]:
    """The two thetas that a config.json states, in its old fields or its new one.

    Raises:
        ValueError: it states more of the angles than is implemented.
    """
    rotations = values.get("rope_parameters") or {}
    if not isinstance(rotations, Mapping) or not rotations.keys() <= {FULL, SLIDING}:
        raise ValueError(f"rope_parameters is {rotations!r}; expected those of {FULL} and of {SLIDING}, and no others")
    found = {}
    for kind, field in ((FULL, "global_rope_theta"), (SLIDING, "local_rope_theta")):
        rotation = rotations.get(kind) or {}
        _check_rotation(f"rope_parameters[{kind!r}]", rotation)
        found[field] = rotation.get("rope_theta", values.get(field))
    return found


def _check_rotation(name: str, rotation: Any) -> None:
    """Refuse angles that are scaled for longer texts."""
    settings = {} if rotation is None else rotation
    if isinstance(settings, Mapping):
        usual = {"rope_theta": settings.get("rope_theta"), "rope_type": "default", "type": "default"}
        if all(name in usual and value == usual[name] for name, value in settings.items()):
            return
    raise ValueError(f"{name} is {rotation}; implemented is only the rope_type 'default', without more settings")


class ModernBertEmbeddings(nn.Module):
    """Word embeddings, normalised; positions enter in the attention."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
        self.drop = Dropout(config.embedding_dropout)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.drop(self.norm(self.tok_embeddings(input_ids)))  # (B, T, H)


class ModernBertAttention(MultiHeadAttention):
    """Multi-head attention with its output projection.

    All layers share the rotations of full and of sliding ones, (2, T, D / 2) each, and what is added to the scores
    outside the window, (T, T), or nothing, (0,), where that makes no difference or is computed in blocks.

    Args:
        window: tokens on either side that are attended to; None: all.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float, bias: bool, window: int | None) -> None:
        super().__init__(num_heads, dropout)
        self.window = window
        self.Wqkv = nn.Linear(hidden_size, 3 * hidden_size, bias=bias)
        self.Wo = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.out_drop = Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor | None, *shared: Tensor) -> Tensor:
        query, key, value = self.Wqkv(hidden).chunk(3, -1)  # (B, T, H) each
        return self.out_drop(self.Wo(self.attend(query, key, value, mask, *shared)))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *shared: Tensor) -> Tensor:
        full, sliding, outside = shared
        by = full if self.window is None else sliding
        query, key = rotate(query, by), rotate(key, by)
        if self.window is not None and in_blocks(query.shape[1], self.window):
            dropout_p = self.dropout.p if self.dropout.training else 0.0
            return windowed_attention(query, key, value, mask, self.num_heads, dropout_p, self.window)
        if self.window is not None and len(outside):
            mask = outside if mask is None else mask + outside
        return super().attend(query, key, value, mask)

    def onnx(self, graph: GraphBuilder, x: str, query_key_value: Sequence[nn.Module], mask: str, *shared: str) -> str:
        *rotations, outside = shared
        by = rotations[:2] if self.window is None else rotations[2:]
        query, key, value = (f"{graph.path(self)}.{part}" for part in ("query", "key", "value"))
        graph.op("Split", graph.dense(x, self.Wqkv), outputs=[query, key, value], axis=-1, num_outputs=3)
        query, key = (onnx_rotate(graph, part, (by[0], by[1])) for part in (query, key))
        inputs = [query, key, value, "", mask, *([] if self.window is None else [outside])]
        options = {"num_heads": self.num_heads, "mask_filter_value": MASKED}
        return graph.op("MultiHeadAttention", *inputs, domain=MICROSOFT, **options)


def in_blocks(tokens: int, window: int) -> bool:
    """Whether texts of so many tokens are attended to in blocks."""
    return window > 0 and tokens > BLOCKS * window


class ModernBertMLP(nn.Module):
    """Feed-forward layers of which one half gates the other."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        hidden_size, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.Wi = nn.Linear(hidden_size, 2 * inner, bias=bias)
        self.act = GatedActivation(activation(config.hidden_activation), config.mlp_dropout)
        self.Wo = nn.Linear(inner, hidden_size, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.Wo(self.act(self.Wi(hidden)))


class ModernBertLayer(TransformerLayer):
    """One transformer layer, normalised before each half; the first one's input is normalised already."""

    norm_first = True

    def __init__(self, config: ModernBertConfig, number: int) -> None:
        super().__init__()
        size, eps, bias = config.hidden_size, config.norm_eps, config.norm_bias
        window = config.window if config.kinds[number] == SLIDING else None
        self.attn_norm = nn.LayerNorm(size, eps=eps, bias=bias) if number else nn.Identity()
        self.attn = ModernBertAttention(
            size, config.num_attention_heads, config.attention_dropout, config.attention_bias, window
        )
        self.mlp_norm = nn.LayerNorm(size, eps=eps, bias=bias)
        self.mlp = ModernBertMLP(config)

    def forward(self, hidden: Tensor, mask: Tensor | None, *shared: Tensor) -> Tensor:
        attended = hidden + self.attn(self.attn_norm(hidden), mask, *shared)  # (B, T, H)
        return attended + self.mlp(self.mlp_norm(attended))

    def parts(self) -> LayerParts:
        return LayerParts(
            attention=self.attn,
            query_key_value=(self.attn.Wqkv,),
            attention_output=self.attn.Wo,
            attention_output_dropout=self.attn.out_drop,
            attention_norm=self.attn_norm,
            intermediate=self.mlp.Wi,
            activation=self.mlp.act,
            output=self.mlp.Wo,
            output_dropout=None,
            output_norm=self.mlp_norm,
        )


class ModernBertPredictionHead(nn.Module):
    """Dense layer, activation and norm that pretraining made for masked words; both classifiers begin with it."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.classifier_bias)
        self.act = activation(config.classifier_activation)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(self.act(self.dense(hidden)))

    def onnx(self, graph: GraphBuilder, hidden: str) -> str:
        """`forward` as a graph."""
        return graph.normalise(graph.activate(graph.dense(hidden, self.dense), self.act), self.norm)


class ModernBertClassifier(TextModel):
    """The pretrained head, then one linear layer. Base of both."""

    pretrained_names = ("head",)

    def __init__(self, encoder: Encoder, labels: Sequence[str]) -> None:
        super().__init__(encoder, labels)
        self.head = ModernBertPredictionHead(self.config)
        self.drop = Dropout(self.config.classifier_dropout)
        self.classifier = nn.Linear(self.config.hidden_size, len(self.labels))

    def draw(self, module: nn.Module, parameter: Tensor, generator: torch.Generator) -> None:
        if module is self.classifier:
            _draw_cut_off(parameter, self.config.hidden_size**-0.5, self.config, generator)
        elif module is self.head.dense:
            _draw_cut_off(parameter, _end_of_residual(self.config), self.config, generator)
        else:
            super().draw(module, parameter, generator)


class ModernBertTokenClassifier(ModernBertClassifier):
    """One label for each token."""

    task = "token-classification"
    architecture_suffix = "ForTokenClassification"

    def logits(self, hidden: Tensor, attention_mask: Tensor | None = None, input_ids: Tensor | None = None) -> Tensor:
        return self.classifier(self.drop(self.head(hidden)))  # (B, T, L)

    def onnx(self, graph: GraphBuilder, hidden: str, input_ids: str, mask: str) -> str:
        return graph.label_layer(self.head.onnx(graph, hidden), self.classifier)


class ModernBertTextClassifier(ModernBertClassifier):
    """One label for a text, from its first token or the mean of all, as the config says."""

    task = "text-classification"
    architecture_suffix = "ForSequenceClassification"

    def __init__(self, encoder: Encoder, labels: Sequence[str]) -> None:
        super().__init__(encoder, labels)
        self.tokens_read = 1 if self.config.classifier_pooling == "cls" else None

    def logits(self, hidden: Tensor, attention_mask: Tensor | None = None, input_ids: Tensor | None = None) -> Tensor:
        if self.tokens_read is not None:
            pooled = hidden[:, 0]
        else:
            real = real_tokens(hidden, attention_mask)[..., None].to(hidden.dtype)  # (B, T, 1)
            pooled = (hidden * real).sum(1) / real.sum(1).clamp(min=1)
        return self.classifier(self.drop(self.head(pooled)))  # (B, L)

    def onnx(self, graph: GraphBuilder, hidden: str, input_ids: str, mask: str) -> str:
        if self.tokens_read is None:
            real = graph.op("Unsqueeze", graph.cast(mask, np.float32), graph.constant([2]))  # (B, T, 1)
            total = graph.op("ReduceSum", graph.op("Mul", hidden, real), graph.constant([1]), keepdims=0)
            count = graph.op("ReduceSum", real, graph.constant([1]), keepdims=0)
            hidden = graph.op("Div", total, graph.op("Max", count, graph.constant(1, np.float32)))
        return graph.label_layer(self.head.onnx(graph, hidden), self.classifier)


class ModernBertModel(Encoder):
    """The encoder without a head."""

    config_class = ModernBertConfig
    base_model_prefix = "model"
    architecture_stem = "ModernBert"
    heads = (ModernBertTokenClassifier, ModernBertTextClassifier)
    other_heads = Encoder.other_heads | {"head", "decoder"}

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__(config)
        self.embeddings = ModernBertEmbeddings(config)
        self.layers = LayerStack(ModernBertLayer(config, number) for number in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: None = None) -> Tensor:
        """Return the last hidden state (B, T, H).

        `input_ids` are (B, T) ids of the vocabulary; `attention_mask` (B, T) is nonzero or True at real
        tokens (None: all are real).

        Raises:
            ValueError: T exceeds `config.max_tokens`, or token_type_ids are given.
        """
        if token_type_ids is not None:
            raise ValueError("token_type_ids were given, but ModernBERT has no segments; leave them out")
        check_input(input_ids, attention_mask, self.config.max_tokens)
        hidden = self.embeddings(input_ids)  # (B, T, H)
        hidden = self.layers(hidden, additive_mask(attention_mask, hidden.dtype), *self._shared(hidden))
        return self.final_norm(hidden)

    def _shared(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `ModernBertAttention` takes as `shared`."""
        tokens, window, device = hidden.shape[1], self.config.window, hidden.device
        full, sliding = (rotation(tokens, size, theta, device) for size, theta in self._rotations())
        if tokens <= window + 1 or in_blocks(tokens, window):
            return full, sliding, hidden.new_zeros(0)
        return full, sliding, outside_window(tokens, window, hidden.dtype, device)

    def _rotations(self) -> tuple[tuple[int, float], tuple[int, float]]:
        """Size of a head and theta, of full layers and of sliding ones."""
        size = self.config.hidden_size // self.config.num_attention_heads
        return (size, self.config.global_rope_theta), (size, self.config.local_rope_theta)

    def norm_after_layers(self) -> nn.Module:
        return self.final_norm

    def draw(self, module: nn.Module, parameter: Tensor, generator: torch.Generator) -> None:
        """Normal and cut off; narrower for the layers that end in a residual sum, as transformers draws them."""
        ends = [end for layer in self.layers for end in (layer.get_submodule("attn.Wo"), layer.get_submodule("mlp.Wo"))]
        last = any(module is end for end in ends)
        deviation = _end_of_residual(self.config) if last else self.config.initializer_range
        _draw_cut_off(parameter, deviation, self.config, generator)

    def onnx_embeddings(self, graph: GraphBuilder, inputs: str) -> str:
        rows = graph.op("Gather", graph.parameter(self.embeddings.tok_embeddings), inputs)
        return graph.normalise(rows, self.embeddings.norm)

    def onnx_shared(self, graph: GraphBuilder, inputs: str) -> tuple[str, ...]:
        """Two rotations of two tables each, and what is added outside the window, (1, 1, T, T)."""
        length = graph.op("Squeeze", graph.op("Shape", inputs, start=1, end=2), graph.constant([0]))
        full, sliding = (onnx_rotation(graph, length, size, theta) for size, theta in self._rotations())
        places = graph.op("Range", graph.constant(0), length, graph.constant(1))
        distance = graph.op("Abs", graph.op("Sub", places, graph.op("Unsqueeze", places, graph.constant([1]))))
        outside = graph.cast(graph.op("Greater", distance, graph.constant(self.config.window)), np.float32)
        outside = graph.op("Mul", outside, graph.constant(OUTSIDE, np.float32))
        return *full, *sliding, graph.op("Unsqueeze", outside, graph.constant([0, 1]))


def _end_of_residual(config: ModernBertConfig) -> float:
    """Standard deviation of new weights of the layers that end in a residual sum, and of the head's dense layer."""
    return config.initializer_range / math.sqrt(2 * config.num_hidden_layers)


def _draw_cut_off(parameter: Tensor, deviation: float, config: ModernBertConfig, generator: torch.Generator) -> None:
    limit = (config.initializer_cutoff_factor or 3) * deviation
    nn.init.trunc_normal_(parameter, 0, deviation, -limit, limit, generator=generator)
