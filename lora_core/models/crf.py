"""Linear-chain conditional random field (Lafferty et al. 2001): a score for every whole sequence of labels.

A sequence y scores start[y_1] + sum_t emissions[t, y_t] + sum_t transitions[y_(t-1), y_t]. The chain runs over the
positions of `mask` alone, in order; what lies between them (special tokens, further pieces of a word) is no part of it.

Shapes: B texts, T tokens (padded), W chained positions of the longest chain, L labels.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lora_core.models.host import on_host
from lora_core.models.layers import Dropout, GraphBuilder
from lora_core.models.task_model import ClassifierHead

FORBIDDEN = -1e4
"""Score of a transition that must not happen; finite, so that no gradient becomes NaN."""


class CRFHead(ClassifierHead):
    """One linear layer over every token, and the transitions. `forward` packs all scores into one tensor (B, T + 1 + L,
    L): T rows of emissions, one of start scores, and L of transitions (from, to). `split_scores` takes it apart.
    """

    task = "token-classification"
    head_kind = "crf"
    architecture_suffix = "CRFForTokenClassification"

    forbidden: Tensor

    def __init__(self, hidden_size: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.out_proj = nn.Linear(hidden_size, num_labels)
        self.start = nn.Parameter(torch.empty(num_labels))
        self.transitions = nn.Parameter(torch.empty(num_labels, num_labels))
        self.register_buffer("forbidden", torch.zeros(num_labels, num_labels))

    def constrain(self, allowed: Tensor) -> None:
        """Forbid the transitions (from, to) at which `allowed` (L, L) is False. They are saved with the head."""
        self.forbidden.copy_(torch.where(allowed, 0.0, FORBIDDEN))

    def forward(self, hidden: Tensor, attention_mask: Tensor | None, input_ids: Tensor | None) -> Tensor:
        emissions = self.out_proj(self.dropout(hidden))  # (B, T, L)
        chain = torch.cat([self.start[None], self.transitions + self.forbidden])  # (1 + L, L)
        return torch.cat([emissions, chain.to(emissions.dtype).expand(len(emissions), -1, -1)], 1)

    def onnx(self, graph: GraphBuilder, hidden: str, input_ids: str, mask: str) -> str:
        emissions = graph.label_layer(hidden, self.out_proj)  # (B, T, L)
        moves = graph.op("Add", *(graph.parameter(self, name, ["labels"] * 2) for name in ("transitions", "forbidden")))
        start = graph.op("Unsqueeze", graph.parameter(self, "start", ["labels"]), graph.constant([0]))
        chain = graph.op("Unsqueeze", graph.op("Concat", start, moves, axis=0), graph.constant([0]))  # (1, 1 + L, L)
        texts = graph.op("Shape", hidden, start=0, end=1)
        repeated = graph.op("Expand", chain, graph.op("Concat", texts, graph.constant([1, 1]), axis=0))
        return graph.op("Concat", emissions, repeated, axis=1)

    @classmethod
    def with_label_rows(cls, tensors: Mapping[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
        found = super().with_label_rows(tensors, rows)
        if "classifier.start" in found:
            found["classifier.start"] = found["classifier.start"][rows]
        for name in {"classifier.transitions", "classifier.forbidden"} & found.keys():
            found[name] = found[name][rows][:, rows]
        return found


def split_scores(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """CRFHead's output in float32: emissions (B, T, L), start (B, L), transitions (B, L, L)."""
    scores = scores.float()
    tokens = scores.shape[1] - 1 - scores.shape[2]
    return scores[:, :tokens], scores[:, tokens], scores[:, tokens + 1 :]


