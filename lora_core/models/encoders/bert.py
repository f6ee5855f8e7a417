"""BERT (Devlin et al. 2019, https://arxiv.org/abs/1810.04805): the encoder, under its checkpoints' names.

Shapes: B sentences, T tokens (padded), H hidden size, F intermediate size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lora_core.dropout import Dropout
from lora_core.models.checks import check_input
from lora_core.models.encoder import Encoder, EncoderConfig
from lora_core.models.heads import TokenClassifier
from lora_core.models.layers import (
    GraphBuilder,
    LayerParts,
    LayerStack,
    MultiHeadAttention,
    TransformerLayer,
    activation,
    additive_mask,
)
from lora_core.models.task_model import TextModel


@dataclass(frozen=True)
class BertLikeConfig(EncoderConfig):
    """What the configs of BERT and of its relatives share; the defaults are bert-base-uncased."""

    activation_field = "hidden_act"
    attention_dropout_field = "attention_probs_dropout_prob"
    hidden_dropout_field = "hidden_dropout_prob"

    vocab_size: int = 30522
    """Rows of the word embeddings."""
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
    hidden_dropout_prob: float = 0.1
    """Dropout after the embeddings and after each dense layer that ends in a residual sum."""
    attention_probs_dropout_prob: float = 0.1
    """Dropout of the attention weights."""
    max_position_embeddings: int = 512
    """Rows of the position embeddings."""
    initializer_range: float = 0.02
    """Standard deviation of new weights."""
    layer_norm_eps: float = 1e-12
    """Added to the variance in each LayerNorm."""
    pad_token_id: int = 0
    """Id of the padding token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )

    @property
    def max_tokens(self) -> int:
        """Longest input, special tokens included."""
        return self.max_position_embeddings


@dataclass(frozen=True)
class BertConfig(BertLikeConfig):
    """Sizes of a BERT encoder; the defaults are bert-base-uncased."""

    model_type = "bert"

    type_vocab_size: int = 2
    """Rows of the token type (segment) embeddings."""
    classifier_dropout: float | None = None
    """Dropout before the classifier; None means hidden_dropout_prob."""

    @property
    def head_dropout(self) -> float:
        """Dropout before the classifier."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout


class BertEmbeddings(nn.Module):
    """Word + position + token type embeddings, normalised."""

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: int,
        max_position_embeddings: int,
        type_vocab_size: int,
        pad_token_id: int,
        layer_norm_eps: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.pad_token_id = pad_token_id
        self.word_embeddings = nn.Embedding(vocab_size, hidden_size, padding_idx=pad_token_id)
        self.position_embeddings = nn.Embedding(max_position_embeddings, hidden_size)
        self.token_type_embeddings = nn.Embedding(type_vocab_size, hidden_size)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.dropout = Dropout(dropout)

    def position_ids(self, input_ids: Tensor) -> Tensor:
        """Position of each token, in a shape that broadcasts to (B, T): here 0 to T - 1, (T,)."""
        return torch.arange(input_ids.shape[1], device=input_ids.device)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        position_ids = self.position_ids(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        # The two small terms first: for BERT without segments their sum is (T, H), not (B, T, H).
        place = self.position_embeddings(position_ids) + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(self.word_embeddings(input_ids) + place))  # (B, T, H)

    def onnx_position_ids(self, graph: GraphBuilder, ids: str) -> str:
        """`position_ids` as a graph, (B, T) int32; "": they are 0 to T - 1."""
        return ""

    def onnx(self, graph: GraphBuilder, ids: str, segments: str = "") -> str:
        """`forward` as a graph; without segments every token has the first."""
        places = self.position_embeddings, self.token_type_embeddings
        position_ids = self.onnx_position_ids(graph, ids)
        return graph.embed(ids, self.word_embeddings, places, self.LayerNorm, position_ids, segments)


class BertSelfAttention(MultiHeadAttention):
    """Multi-head attention without its output projection."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__(num_heads, dropout)
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return self.attend(self.query(hidden), self.key(hidden), self.value(hidden), mask)


class BertOutput(nn.Module):
    """End of each half layer: project to H, add the half layer's input, normalise."""

    def __init__(self, in_features: int, hidden_size: int, layer_norm_eps: float, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, hidden_size)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)


