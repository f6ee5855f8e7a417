"""DeBERTa-v2, DeBERTa-v3 (He et al. 2021, https://arxiv.org/abs/2111.09543) and mDeBERTa: BERT's layers with attention
to relative positions (deberta_attention.py), under their checkpoints' names.

Shapes: B sentences, T tokens (padded), E embedding size, H hidden size, R rows of distances, L labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lora_core.dropout import Dropout
from lora_core.models.checks import check_input
from lora_core.models.encoder import Encoder
from lora_core.models.encoders.bert import BertIntermediate, BertLikeConfig, BertOutput
from lora_core.models.encoders.deberta_attention import (
    ROWS,
    DisentangledSelfAttention,
    distance_rows,
    onnx_positions,
)
from lora_core.models.heads import TokenClassifier
from lora_core.models.host import send
from lora_core.models.layers import (
    ACTIVATIONS,
    GraphBuilder,
    LayerParts,
    LayerStack,
    TransformerLayer,
    activation,
    additive_mask,
)
from lora_core.models.task_model import TextModel

POSITION_TERMS = ("c2p", "p2c")
"""Terms of the scores beside content to content: content to position, position to content."""


@dataclass(frozen=True)
class DebertaV2Config(BertLikeConfig):
    """Sizes of a DeBERTa encoder; the defaults are transformers', and describe none of the published models."""

    model_type = "deberta-v2"
    least: ClassVar[Mapping[str, int]] = {
        "pad_token_id": 0,
        "type_vocab_size": 0,
        "max_relative_positions": -1,
        "position_buckets": -1,
    }

    vocab_size: int = 128100
    """Rows of the word embeddings; of published models some more than their tokenizers have tokens."""
    hidden_size: int = 1536
    """Width H of the hidden states."""
    embedding_size: int | None = None
    """Width E of the embeddings; None means hidden_size. Where it is another, a linear layer projects them."""
    num_hidden_layers: int = 24
    """Transformer layers."""
    num_attention_heads: int = 24
    """Attention heads a layer; divides hidden_size."""
    intermediate_size: int = 6144
    """Width of the feed-forward layers."""
    hidden_dropout_prob: float = 0.1
    """Dropout after the embeddings, of the distances' embeddings, and after each dense layer that ends in a sum."""
    max_position_embeddings: int = 512
    """Longest input, and the rows of the position embeddings if there are any."""
    type_vocab_size: int = 0
    """Rows of the token type (segment) embeddings; 0: there are none."""
    layer_norm_eps: float = 1e-7
    """Added to the variance in each LayerNorm."""
    relative_attention: bool = False
    """Whether scores depend on the distance of two tokens."""
    pos_att_type: str | None = None
    """How they do: c2p, p2c, or both with | between."""
    max_relative_positions: int = -1
    """Longest distance that is told from others; below 1: max_position_embeddings."""
    position_buckets: int = -1
    """Groups of distances in each direction, on a logarithmic scale; below 1: each distance stands for itself."""
    share_att_key: bool = False
    """Whether the projections of queries and keys project positions too."""
    norm_rel_ebd: str = "none"
    """"layer_norm" normalises the distances' embeddings."""
    position_biased_input: bool = True
    """Whether position embeddings are added to the words'."""
    pooler_dropout: float = 0.0
    """Dropout before the pooler of the text classifier."""
    pooler_hidden_act: str = "gelu"
    """Activation of the pooler of the text classifier."""
    cls_dropout: float | None = None
    """Dropout before the text classifier; None means hidden_dropout_prob."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DebertaV2Config":
        if values.get("conv_kernel_size"):
            raise ValueError(
                f"conv_kernel_size is {values['conv_kernel_size']!r}, but the convolution of deberta-v2-xlarge and "
                "-xxlarge is not implemented; take a model without it, such as microsoft/deberta-v3-large"
            )
        terms = values.get("pos_att_type")
        if isinstance(terms, (list, tuple)):
            values = {**values, "pos_att_type": "|".join(map(str, terms)) or None}
        config = super().from_dict(values)
        head_size = config.hidden_size // config.num_attention_heads
        for name, supported in (("attention_head_size", head_size), ("pooler_hidden_size", config.hidden_size)):
            if values.get(name, supported) != supported:
                raise ValueError(f"{name} is {values[name]!r}; only {supported!r} is implemented, from hidden_size")
        return config

    def to_dict(self) -> dict[str, Any]:
        """As in the base class; without an embedding size that only repeats hidden_size."""
        values = super().to_dict()
        if values["embedding_size"] is None:
            del values["embedding_size"]
        return values

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [term for term in self.position_terms if term not in POSITION_TERMS]
        if unknown:
            raise ValueError(f"pos_att_type is {self.pos_att_type!r}; implemented are {' and '.join(POSITION_TERMS)}")
        if self.pooler_hidden_act not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"pooler_hidden_act is {self.pooler_hidden_act!r}; implemented are {known}")
        if self.position_buckets > 0 and not 1 <= self.position_buckets // 2 < self.max_distance - 1:
            raise ValueError(
                f"position_buckets is {self.position_buckets}: expected at least 2, and half of them below the longest "
                f"distance, {self.max_distance} (max_relative_positions, or max_position_embeddings)"
            )

    @property
    def position_terms(self) -> tuple[str, ...]:
        """The parts of `pos_att_type`."""
        return tuple(term.strip() for term in (self.pos_att_type or "").lower().split("|") if term.strip())

    @property
    def max_distance(self) -> int:
        """Longest distance that is told from others."""
        return self.max_relative_positions if self.max_relative_positions > 0 else self.max_position_embeddings

    @property
    def position_span(self) -> int:
        """Rows of the distances' embeddings in each direction."""
        return self.position_buckets if self.position_buckets > 0 else self.max_distance

    @property
    def embedding_width(self) -> int:
        """`embedding_size`, where it is not set hidden_size."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    @property
    def head_dropout(self) -> float:
        """Dropout before the token classifier."""
        return self.hidden_dropout_prob


class DebertaV2Embeddings(nn.Module):
    """Word embeddings, with those of positions and token types that the model has, projected and normalised."""

    def __init__(self, config: DebertaV2Config) -> None:
        super().__init__()
        width = config.embedding_width
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.position_embeddings = None
        if config.position_biased_input:
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = None
        if config.type_vocab_size:
            self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.embed_proj = None if width == config.hidden_size else nn.Linear(width, config.hidden_size, bias=False)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        hidden = self.word_embeddings(input_ids)  # (B, T, E)
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        if self.position_embeddings is not None:
            hidden = hidden + self.position_embeddings(places)
        if self.token_type_embeddings is not None:
            types = torch.zeros_like(places) if token_type_ids is None else token_type_ids
            hidden = hidden + self.token_type_embeddings(types)
        if self.embed_proj is not None:
            hidden = self.embed_proj(hidden)  # (B, T, H)
        return self.dropout(self.LayerNorm(hidden))

    def onnx(self, graph: GraphBuilder, ids: str, segments: str = "") -> str:
        """`forward` as a graph; without segments every token has the first."""
        hidden = graph.op("Gather", graph.parameter(self.word_embeddings), ids)
        if self.position_embeddings is not None:
            length = graph.op("Shape", ids, start=1, end=2)
            places = graph.op("Slice", graph.parameter(self.position_embeddings), graph.constant([0]), length)  # (T, E)
            hidden = graph.op("Add", hidden, places)
        if self.token_type_embeddings is not None:
            types = segments or graph.constant([0])
            hidden = graph.op("Add", hidden, graph.op("Gather", graph.parameter(self.token_type_embeddings), types))
        if self.embed_proj is not None:
            hidden = graph.linear(hidden, self.embed_proj)
        return graph.normalise(hidden, self.LayerNorm)


class DebertaV2Attention(nn.Module):
    """First half of a layer."""

    def __init__(self, config: DebertaV2Config) -> None:
        super().__init__()
        terms = config.position_terms
        self.self = DisentangledSelfAttention(
            config.hidden_size,
            config.num_attention_heads,
            config.attention_probs_dropout_prob,
            terms=1 + len(set(terms)),
            to_position=config.relative_attention and "c2p" in terms,
            from_position=config.relative_attention and "p2c" in terms,
            share=config.share_att_key,
            position_dropout=config.hidden_dropout_prob,
        )
        self.output = BertOutput(
            config.hidden_size, config.hidden_size, config.layer_norm_eps, config.hidden_dropout_prob
        )


class DebertaV2Layer(TransformerLayer):
    """One transformer layer, normalised after each residual sum."""

    def __init__(self, config: DebertaV2Config) -> None:
        super().__init__()
        self.attention = DebertaV2Attention(config)
        self.intermediate = BertIntermediate(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.output = BertOutput(
            config.intermediate_size, config.hidden_size, config.layer_norm_eps, config.hidden_dropout_prob
        )

    def forward(self, hidden: Tensor, mask: Tensor | None, *shared: Tensor) -> Tensor:
        attended = self.attention.output(self.attention.self(hidden, mask, *shared), hidden)  # (B, T, H)
        return self.output(self.intermediate(attended), attended)

    def parts(self) -> LayerParts:
        attention, intermediate = self.attention.self, self.intermediate
        attention_output, output = self.attention.output, self.output
        return LayerParts(
            attention=attention,
            query_key_value=(attention.query_proj, attention.key_proj, attention.value_proj),
            attention_output=attention_output.dense,
            attention_output_dropout=attention_output.dropout,
            attention_norm=attention_output.LayerNorm,
            intermediate=intermediate.dense,
            activation=intermediate.intermediate_act_fn,
            output=output.dense,
            output_dropout=output.dropout,
            output_norm=output.LayerNorm,
        )


class DebertaV2Encoder(nn.Module):
    """The layers, and the embeddings of distances that they share."""

    def __init__(self, config: DebertaV2Config) -> None:
        super().__init__()
        self.layer = LayerStack(DebertaV2Layer(config) for _ in range(config.num_hidden_layers))
        self.rel_embeddings = self.LayerNorm = None
        if config.relative_attention:
            self.rel_embeddings = nn.Embedding(2 * config.position_span, config.hidden_size)
        if "layer_norm" in [part.strip() for part in config.norm_rel_ebd.lower().split("|")]:
            self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.span, self.buckets, self.max_distance = config.position_span, config.position_buckets, config.max_distance

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return self.layer(hidden, mask, *self.distances(hidden))

    def rows(self, tokens: int) -> Tensor:
        """The row of each distance from -tokens to tokens, (2 tokens + 1,), on the CPU."""
        return distance_rows(tokens, self.span, self.buckets, self.max_distance)

    def distances(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """The embeddings (1, R, H) of the distances in texts (B, T, H), and each distance's row of them (2 T + 1,)."""
        if self.rel_embeddings is None:
            return ()
        index = self.rows(hidden.shape[1])
        first = int(index[0]) // ROWS * ROWS
        last = min(2 * self.span, -(-(int(index[-1]) + 1) // ROWS) * ROWS)
        rows = self.rel_embeddings(torch.arange(first, last, device=hidden.device)[None])
        rows = rows if self.LayerNorm is None else self.LayerNorm(rows)
        return rows, send(index - first, hidden.device)


class DebertaV2TextClassifier(TextModel):
    """The first token through a pooler, then one linear layer. The pooler belongs to the head: no published encoder has
    it."""

    task = "text-classification"
    architecture_suffix = "ForSequenceClassification"
    head_names = ("pooler", "classifier")
    tokens_read = 1

    def __init__(self, encoder: Encoder, labels: Sequence[str]) -> None:
        super().__init__(encoder, labels)
        config = self.config
        self.pooler = ContextPooler(config.hidden_size, config.pooler_hidden_act, config.pooler_dropout)
        self.dropout = Dropout(config.hidden_dropout_prob if config.cls_dropout is None else config.cls_dropout)
        self.classifier = nn.Linear(config.hidden_size, len(self.labels))

    def logits(self, hidden: Tensor, attention_mask: Tensor | None = None, input_ids: Tensor | None = None) -> Tensor:
        return self.classifier(self.dropout(self.pooler(hidden)))  # (B, L)

    def onnx(self, graph: GraphBuilder, hidden: str, input_ids: str, mask: str) -> str:
        pooled = graph.activate(graph.dense(hidden, self.pooler.dense), self.pooler.activation)
        return graph.label_layer(pooled, self.classifier)


class ContextPooler(nn.Module):
    """Dense layer over the first token, (B, T, H) -> (B, H)."""

    def __init__(self, hidden_size: int, hidden_act: str, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.activation = activation(hidden_act)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.activation(self.dense(self.dropout(hidden[:, 0])))


class DebertaV2Model(Encoder):
    """The encoder without a head."""

    config_class = DebertaV2Config
    base_model_prefix = "deberta"
    architecture_stem = "DebertaV2"
    heads = (TokenClassifier, DebertaV2TextClassifier)
    other_heads = Encoder.other_heads | {"cls", "lm_predictions", "mask_predictions"}

    def __init__(self, config: DebertaV2Config) -> None:
        super().__init__(config)
        self.embeddings = DebertaV2Embeddings(config)
        self.encoder = DebertaV2Encoder(config)
        if self.embeddings.position_embeddings is None:  # a checkpoint may have a table that only pretraining read
            self.unread_tensors = Encoder.unread_tensors | {"embeddings.position_embeddings.weight"}

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Return the last hidden state (B, T, H).

        All arguments are (B, T): ids of the vocabulary; nonzero or True at real tokens (None: all are real);
        segment ids (None: all 0).

        Raises:
            ValueError: T exceeds `config.max_tokens`, or token_type_ids are given to a model without segments.
        """
        check_input(input_ids, attention_mask, self.config.max_tokens)
        if token_type_ids is not None and not self.config.type_vocab_size:
            raise ValueError("token_type_ids were given, but this DeBERTa has no segments (type_vocab_size is 0)")
        hidden = self.embeddings(input_ids, token_type_ids)  # (B, T, H)
        return self.encoder(hidden, additive_mask(attention_mask, hidden.dtype))

    @property
    def segments(self) -> int:
        return max(1, self.config.type_vocab_size)

    def onnx_embeddings(self, graph: GraphBuilder, inputs: str) -> str:
        return self.embeddings.onnx(graph, inputs)

    def onnx_segments(self, graph: GraphBuilder, inputs: str, segments: str) -> str:
        return self.embeddings.onnx(graph, inputs, segments)

    def onnx_shared(self, graph: GraphBuilder, inputs: str) -> tuple[str, ...]:
        table = self.encoder.rel_embeddings
        if table is None:
            return ()
        rows = self.encoder.rows(self.config.max_tokens)
        return (graph.table(table, self.encoder.LayerNorm), *onnx_positions(graph, inputs, rows))
