"""MPNet (Song et al. 2020, https://arxiv.org/abs/2004.09297): BERT's layers with relative positions in the scores,
which all layers share, besides RoBERTa's absolute ones.

Shapes: B sentences, T tokens (padded), Q tokens that ask (T, or fewer), H hidden size, N attention heads, L labels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lora_core.dropout import Dropout
from lora_core.models.checks import check_input
from lora_core.models.encoder import Encoder
from lora_core.models.encoders.bert import BertIntermediate, BertLikeConfig, BertOutput
from lora_core.models.encoders.roberta import (
    RobertaClassificationHead,
    counted_positions,
    onnx_counted_positions,
)
from lora_core.models.heads import TokenClassifier
from lora_core.models.layers import (
    GraphBuilder,
    LayerParts,
    LayerStack,
    MultiHeadAttention,
    TransformerLayer,
    additive_mask,
)

PADDING = 1
"""Id of the padding token. Positions are counted from the number after it."""
BUCKETS, FARTHEST = 32, 128
"""Relative positions are told apart by so many numbers, half for each direction; all from 128 tokens on are one."""


@dataclass(frozen=True)
class MPNetConfig(BertLikeConfig):
    """Sizes of an MPNet encoder; the defaults are mpnet-base."""

    model_type = "mpnet"

    vocab_size: int = 30527
    """Rows of the word embeddings."""
    relative_attention_num_buckets: int = BUCKETS
    """Numbers that tell relative positions apart; 32 is what is implemented, here and in transformers."""
    pad_token_id: int = PADDING
    """Id of the padding token; 1 is what is implemented, here and in transformers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, only in (("pad_token_id", PADDING), ("relative_attention_num_buckets", BUCKETS)):
            if getattr(self, name) != only:
                raise ValueError(f"{name} is {getattr(self, name)}; only {only} is implemented")
        if self.max_tokens < 1:
            raise ValueError(f"max_position_embeddings {self.max_position_embeddings} leaves no position for a token")

    @property
    def max_tokens(self) -> int:
        """Longest input, special tokens included: the rows up to the padding's are never a token's position."""
        return self.max_position_embeddings - PADDING - 1

    @property
    def head_dropout(self) -> float:
        """Dropout before the classifier."""
        return self.hidden_dropout_prob


class MPNetEmbeddings(nn.Module):
    """Word + position embeddings, normalised."""

    def __init__(self, config: MPNetConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=PADDING)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size, PADDING)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor) -> Tensor:
        places = self.position_embeddings(counted_positions(input_ids, PADDING))
        return self.dropout(self.LayerNorm(self.word_embeddings(input_ids) + places))  # (B, T, H)

    def onnx(self, graph: GraphBuilder, ids: str) -> str:
        """`forward` as a graph."""
        position_ids = onnx_counted_positions(graph, ids, PADDING)
        return graph.embed(ids, self.word_embeddings, [self.position_embeddings], self.LayerNorm, position_ids)


class MPNetSelfAttention(MultiHeadAttention):
    """Multi-head attention with its output projection."""

    def __init__(self, config: MPNetConfig) -> None:
        super().__init__(config.num_attention_heads, config.attention_probs_dropout_prob)
        self.q, self.k, self.v, self.o = (nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4))

    def forward(self, hidden: Tensor, mask: Tensor | None, bias: Tensor) -> Tensor:
        return self.o(self.attend(self.q(hidden), self.k(hidden), self.v(hidden), mask, bias))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *shared: Tensor) -> Tensor:
        """As for all; ``shared`` is what is added to the scores, (1, N, T, T)."""
        bias = shared[0][:, :, : query.shape[1]].to(query.dtype)
        return super().attend(query, key, value, bias if mask is None else bias + mask)

    def onnx(self, graph: GraphBuilder, x: str, query_key_value: Sequence[nn.Module], mask: str, *shared: str) -> str:
        return graph.attention(x, query_key_value, self.num_heads, mask, shared[0])


class MPNetAttention(nn.Module):
    """First half of a layer."""

    def __init__(self, config: MPNetConfig) -> None:
        super().__init__()
        self.attn = MPNetSelfAttention(config)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, mask: Tensor | None, bias: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.attn(hidden, mask, bias)) + hidden)


