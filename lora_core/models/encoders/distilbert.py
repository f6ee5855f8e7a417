"""DistilBERT (Sanh et al. 2019, https://arxiv.org/abs/1910.01108): the encoder, under its checkpoints' names.

Shapes: B sentences, T tokens (padded), H hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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

LAYER_NORM_EPS = 1e-12


@dataclass(frozen=True)
class DistilBertConfig(EncoderConfig):
    """Sizes of a DistilBERT encoder; the defaults are distilbert-base-uncased."""

    model_type = "distilbert"
    activation_field = "activation"
    attention_dropout_field = "attention_dropout"
    hidden_dropout_field = "dropout"

    vocab_size: int = 30522
    """Rows of the word embeddings."""
    dim: int = 768
    """Width H of the hidden states."""
    n_layers: int = 6
    """Transformer layers."""
    n_heads: int = 12
    """Attention heads a layer; divides dim."""
    hidden_dim: int = 3072
    """Width of the feed-forward layers."""
    activation: str = "gelu"
    """Activation of the feed-forward layers."""
    dropout: float = 0.1
    """Dropout after the embeddings and the feed-forward layers, and before the token classifier."""
    attention_dropout: float = 0.1
    """Dropout of the attention weights."""
    seq_classif_dropout: float = 0.2
    """Dropout before the text classifier."""
    max_position_embeddings: int = 512
    """Rows of the position embeddings."""
    initializer_range: float = 0.02
    """Standard deviation of new weights."""
    pad_token_id: int = 0
    """Id of the padding token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % self.n_heads:
            raise ValueError(f"dim {self.dim} is not a multiple of n_heads {self.n_heads}")

    @property
    def hidden_size(self) -> int:
        """`dim`, by the name that the other families use."""
        return self.dim

    @property
    def num_hidden_layers(self) -> int:
        """`n_layers`, by the name that the other families use."""
        return self.n_layers

    @property
    def num_attention_heads(self) -> int:
        """`n_heads`, by the name that the other families use."""
        return self.n_heads

    @property
    def max_tokens(self) -> int:
        """Longest input, special tokens included."""
        return self.max_position_embeddings

    @property
    def head_dropout(self) -> float:
        """Dropout before the token classifier."""
        return self.dropout


class Embeddings(nn.Module):
    """Word + position embeddings, normalised."""

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: int,
        max_position_embeddings: int,
        pad_token_id: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, hidden_size, padding_idx=pad_token_id)
        self.position_embeddings = nn.Embedding(max_position_embeddings, hidden_size)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(dropout)

    def forward(self, input_ids: Tensor) -> Tensor:
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)  # (T,)
        summed = self.word_embeddings(input_ids) + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(summed))  # (B, T, H)

    def onnx(self, graph: GraphBuilder, ids: str) -> str:
        """`forward` as a graph."""
        return graph.embed(ids, self.word_embeddings, [self.position_embeddings], self.LayerNorm)


class SelfAttention(MultiHeadAttention):
    """Multi-head attention with its output projection."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__(num_heads, dropout)
        self.q_lin = nn.Linear(hidden_size, hidden_size)
        self.k_lin = nn.Linear(hidden_size, hidden_size)
        self.v_lin = nn.Linear(hidden_size, hidden_size)
        self.out_lin = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return self.out_lin(self.attend(self.q_lin(hidden), self.k_lin(hidden), self.v_lin(hidden), mask))


class FeedForward(nn.Module):
    """The two dense layers of the second half."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation_name: str, dropout: float) -> None:
        super().__init__()
        self.lin1 = nn.Linear(hidden_size, intermediate_size)
        self.activation = activation(activation_name)
        self.lin2 = nn.Linear(intermediate_size, hidden_size)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.dropout(self.lin2(self.activation(self.lin1(hidden))))


