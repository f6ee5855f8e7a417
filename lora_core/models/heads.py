"""Heads that suit every text encoder: one for words, and those that `HEADS` names.

Shapes: B texts, T tokens (padded), H hidden size, L labels, V vocabulary, F filters of one width.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_core.models.crf import CRFHead
from lora_core.models.encoder import Encoder
from lora_core.models.layers import MASKED, MICROSOFT, Dropout, GraphBuilder, PackedLSTM, real_tokens
from lora_core.models.task_model import ClassifierHead, TextModel

KERNEL_WIDTHS = (3, 4, 5)
FILTERS = 100
"""Filters of each width, as in Kim 2014."""


class TokenClassifier(TextModel):
    """One linear layer over every token."""

    task = "token-classification"
    architecture_suffix = "ForTokenClassification"

    def __init__(self, encoder: Encoder, labels: Sequence[str]) -> None:
        super().__init__(encoder, labels)
        self.dropout = Dropout(self.config.head_dropout)
        self.classifier = nn.Linear(self.config.hidden_size, len(self.labels))

    def logits(self, hidden: Tensor, attention_mask: Tensor | None = None, input_ids: Tensor | None = None) -> Tensor:
        return self.classifier(self.dropout(hidden))  # (B, T, L)

    def onnx(self, graph: GraphBuilder, hidden: str, input_ids: str, mask: str) -> str:
        return graph.label_layer(hidden, self.classifier)


class FirstToken(ClassifierHead):
    """One linear layer over the first token."""

    head_kind = "linear"
    architecture_suffix = "LinearForSequenceClassification"
    tokens_read = 1

    def __init__(self, hidden_size: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.out_proj = nn.Linear(hidden_size, num_labels)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None, input_ids: Tensor | None) -> Tensor:
        return self.out_proj(self.dropout(hidden[:, 0]))  # (B, L)

    def onnx(self, graph: GraphBuilder, hidden: str, input_ids: str, mask: str) -> str:
        return graph.label_layer(hidden, self.out_proj)


class ResidualMLP(ClassifierHead):
    """The first token plus a dense layer of it, then the labels' layer."""

    head_kind = "mlp"
    architecture_suffix = "MLPForSequenceClassification"
    tokens_read = 1

    def __init__(self, hidden_size: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)
        self.out_proj = nn.Linear(hidden_size, num_labels)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None, input_ids: Tensor | None) -> Tensor:
        first = hidden[:, 0]  # (B, H)
        return self.out_proj(self.dropout(first + F.gelu(self.dense(self.dropout(first)))))

    def onnx(self, graph: GraphBuilder, hidden: str, input_ids: str, mask: str) -> str:
        inner = graph.op("Gelu", graph.dense(hidden, self.dense), domain=MICROSOFT)
        return graph.label_layer(graph.op("Add", hidden, inner), self.out_proj)


