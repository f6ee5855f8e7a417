"""Encoders that start from nothing: word embeddings and an LSTM (Hochreiter and Schmidhuber 1997).

Two families, `lstm` (left to right) and `bilstm-attention` (both directions; its text classifier pools by attention).
Their sequences are packed, so padding is neither computed nor seen.

Shapes: B texts, T tokens (padded), E embedding size, H hidden size, L labels.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from lora_core.dropout import Dropout
from lora_core.models.checks import check_input
from lora_core.models.encoder import Encoder, EncoderConfig
from lora_core.models.heads import AttentionPooling, TokenClassifier
from lora_core.models.layers import PackedLSTM, real_tokens
from lora_core.models.task_model import ClassifierHead

Config = TypeVar("Config", bound="LSTMConfig")


@dataclass(frozen=True)
class LSTMConfig(EncoderConfig):
    """Sizes of a left-to-right encoder."""

    model_type = "lstm"
    activation_field = None
    hidden_dropout_field = "hidden_dropout_prob"
    directions: ClassVar[int] = 1

    vocab_size: int = 30000
    """Rows of the word embeddings."""
    embedding_size: int = 256
    """Width E of the word embeddings."""
    hidden_size: int = 256
    """Width H of the hidden states, both directions together."""
    num_hidden_layers: int = 1
    """LSTM layers, each over the one before."""
    hidden_dropout_prob: float = 0.3
    """Dropout after the embeddings, between the layers, and before the classifier."""
    max_tokens: int = 512
    """Longest input. The LSTM itself has no limit."""
    initializer_range: float = 0.1
    """Standard deviation of new embeddings and linear layers."""
    pad_token_id: int = 0
    """Id of the padding token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.directions:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of {self.directions} directions")

    @property
    def head_dropout(self) -> float:
        """Dropout before the classifier."""
        return self.hidden_dropout_prob

    def with_dropout(self: Config, *, attention: float | None, hidden: float | None) -> Config:
        """Return a copy with another hidden dropout; None keeps the present one.

        Raises:
            ValueError: a dropout of attention weights, which there are none of.
        """
        if attention:
            raise ValueError(f"attention_dropout is {attention}, but {self.model_type} models have no attention layers")
        return self if hidden is None else dataclasses.replace(self, hidden_dropout_prob=hidden)


@dataclass(frozen=True)
class BiLSTMConfig(LSTMConfig):
    """Sizes of an encoder in both directions, each of half the hidden size."""

    model_type = "bilstm-attention"
    directions: ClassVar[int] = 2


class WordEmbeddings(nn.Module):
    """Word embeddings and dropout."""

    def __init__(self, vocab_size: int, embedding_size: int, pad_token_id: int, dropout: float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, embedding_size, padding_idx=pad_token_id)
        self.dropout = Dropout(dropout)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.dropout(self.word_embeddings(input_ids))  # (B, T, E)


class LastToken(ClassifierHead):
    """One linear layer over the last real token, which a left-to-right encoder has seen the whole text at."""

    def __init__(self, hidden_size: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.out_proj = nn.Linear(hidden_size, num_labels)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None, input_ids: Tensor | None) -> Tensor:
        real = real_tokens(hidden, attention_mask)  # (B, T)
        places = torch.arange(hidden.shape[1], device=hidden.device)
        last = (real * places).amax(1)  # (B,)
        rows = torch.arange(len(hidden), device=hidden.device)
        return self.out_proj(self.dropout(hidden[rows, last]))


class BiLSTMAttention(AttentionPooling):
    """Attention pooling as the family's own head."""

    head_kind = "default"
    architecture_suffix = ClassifierHead.architecture_suffix


class LSTMModel(Encoder):
    """The left-to-right encoder without a head."""

    config_class = LSTMConfig
    base_model_prefix = "lstm"
    architecture_stem = "LSTM"
    heads = (TokenClassifier, LastToken)
    first_token_sees_all = False

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(config)
        self.embeddings = WordEmbeddings(
            config.vocab_size, config.embedding_size, config.pad_token_id, config.hidden_dropout_prob
        )
        self.encoder = PackedLSTM(
            config.embedding_size,
            config.hidden_size // config.directions,
            num_layers=config.num_hidden_layers,
            bidirectional=config.directions == 2,
            dropout=config.hidden_dropout_prob,
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: None = None) -> Tensor:
        """Return the last layer's outputs (B, T, H), 0 at padding.

        `input_ids` are (B, T) ids of the vocabulary; `attention_mask` (B, T) is nonzero or True at real tokens, which
        stand first (None: all are real).

        Raises:
            ValueError: T exceeds `config.max_tokens`, padding stands before a token, or token_type_ids are given.
        """
        if token_type_ids is not None:
            raise ValueError("token_type_ids were given, but an LSTM has no segments; leave them out")
        check_input(input_ids, attention_mask, self.config.max_tokens)
        return self.encoder(self.embeddings(input_ids), attention_mask)[0]


class BiLSTMModel(LSTMModel):
    """The encoder in both directions without a head."""

    config_class = BiLSTMConfig
    base_model_prefix = "bilstm"
    architecture_stem = "BiLSTM"
    heads = (TokenClassifier, BiLSTMAttention)
