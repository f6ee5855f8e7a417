"""ALBERT (Lan et al. 2020, https://arxiv.org/abs/1909.11942): one layer that runs twelve times, over narrow embeddings.

What adapts the layer acts in all its runs: one adapter, whose gradient is the sum over them.

Shapes: B sentences, T tokens (padded), E embedding size, H hidden size, F intermediate size, L labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lora_core.dropout import Dropout
from lora_core.models.checks import check_input
from lora_core.models.encoder import Encoder
from lora_core.models.encoders.bert import BertEmbeddings, BertLikeConfig
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
class AlbertConfig(BertLikeConfig):
    """Sizes of an ALBERT encoder; the defaults are transformers' (albert-base-v2 states its own)."""

    model_type = "albert"

    vocab_size: int = 30000
    """Rows of the word embeddings."""
    embedding_size: int = 128
    """Width E of the embeddings, which a linear layer widens to H."""
    hidden_size: int = 4096
    """Width H of the hidden states."""
    num_hidden_layers: int = 12
    """How often the layers run."""
    num_hidden_groups: int = 1
    """Groups of runs with weights of their own; 1 is what is implemented, and what all published models have."""
    inner_group_num: int = 1
    """Layers with weights of their own in each run."""
    num_attention_heads: int = 64
    """Attention heads a layer; divides hidden_size."""
    intermediate_size: int = 16384
    """Width F of the feed-forward layers."""
    hidden_act: str = "gelu_new"
    """Activation of the feed-forward layers."""
    hidden_dropout_prob: float = 0.0
    """Dropout after the embeddings and on the attention's output."""
    attention_probs_dropout_prob: float = 0.0
    """Dropout of the attention weights."""
    classifier_dropout_prob: float = 0.1
    """Dropout before the classifier."""
    type_vocab_size: int = 2
    """Rows of the token type (segment) embeddings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_hidden_groups != 1:
            raise ValueError(f"num_hidden_groups is {self.num_hidden_groups}; only 1 is implemented")

    @property
    def head_dropout(self) -> float:
        """Dropout before the classifier."""
        return self.classifier_dropout_prob


class AlbertAttention(MultiHeadAttention):
    """First half of a layer: attention, its output projection, the residual sum, the norm."""

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__(config.num_attention_heads, config.attention_probs_dropout_prob)
        size = config.hidden_size
        self.query, self.key, self.value, self.dense = (nn.Linear(size, size) for _ in range(4))
        self.output_dropout = Dropout(config.hidden_dropout_prob)
        self.LayerNorm = nn.LayerNorm(size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        attended = self.attend(self.query(hidden), self.key(hidden), self.value(hidden), mask)
        return self.LayerNorm(hidden + self.output_dropout(self.dense(attended)))


class AlbertLayer(TransformerLayer):
    """One transformer layer, normalised after each residual sum; no dropout after its second half."""

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__()
        self.attention = AlbertAttention(config)
        self.ffn = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = activation(config.hidden_act)
        self.ffn_output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.full_layer_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        attended = self.attention(hidden, mask)  # (B, T, H)
        wide = self.activation(self.ffn(attended))  # (B, T, F)
        return self.full_layer_layer_norm(self.ffn_output(wide) + attended)

    def parts(self) -> LayerParts:
        attention = self.attention
        return LayerParts(
            attention=attention,
            query_key_value=(attention.query, attention.key, attention.value),
            attention_output=attention.dense,
            attention_output_dropout=attention.output_dropout,
            attention_norm=attention.LayerNorm,
            intermediate=self.ffn,
            activation=self.activation,
            output=self.ffn_output,
            output_dropout=None,
            output_norm=self.full_layer_layer_norm,
        )


class AlbertTextClassifier(TextModel):
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
        pooled = torch.tanh(self.base_model.get_submodule("pooler")(hidden[:, 0]))  # (B, H)
        return self.classifier(self.dropout(pooled))  # (B, L)

    def onnx(self, graph: GraphBuilder, hidden: str, input_ids: str, mask: str) -> str:
        pooled = graph.op("Tanh", graph.dense(hidden, self.base_model.get_submodule("pooler")))
        return graph.label_layer(pooled, self.classifier)


class AlbertModel(Encoder):
    """The encoder without a head."""

    config_class = AlbertConfig
    base_model_prefix = "albert"
    architecture_stem = "Albert"
    heads = (TokenClassifier, AlbertTextClassifier)
    has_pooler = True
    other_heads = Encoder.other_heads | {"predictions", "sop_classifier"}

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__(config)
        self.embeddings = BertEmbeddings(
            vocab_size=config.vocab_size,
            hidden_size=config.embedding_size,
            max_position_embeddings=config.max_position_embeddings,
            type_vocab_size=config.type_vocab_size,
            pad_token_id=config.pad_token_id,
            layer_norm_eps=config.layer_norm_eps,
            dropout=config.hidden_dropout_prob,
        )
        layers = LayerStack((AlbertLayer(config) for _ in range(config.inner_group_num)), config.num_hidden_layers)
        self.encoder = nn.ModuleDict(
            {
                "embedding_hidden_mapping_in": nn.Linear(config.embedding_size, config.hidden_size),
                "albert_layer_groups": nn.ModuleList([nn.ModuleDict({"albert_layers": layers})]),
            }
        )

    def add_pooler(self) -> None:
        """The pooler is a bare linear layer; the tanh after it is the classifier's."""
        self.pooler = nn.Linear(self.config.hidden_size, self.config.hidden_size)

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
        hidden = self.embeddings(input_ids, token_type_ids)  # (B, T, E)
        hidden = self.encoder["embedding_hidden_mapping_in"](hidden)  # (B, T, H)
        stack = self.layer_stack()
        assert stack is not None
        return stack(hidden, additive_mask(attention_mask, hidden.dtype))

    @property
    def segments(self) -> int:
        return self.config.type_vocab_size

    def onnx_embeddings(self, graph: GraphBuilder, inputs: str) -> str:
        return graph.dense(self.embeddings.onnx(graph, inputs), self.encoder["embedding_hidden_mapping_in"])

    def onnx_segments(self, graph: GraphBuilder, inputs: str, segments: str) -> str:
        embedded = self.embeddings.onnx(graph, inputs, segments)
        return graph.dense(embedded, self.encoder["embedding_hidden_mapping_in"])