class LSTMPooling(ClassifierHead):
    """A bidirectional LSTM over the tokens; the last state of each direction goes to the labels' layer."""

    head_kind = "lstm"
    architecture_suffix = "LSTMForSequenceClassification"

    def __init__(self, hidden_size: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.encoder = PackedLSTM(hidden_size, hidden_size // 2, bidirectional=True)
        self.dropout = Dropout(dropout)
        self.out_proj = nn.Linear(2 * (hidden_size // 2), num_labels)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None, input_ids: Tensor | None) -> Tensor:
        _, last = self.encoder(hidden, attention_mask)  # (B, H)
        return self.out_proj(self.dropout(last))

    def onnx(self, graph: GraphBuilder, hidden: str, input_ids: str, mask: str) -> str:
        return graph.label_layer(self.encoder.onnx_last(graph, hidden, mask), self.out_proj)


class TextCNN(ClassifierHead):
    """Convolutions of several widths over the tokens, the largest value of each filter (Kim 2014,
    https://arxiv.org/abs/1408.5882).

    A filter is centred on every real token and sees zeros beyond the text, so a text may be shorter than the filter.
    """

    head_kind = "textcnn"
    architecture_suffix = "TextCNNForSequenceClassification"

    def __init__(self, hidden_size: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv1d(hidden_size, FILTERS, width) for width in KERNEL_WIDTHS)
        self.dropout = Dropout(dropout)
        self.out_proj = nn.Linear(FILTERS * len(KERNEL_WIDTHS), num_labels)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None, input_ids: Tensor | None) -> Tensor:
        real = real_tokens(hidden, attention_mask)[:, None]  # (B, 1, T)
        tokens = hidden.transpose(1, 2).masked_fill(~real, 0)  # (B, H, T)
        pooled = []
        for width, convolution in zip(KERNEL_WIDTHS, self.convolutions, strict=True):
            found = torch.relu(convolution(F.pad(tokens, ((width - 1) // 2, width // 2))))  # (B, F, T)
            pooled.append(found.masked_fill(~real, 0).amax(2))  # a real token has at least 0
        return self.out_proj(self.dropout(torch.cat(pooled, 1)))

    def onnx(self, graph: GraphBuilder, hidden: str, input_ids: str, mask: str) -> str:
        real = graph.op("Unsqueeze", graph.cast(mask, np.float32), graph.constant([1]))  # (B, 1, T)
        tokens = graph.op("Mul", graph.op("Transpose", hidden, perm=[0, 2, 1]), real)  # (B, H, T)
        pooled = []
        for width, convolution in zip(KERNEL_WIDTHS, self.convolutions, strict=True):
            weights = graph.parameter(convolution), graph.parameter(convolution, "bias")
            found = graph.op("Conv", tokens, *weights, pads=[(width - 1) // 2, width // 2])
            found = graph.op("Mul", graph.op("Relu", found), real)  # (B, F, T)
            pooled.append(graph.op("ReduceMax", found, graph.constant([2]), keepdims=0))
        return graph.label_layer(graph.op("Concat", *pooled, axis=1), self.out_proj)


class AttentionPooling(ClassifierHead):
    """The tokens' mean with learned weights: softmax of v . tanh(W h + b), the additive attention of Yang et al. 2016.

    `penalty` is taken from the score of every token that `confusing` marks, before the softmax, so such tokens count
    for less, though never for nothing. Both are buffers: they are saved and loaded with the head.
    """

    head_kind = "attention"
    architecture_suffix = "AttentionForSequenceClassification"

    confusing: Tensor
    penalty: Tensor

    def __init__(self, hidden_size: int, num_labels: int, dropout: float, vocab_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.energy = nn.Linear(hidden_size, 1, bias=False)  # PEFT takes a `score` for a head of its own
        self.dropout = Dropout(dropout)
        self.out_proj = nn.Linear(hidden_size, num_labels)
        self.register_buffer("confusing", torch.zeros(vocab_size))
        self.register_buffer("penalty", torch.zeros(1))

    @classmethod
    def of_config(cls: Any, config: Any, num_labels: int) -> ClassifierHead:
        return cls(config.hidden_size, num_labels, config.head_dropout, config.vocab_size)

    def mark_confusing(self, token_ids: Sequence[int], penalty: float) -> None:
        """Mark just these tokens.

        Args:
            token_ids: their ids.
            penalty: 1 divides their weight by e; at least 0.

        Raises:
            ValueError: an id is outside the vocabulary, or the penalty negative or infinite.
        """
        wrong = [token for token in token_ids if not 0 <= token < len(self.confusing)]
        if wrong:
            raise ValueError(f"token ids {wrong[:5]} are not in the vocabulary of {len(self.confusing)} tokens")
        if not 0 <= penalty < math.inf:
            raise ValueError(f"penalty is {penalty}; expected a number of at least 0")
        self.confusing.zero_()
        self.confusing[list(token_ids)] = 1
        self.penalty.fill_(penalty)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None, input_ids: Tensor) -> Tensor:
        weights = self.weights(hidden, attention_mask, input_ids)
        return self.out_proj(self.dropout((weights[:, None] @ hidden).squeeze(1)))

    def weights(self, hidden: Tensor, attention_mask: Tensor | None, input_ids: Tensor) -> Tensor:
        """The weight of every token, (B, T); each text's sum to 1, padding has 0."""
        scores = self.energy(torch.tanh(self.dense(hidden))).squeeze(-1)  # (B, T)
        scores = scores - self.penalty * self.confusing[input_ids]
        scores = scores.float().masked_fill(~real_tokens(hidden, attention_mask), MASKED)
        return scores.softmax(-1).to(hidden.dtype)

    def onnx(self, graph: GraphBuilder, hidden: str, input_ids: str, mask: str) -> str:
        inner = graph.op("Tanh", graph.dense(hidden, self.dense))
        scores = graph.op("Squeeze", graph.linear(inner, self.energy), graph.constant([2]))  # (B, T)
        confusing = graph.op("Gather", graph.parameter(self, "confusing"), input_ids)
        scores = graph.op("Sub", scores, graph.op("Mul", confusing, graph.parameter(self, "penalty")))
        real = graph.cast(mask, np.bool_)
        scores = graph.op("Where", real, scores, graph.constant(MASKED, np.float32))
        weights = graph.op("Unsqueeze", graph.op("Softmax", scores, axis=-1), graph.constant([1]))  # (B, 1, T)
        mean = graph.op("Squeeze", graph.op("MatMul", weights, hidden), graph.constant([1]))  # (B, H)
        return graph.label_layer(mean, self.out_proj)


HEADS: dict[str, type[ClassifierHead]] = {
    head.head_kind: head for head in (FirstToken, ResidualMLP, LSTMPooling, TextCNN, AttentionPooling, CRFHead)
}
"""Heads other than the family's own, by name."""