class TransformerBlock(TransformerLayer):
    """One transformer layer, normalised after each residual sum; no dropout on the attention's output."""

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        activation_name: str,
        hidden_dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(hidden_size, num_heads, attention_dropout)
        self.sa_layer_norm = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
        self.ffn = FeedForward(hidden_size, intermediate_size, activation_name, hidden_dropout)
        self.output_layer_norm = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        attended = self.sa_layer_norm(self.attention(hidden, mask) + hidden)  # (B, T, H)
        return self.output_layer_norm(self.ffn(attended) + attended)

    def parts(self) -> LayerParts:
        return LayerParts(
            attention=self.attention,
            query_key_value=(self.attention.q_lin, self.attention.k_lin, self.attention.v_lin),
            attention_output=self.attention.out_lin,
            attention_output_dropout=None,
            attention_norm=self.sa_layer_norm,
            intermediate=self.ffn.lin1,
            activation=self.ffn.activation,
            output=self.ffn.lin2,
            output_dropout=self.ffn.dropout,
            output_norm=self.output_layer_norm,
        )


class DistilBertTextClassifier(TextModel):
    """Two linear layers over the first token, with ReLU and dropout between."""

    task = "text-classification"
    architecture_suffix = "ForSequenceClassification"
    head_names = ("pre_classifier", "classifier")
    tokens_read = 1

    def __init__(self, encoder: Encoder, labels: Sequence[str]) -> None:
        super().__init__(encoder, labels)
        self.pre_classifier = nn.Linear(self.config.hidden_size, self.config.hidden_size)
        self.dropout = Dropout(self.config.seq_classif_dropout)
        self.classifier = nn.Linear(self.config.hidden_size, len(self.labels))

    def logits(self, hidden: Tensor, attention_mask: Tensor | None = None, input_ids: Tensor | None = None) -> Tensor:
        pooled = torch.relu(self.pre_classifier(hidden[:, 0]))  # (B, H)
        return self.classifier(self.dropout(pooled))  # (B, L)

    def onnx(self, graph: GraphBuilder, hidden: str, input_ids: str, mask: str) -> str:
        return graph.label_layer(graph.op("Relu", graph.dense(hidden, self.pre_classifier)), self.classifier)


class DistilBertModel(Encoder):
    """The encoder without a head."""

    config_class = DistilBertConfig
    base_model_prefix = "distilbert"
    architecture_stem = "DistilBert"
    heads = (TokenClassifier, DistilBertTextClassifier)
    other_heads = Encoder.other_heads | {
        "vocab_transform",
        "vocab_layer_norm",
        "vocab_projector",
    }

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            max_position_embeddings=config.max_position_embeddings,
            pad_token_id=config.pad_token_id,
            dropout=config.dropout,
        )
        layers = LayerStack(
            TransformerBlock(
                hidden_size=config.dim,
                num_heads=config.n_heads,
                intermediate_size=config.hidden_dim,
                activation_name=config.activation,
                hidden_dropout=config.dropout,
                attention_dropout=config.attention_dropout,
            )
            for _ in range(config.n_layers)
        )
        self.transformer = nn.ModuleDict({"layer": layers})

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: None = None) -> Tensor:
        """Return the last hidden state (B, T, H).

        `input_ids` are (B, T) ids of the vocabulary; `attention_mask` (B, T) is nonzero or True at real
        tokens (None: all are real).

        Raises:
            ValueError: T exceeds `config.max_tokens`, or token_type_ids are given.
        """
        if token_type_ids is not None:
            raise ValueError("token_type_ids were given, but DistilBERT has no segments; leave them out")
        check_input(input_ids, attention_mask, self.config.max_tokens)
        hidden = self.embeddings(input_ids)  # (B, T, H)
        return self.transformer["layer"](hidden, additive_mask(attention_mask, hidden.dtype))

    def onnx_embeddings(self, graph: GraphBuilder, inputs: str) -> str:
        return self.embeddings.onnx(graph, inputs)