def crf_log_likelihood(emissions: Tensor, start: Tensor, transitions: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Log-probability (B,) of each text's labels, by the forward algorithm; 0 for a text without positions.

    `emissions` (B, T, L), `start` (L,) and `transitions` (L, L) from row to column, or one of each for every text,
    (B, L) and (B, L, L); `labels` (B, T) valid ids where `mask` (B, T) is True.
    """
    emissions, labels, mask, _ = _chained(emissions, mask, labels)
    if not mask.shape[1]:
        return emissions.sum((1, 2))
    gold = emissions.gather(2, labels[..., None]).squeeze(2)  # (B, W)
    texts = torch.arange(len(labels), device=labels.device)
    opening = start.expand(len(labels), -1)[texts, labels[:, 0]]  # (B,)
    steps = transitions.expand(len(labels), -1, -1)[texts[:, None], labels[:, :-1], labels[:, 1:]]  # (B, W - 1)
    gold = (gold * mask).sum(1) + (steps * mask[:, 1:]).sum(1) + opening * mask[:, 0]
    total = start + emissions[:, 0]  # (B, L), log of the summed exp of all beginnings that end in each label
    for place in range(1, mask.shape[1]):
        longer = (total[:, :, None] + transitions).logsumexp(1) + emissions[:, place]
        total = torch.where(mask[:, place, None], longer, total)
    return torch.where(mask[:, 0], gold - total.logsumexp(1), 0.0)


def viterbi(emissions: Tensor, start: Tensor, transitions: Tensor, mask: Tensor) -> Tensor:
    """The best sequence of each text, (B, T): label ids where `mask` is True, 0 elsewhere.

    `emissions` (B, T, L), `start` (L,) and `transitions` (L, L) from row to column, or one of each for every text.
    """
    chained, _, inside, order = _chained(emissions, mask, None)
    path = torch.zeros_like(mask, dtype=torch.int64)
    if not inside.shape[1]:
        return path
    best = start + chained[:, 0]  # (B, L)
    origins = []
    stay = torch.arange(best.shape[1], device=best.device).expand_as(best)
    for place in range(1, inside.shape[1]):
        longer, origin = (best[:, :, None] + transitions).max(1)
        here = inside[:, place, None]
        best = torch.where(here, longer + chained[:, place], best)
        origins.append(torch.where(here, origin, stay))
    label = best.argmax(1)  # (B,)
    labels = [label]
    for origin in reversed(origins):
        label = origin.gather(1, label[:, None]).squeeze(1)
        labels.append(label)
    return path.scatter(1, order, torch.stack(labels[::-1], 1) * inside)


def marginals(emissions: Tensor, start: Tensor, transitions: Tensor, mask: Tensor) -> Tensor:
    """Probability of every label at every position, (B, T, L), 0 where `mask` is False: by the forward and the backward
    algorithm.

    `emissions` (B, T, L), `start` (L,) and `transitions` (L, L) from row to column, or one of each for every text.
    """
    chained, _, inside, order = _chained(emissions, mask, None)
    found = torch.zeros_like(emissions)
    if not inside.shape[1]:
        return found
    ahead = [start + chained[:, 0]]
    for place in range(1, inside.shape[1]):
        ahead.append((ahead[-1][:, :, None] + transitions).logsumexp(1) + chained[:, place])
    behind = [torch.zeros_like(ahead[0])]
    for place in range(inside.shape[1] - 1, 0, -1):
        longer = (transitions + (chained[:, place] + behind[-1])[:, None]).logsumexp(2)
        behind.append(torch.where(inside[:, place, None], longer, behind[-1]))
    shares = (torch.stack(ahead, 1) + torch.stack(behind[::-1], 1)).softmax(-1)  # (B, W, L)
    return found.scatter(1, order[..., None].expand_as(shares), shares.masked_fill(~inside[..., None], 0))


def _chained(emissions: Tensor, mask: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Emissions (B, W, L), labels (B, W) and mask (B, W) of the masked positions, moved to the front, 0 behind; and the
    place (B, W) from which each comes. Those behind come from places that are not masked."""
    width = int(on_host(mask).sum(1).max()) if mask.numel() else 0
    order = torch.argsort(~mask, dim=1, stable=True)[:, :width]  # (B, W)
    inside = mask.gather(1, order)
    moved = emissions.gather(1, order[..., None].expand(-1, -1, emissions.shape[2]))
    ids = torch.zeros_like(order) if labels is None else labels.gather(1, order).masked_fill(~inside, 0)
    return moved, ids, inside, order