class MPNetLayer(TransformerLayer):
    """One transformer layer, normalised after each residual sum."""

    def __init__(self, config: MPNetConfig) -> None:
        super().__init__()
        sizes = config.intermediate_size, config.hidden_size
        self.attention = MPNetAttention(config)
        self.intermediate = BertIntermediate(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.output = BertOutput(*sizes, config.layer_norm_eps, config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, mask: Tensor | None, bias: Tensor) -> Tensor:
        attended = self.attention(hidden, mask, bias)  # (B, T, H)
        return self.output(self.intermediate(attended), attended)

    def parts(self) -> LayerParts:
        attention = self.attention.attn
        return LayerParts(
            attention=attention,
            query_key_value=(attention.q, attention.k, attention.v),
            attention_output=attention.o,
            attention_output_dropout=self.attention.dropout,
            attention_norm=self.attention.LayerNorm,
            intermediate=self.intermediate.dense,
            activation=self.intermediate.intermediate_act_fn,
            output=self.output.dense,
            output_dropout=self.output.dropout,
            output_norm=self.output.LayerNorm,
        )


class MPNetModel(Encoder):
    """The encoder without a head. Its heads are RoBERTa's."""

    config_class = MPNetConfig
    base_model_prefix = "mpnet"
    architecture_stem = "MPNet"
    heads = (TokenClassifier, RobertaClassificationHead)
    has_pooler = True
    other_heads = Encoder.other_heads | {"lm_head"}

    def __init__(self, config: MPNetConfig) -> None:
        super().__init__(config)
        self.embeddings = MPNetEmbeddings(config)
        self.encoder = nn.ModuleDict(
            {
                "layer": LayerStack(MPNetLayer(config) for _ in range(config.num_hidden_layers)),
                "relative_attention_bias": nn.Embedding(BUCKETS, config.num_attention_heads),
            }
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: None = None) -> Tensor:
        """Return the last hidden state (B, T, H).

        `input_ids` are (B, T) ids of the vocabulary; `attention_mask` (B, T) is nonzero or True at real tokens (None:
        all are real).

        Raises:
            ValueError: T exceeds `config.max_tokens`, or token_type_ids are given.
        """
        if token_type_ids is not None:
            raise ValueError("token_type_ids were given, but MPNet has no segments; leave them out")
        check_input(input_ids, attention_mask, self.config.max_tokens)
        hidden = self.embeddings(input_ids)  # (B, T, H)
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        buckets = relative_buckets(places - places[:, None])  # (T, T)
        bias = self.encoder["relative_attention_bias"](buckets).permute(2, 0, 1)[None]  # (1, N, T, T)
        return self.encoder["layer"](hidden, additive_mask(attention_mask, hidden.dtype), bias)

    def onnx_embeddings(self, graph: GraphBuilder, inputs: str) -> str:
        return self.embeddings.onnx(graph, inputs)

    def onnx_shared(self, graph: GraphBuilder, inputs: str) -> tuple[str, ...]:
        """The bias (1, N, T, T), whose buckets are looked up by distance."""
        most = self.config.max_tokens - 1
        table = graph.constant(relative_buckets(torch.arange(-most, most + 1)).numpy())
        length = graph.op("Squeeze", graph.op("Shape", inputs, start=1, end=2), graph.constant([0]))
        places = graph.op("Range", graph.constant(0), length, graph.constant(1))
        distances = graph.op("Sub", places, graph.op("Unsqueeze", places, graph.constant([1])))  # (T, T)
        buckets = graph.op("Gather", table, graph.op("Add", distances, graph.constant(most)))
        bias = graph.op("Gather", graph.parameter(self.encoder["relative_attention_bias"]), buckets)  # (T, T, N)
        return (graph.op("Unsqueeze", graph.op("Transpose", bias, perm=[2, 0, 1]), graph.constant([0])),)


def relative_buckets(distance: Tensor) -> Tensor:
    """The number of each distance, key's place minus query's (..., int64): 0 to 15 back, 16 to 31 forward.

    Up to 7 tokens each distance has its own; beyond, they are wider the farther away, by the logarithm. Source: T5,
    https://arxiv.org/abs/1910.10683, section 2.1.
    """
    half, exact = BUCKETS // 2, BUCKETS // 4
    away = distance.abs()
    scale = torch.log(away.clamp(min=1).float() / exact) / math.log(FARTHEST / exact)
    wide = (exact + (scale * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(away < exact, away, wide) + half * (distance > 0)