class BertAttention(nn.Module):
    """First half of a layer."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        layer_norm_eps: float,
        hidden_dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.self = BertSelfAttention(hidden_size, num_heads, attention_dropout)
        self.output = BertOutput(hidden_size, hidden_size, layer_norm_eps, hidden_dropout)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return self.output(self.self(hidden, mask), hidden)


class BertIntermediate(nn.Module):
    """First dense layer of the second half, H -> F."""

    def __init__(self, hidden_size: int, intermediate_size: int, hidden_act: str) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, intermediate_size)
        self.intermediate_act_fn = activation(hidden_act)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.intermediate_act_fn(self.dense(hidden))


class BertLayer(TransformerLayer):
    """One transformer layer, normalised after each residual sum."""

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        hidden_act: str,
        layer_norm_eps: float,
        hidden_dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.attention = BertAttention(hidden_size, num_heads, layer_norm_eps, hidden_dropout, attention_dropout)
        self.intermediate = BertIntermediate(hidden_size, intermediate_size, hidden_act)
        self.output = BertOutput(intermediate_size, hidden_size, layer_norm_eps, hidden_dropout)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        attended = self.attention(hidden, mask)  # (B, T, H)
        return self.output(self.intermediate(attended), attended)

    def parts(self) -> LayerParts:
        attention, intermediate = self.attention.self, self.intermediate
        attention_output, output = self.attention.output, self.output
        return LayerParts(
            attention=attention,
            query_key_value=(attention.query, attention.key, attention.value),
            attention_output=attention_output.dense,
            attention_output_dropout=attention_output.dropout,
            attention_norm=attention_output.LayerNorm,
            intermediate=intermediate.dense,
            activation=intermediate.intermediate_act_fn,
            output=output.dense,
            output_dropout=output.dropout,
            output_norm=output.LayerNorm,
        )


class BertTextClassifier(TextModel):
    """The encoder's pooler, then one linear layer."""

    task = "text-classification"
    architecture_suffix = "ForSequenceClassification"
    tokens_read = 1

    def __init__(self, encoder: Encoder, labels: Sequence[str]) -> None:
        encoder.add_pooler()
        super().__init__(encoder, labels)
        self.dropout = Dropout(self.config.head_dropout)
        self.classifier = nn.Linear(self.config.hidden_size, len(self.labels))

    def logits(self, hidden: Tensor, attention_mask: Tensor | None = None, input_ids: Tensor | None = None) -> Tensor:
        pooled = self.base_model.get_submodule("pooler")(hidden)  # (B, H)
        return self.classifier(self.dropout(pooled))  # (B, L)

    def onnx(self, graph: GraphBuilder, hidden: str, input_ids: str, mask: str) -> str:
        pooled = graph.op("Tanh", graph.dense(hidden, self.base_model.get_submodule("pooler.dense")))
        return graph.label_layer(pooled, self.classifier)


class BertModel(Encoder):
    """The encoder without a head."""

    config_class = BertConfig
    embeddings_class: ClassVar[type[BertEmbeddings]] = BertEmbeddings
    base_model_prefix = "bert"
    architecture_stem = "Bert"
    heads = (TokenClassifier, BertTextClassifier)
    has_pooler = True
    other_heads = Encoder.other_heads | {"cls"}

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.embeddings = self.embeddings_class(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            max_position_embeddings=config.max_position_embeddings,
            type_vocab_size=config.type_vocab_size,
            pad_token_id=config.pad_token_id,
            layer_norm_eps=config.layer_norm_eps,
            dropout=config.hidden_dropout_prob,
        )
        layers = LayerStack(
            BertLayer(
                hidden_size=config.hidden_size,
                num_heads=config.num_attention_heads,
                intermediate_size=config.intermediate_size,
                hidden_act=config.hidden_act,
                layer_norm_eps=config.layer_norm_eps,
                hidden_dropout=config.hidden_dropout_prob,
                attention_dropout=config.attention_probs_dropout_prob,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.encoder = nn.ModuleDict({"layer": layers})

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Return the last hidden state (B, T, H).

        All arguments are (B, T): ids of the vocabulary; nonzero or True at real tokens (None: all are real);
        segment ids (None: all 0).

        Raises:
            ValueError: T exceeds `config.max_tokens`.
        """
        check_input(input_ids, attention_mask, self.config.max_tokens)
        hidden = self.embeddings(input_ids, token_type_ids)  # (B, T, H)
        return self.encoder["layer"](hidden, additive_mask(attention_mask, hidden.dtype))

    @property
    def segments(self) -> int:
        return self.config.type_vocab_size

    def onnx_embeddings(self, graph: GraphBuilder, inputs: str) -> str:
        return self.embeddings.onnx(graph, inputs)

    def onnx_segments(self, graph: GraphBuilder, inputs: str, segments: str) -> str:
        return self.embeddings.onnx(graph, inputs, segments)
