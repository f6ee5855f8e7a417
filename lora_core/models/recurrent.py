"""Encoders that start from nothing: word embeddings and an LSTM (Hochreiter and Schmidhuber 1997).

Two families, `lstm` (left to right) and `bilstm-attention` (both directions; its text classifier pools by attention).
Their sequences are packed, so padding is neither computed nor seen.

Shapes: B texts, T tokens (padded), E embedding size, H hidden size, S states of one direction.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lora_core.models.config import EncoderConfig
from lora_core.models.layers import Dropout, check_input

Config = TypeVar("Config", bound="LSTMConfig")


@dataclass(frozen=True)
class LSTMConfig(EncoderConfig):
    """Sizes of a left-to-right encoder."""

    model_type: ClassVar[str] = "lstm"
    activation_field: ClassVar[str | None] = None
    hidden_dropout_field: ClassVar[str] = "hidden_dropout_prob"
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

        Raises ValueError for a dropout of attention weights, which there are none of.
        """
        if attention:
            raise ValueError(f"attention_dropout is {attention}, but {self.model_type} models have no attention layers")
        return self if hidden is None else dataclasses.replace(self, hidden_dropout_prob=hidden)


@dataclass(frozen=True)
class BiLSTMConfig(LSTMConfig):
    """Sizes of an encoder in both directions, each of half the hidden size."""

    model_type: ClassVar[str] = "bilstm-attention"
    directions: ClassVar[int] = 2


class PackedLSTM(nn.Module):
    """An LSTM over padded texts that gives what it would give to each text alone."""

    def __init__(
        self, input_size: int, states: int, *, num_layers: int = 1, bidirectional: bool = False, dropout: float = 0.0
    ) -> None:
        between = dropout if num_layers > 1 else 0.0  # torch warns of a dropout that has no layer to follow
        super().__init__()
        self.lstm = nn.LSTM(
            input_size, states, num_layers, batch_first=True, bidirectional=bidirectional, dropout=between
        )

    def forward(self, x: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Outputs of the last layer (B, T, H), 0 at padding, and its final states (B, H), the forward one first.

        A text of nothing but padding is read as its first token. Raises ValueError when padding stands before a token.
        """
        lengths = _lengths(x, attention_mask)
        own = x.to(next(self.lstm.parameters()).dtype)  # an adapter's LSTM is trained in fp32 on half-precision states
        packed = pack_padded_sequence(own, lengths, batch_first=True, enforce_sorted=False)
        outputs, (states, _) = self.lstm(packed)
        padded, _ = pad_packed_sequence(outputs, batch_first=True, total_length=x.shape[1])
        directions = 2 if self.lstm.bidirectional else 1
        return padded.to(x.dtype), states[-directions:].transpose(0, 1).flatten(1).to(x.dtype)  # (B, T, H), (B, H)


def real_tokens(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """True at real tokens, (B, T)."""
    if attention_mask is None:
        return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    return attention_mask != 0


def _lengths(x: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Tokens of each text, (B,) on the CPU, at least 1."""
    if attention_mask is None:
        return torch.full((x.shape[0],), x.shape[1], dtype=torch.int64)
    real = (attention_mask != 0).cpu()
    lengths = real.sum(1)
    if not torch.equal(real, torch.arange(x.shape[1]) < lengths[:, None]):
        raise ValueError("attention_mask has padding before a token; an LSTM reads texts that are padded at their end")
    return lengths.clamp(min=1)


class WordEmbeddings(nn.Module):
    """Word embeddings and dropout."""

    def __init__(self, vocab_size: int, embedding_size: int, pad_token_id: int, dropout: float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, embedding_size, padding_idx=pad_token_id)
        self.dropout = Dropout(dropout)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.dropout(self.word_embeddings(input_ids))  # (B, T, E)


class LSTMModel(nn.Module):
    """The left-to-right encoder without a head."""

    config_class: ClassVar[type[LSTMConfig]] = LSTMConfig
    base_model_prefix: ClassVar[str] = "lstm"
    architecture_stem: ClassVar[str] = "LSTM"
    architecture_suffix: ClassVar[str] = "Model"
    task: ClassVar[str] = "encoder"
    labels: ClassVar[tuple[str, ...]] = ()
    head_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        self.config = config
        self.fresh_parameters: tuple[str, ...] = ()
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
        stand first (None: all are real). Raises ValueError when T exceeds `config.max_tokens`, padding stands before
        a token, or token_type_ids are given.
        """
        if token_type_ids is not None:
            raise ValueError("token_type_ids were given, but an LSTM has no segments; leave them out")
        check_input(input_ids, attention_mask, self.config.max_tokens)
        return self.encoder(self.embeddings(input_ids), attention_mask)[0]


class BiLSTMModel(LSTMModel):
    """The encoder in both directions without a head."""

    config_class: ClassVar[type[LSTMConfig]] = BiLSTMConfig
    base_model_prefix: ClassVar[str] = "bilstm"
    architecture_stem: ClassVar[str] = "BiLSTM"
