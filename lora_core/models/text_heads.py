"""Heads that read all tokens of a text encoder and give one score for each label.

Each is a module with the labels' layer under `out_proj`, called as `head(hidden, attention_mask, input_ids)`. The
logits of a text do not depend on the padding of its batch.

Shapes: B texts, T tokens (padded), H hidden size, L labels, V vocabulary, F filters of one width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_core.models.layers import MASKED, Dropout
from lora_core.models.recurrent import PackedLSTM, real_tokens

KERNEL_WIDTHS = (3, 4, 5)
FILTERS = 100
"""Filters of each width, as in Kim 2014."""


class FirstToken(nn.Module):
    """One linear layer over the first token."""

    def __init__(self, hidden_size: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.out_proj = nn.Linear(hidden_size, num_labels)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None, input_ids: Tensor | None) -> Tensor:
        return self.out_proj(self.dropout(hidden[:, 0]))  # (B, L)


class ResidualMLP(nn.Module):
    """The first token plus a dense layer of it, then the labels' layer."""

    def __init__(self, hidden_size: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)
        self.out_proj = nn.Linear(hidden_size, num_labels)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None, input_ids: Tensor | None) -> Tensor:
        first = hidden[:, 0]  # (B, H)
        return self.out_proj(self.dropout(first + F.gelu(self.dense(self.dropout(first)))))


class LSTMPooling(nn.Module):
    """A bidirectional LSTM over the tokens; the last state of each direction goes to the labels' layer."""

    def __init__(self, hidden_size: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.encoder = PackedLSTM(hidden_size, hidden_size // 2, bidirectional=True)
        self.dropout = Dropout(dropout)
        self.out_proj = nn.Linear(2 * (hidden_size // 2), num_labels)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None, input_ids: Tensor | None) -> Tensor:
        _, last = self.encoder(hidden, attention_mask)  # (B, H)
        return self.out_proj(self.dropout(last))


class LastToken(nn.Module):
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


class TextCNN(nn.Module):
    """Convolutions of several widths over the tokens, the largest value of each filter (Kim 2014,
    https://arxiv.org/abs/1408.5882).

    A filter is centred on every real token and sees zeros beyond the text, so a text may be shorter than the filter.
    """

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


class AttentionPooling(nn.Module):
    """The tokens' mean with learned weights: softmax of v . tanh(W h + b), the additive attention of Yang et al. 2016.

    `penalty` is taken from the score of every token that `confusing` marks, before the softmax, so such tokens count
    for less, though never for nothing. Both are buffers: they are saved and loaded with the head.
    """

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

    def mark_confusing(self, token_ids: Sequence[int], penalty: float) -> None:
        """Mark just these tokens. `penalty`: 1 divides their weight by e; at least 0.

        Raises ValueError for an id outside the vocabulary or a negative or infinite penalty.
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
