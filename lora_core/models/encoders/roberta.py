"""RoBERTa (Liu et al. 2019, https://arxiv.org/abs/1907.11692): BERT's layers, other positions and defaults; and the
families that are RoBERTa under another model_type."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lora_core.dropout import Dropout
from lora_core.models.encoders.bert import BertConfig, BertEmbeddings, BertModel
from lora_core.models.heads import TokenClassifier
from lora_core.models.layers import GraphBuilder
from lora_core.models.task_model import ClassifierHead


@dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """Sizes of a RoBERTa encoder; the defaults are transformers' (roberta-base itself states its own
    sizes)."""

    model_type = "roberta"

    vocab_size: int = 50265
    """Rows of the word embeddings."""
    pad_token_id: int = 1
    """Id of the padding token; positions are counted from the number after it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens < 1:
            raise ValueError(
                f"max_position_embeddings {self.max_position_embeddings} leaves no position beyond "
                f"pad_token_id {self.pad_token_id}"
            )

    @property
    def max_tokens(self) -> int:
        """Longest input, special tokens included: the rows up to pad_token_id are never a token's
        position."""
        return self.max_position_embeddings - self.pad_token_id - 1


class RobertaEmbeddings(BertEmbeddings):
    """BERT's embeddings with positions that count real tokens from pad_token_id + 1."""

    def __init__(self, *, pad_token_id: int, **sizes: Any) -> None:
        super().__init__(pad_token_id=pad_token_id, **sizes)
        self.position_embeddings.padding_idx = pad_token_id

    def position_ids(self, input_ids: Tensor) -> Tensor:
        """Position of each token (B, T); padding has position pad_token_id."""
        return counted_positions(input_ids, self.pad_token_id)

    def onnx_position_ids(self, graph: GraphBuilder, ids: str) -> str:
        return onnx_counted_positions(graph, ids, self.pad_token_id)


def counted_positions(input_ids: Tensor, pad_token_id: int) -> Tensor:
    """Positions (B, T) that count real tokens from pad_token_id + 1; padding has position pad_token_id."""
    real = (input_ids != pad_token_id).long()
    return real.cumsum(dim=1) * real + pad_token_id


def onnx_counted_positions(graph: GraphBuilder, ids: str, pad_token_id: int) -> str:
    """`counted_positions` as a graph, int32."""
    padding = graph.constant(pad_token_id, np.int32)
    real = graph.cast(graph.op("Not", graph.op("Equal", ids, padding)), np.int32)  # (B, T)
    counted = graph.op("CumSum", real, graph.constant(1))
    return graph.op("Add", graph.op("Mul", counted, real), padding)


class RobertaClassificationHead(ClassifierHead):
    """Two linear layers over the first token, with dropout before each and tanh between."""

    tokens_read = 1

    def __init__(self, hidden_size: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)
        self.out_proj = nn.Linear(hidden_size, num_labels)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None, input_ids: Tensor | None) -> Tensor:
        first = self.dropout(hidden[:, 0])  # (B, H)
        return self.out_proj(self.dropout(torch.tanh(self.dense(first))))  # (B, L)

    def onnx(self, graph: GraphBuilder, hidden: str, input_ids: str, mask: str) -> str:
        return graph.label_layer(graph.op("Tanh", graph.dense(hidden, self.dense)), self.out_proj)


class RobertaModel(BertModel):
    """The encoder without a head."""

    config_class = RobertaConfig
    embeddings_class: ClassVar[type[BertEmbeddings]] = RobertaEmbeddings
    base_model_prefix = "roberta"
    architecture_stem = "Roberta"
    heads = (TokenClassifier, RobertaClassificationHead)
    other_heads = BertModel.other_heads | {"lm_head"}

    @property
    def segments(self) -> int:
        """1: separators part the texts of a pair, whatever rows the checkpoint's segment embeddings have."""
        return 1


@dataclass(frozen=True)
class XLMRobertaConfig(RobertaConfig):
    """Sizes of an XLM-RoBERTa encoder (Conneau et al. 2020, https://arxiv.org/abs/1911.02116)."""

    model_type = "xlm-roberta"

    vocab_size: int = 30522
    """Rows of the word embeddings; published checkpoints state 250002."""


class XLMRobertaModel(RobertaModel):
    """RoBERTa under another name, with a vocabulary of 100 languages."""

    config_class = XLMRobertaConfig
    architecture_stem = "XLMRoberta"


@dataclass(frozen=True)
class CamembertConfig(RobertaConfig):
    """Sizes of a CamemBERT encoder (Martin et al. 2020, https://arxiv.org/abs/1911.03894)."""

    model_type = "camembert"

    vocab_size: int = 30522
    """Rows of the word embeddings; published checkpoints state 32005."""


class CamembertModel(RobertaModel):
    """RoBERTa under another name, for French."""

    config_class = CamembertConfig
    architecture_stem = "Camembert"
