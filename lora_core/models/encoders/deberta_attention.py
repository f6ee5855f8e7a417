"""The attention of DeBERTa-v2 (He et al. 2021, https://arxiv.org/abs/2006.03654, section 3.1): each score is the sum of
content to content, content to position and position to content.

    score(i, j) = (q_i . k_j + q_i . pk(i - j) + pq(i - j) . k_j) / sqrt(D * terms)

`pk` and `pq` are projections of learned embeddings of distances. They are computed once for a layer and a batch, and
only for the distances that its texts have. The scores of a distance are brought to their places without an index: row i
of q . pk has the distances in falling order, and begins one place further left than row i - 1 (`shifted`), which is a
view of the same memory with rows of another length.

Shapes: B texts, T tokens (padded), Q tokens that ask (T, or fewer), H hidden size, N attention heads, D = H / N,
S span (buckets, or the longest distance), R rows of distances, W = Q + T distances, P texts that share their positions'
projections (all: 1), or 1 for each (B).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lora_core.dropout import Dropout
from lora_core.models.layers import MASKED, MICROSOFT, GraphBuilder, MultiHeadAttention, Project

ROWS = 32
"""Rows of distances are taken in multiples: few different shapes, for which oneDNN keeps a program each."""


def distance_rows(tokens: int, span: int, buckets: int, max_distance: int) -> Tensor:
    """The row of the distances' embeddings (2 S, H) for each distance from -tokens to tokens, (2 tokens + 1,).

    Distances up to half of the buckets have a row each, those beyond share rows on a logarithmic scale up to
    `max_distance`, and all that are farther the last one. Without buckets each has its own up to `span`. It is computed
    as in transformers, in float32.

    Args:
        span: S, `buckets` if there are any.
        buckets: for each direction; below 1: none.
        max_distance: the distance that the last bucket holds.
    """
    distance = torch.arange(-tokens, tokens + 1, device="cpu")
    bucket = distance
    if buckets > 0:
        middle = buckets // 2
        size = distance.abs().clamp(min=middle - 1)
        scale = torch.log(torch.tensor((max_distance - 1) / middle, device="cpu"))
        far = torch.ceil(torch.log(size / middle) / scale * (middle - 1)) + middle
        bucket = torch.where(size <= middle, distance.float(), far * distance.sign()).long()
    return (bucket + span).clamp(0, 2 * span - 1)


def shifted(scores: Tensor, columns: int) -> Tensor:
    """(..., rows, rows + columns) -> (..., rows, columns): entry (a, b) is entry (a, b - a + rows) of `scores`.

    Without the first `rows` entries of all, and with rows one entry shorter, each row begins one entry further left.
    """
    return _Shifted.apply(scores, columns)


class _Shifted(Function):
    """The slices' own backward passes would fill and copy the whole twice."""

    @staticmethod
    def forward(ctx, scores: Tensor, columns: int) -> Tensor:
        ctx.shape, ctx.columns = scores.shape, columns
        return _shifted_view(scores, columns)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        found = grad.new_zeros(ctx.shape)
        _shifted_view(found, ctx.columns).copy_(grad)
        return found, None


def _shifted_view(scores: Tensor, columns: int) -> Tensor:
    rows, width = scores.shape[-2:]
    return scores.flatten(-2)[..., rows:].unflatten(-1, (rows, width - 1))[..., :columns]


def call_each(rows: Tensor, layers: tuple[nn.Module, ...]) -> tuple[Tensor, ...]:
    """Linear layers on rows (1, R, H) that all texts share; on (B, R, H) where each text has an adapter of its own."""
    mixed = next((mix for layer in layers if (mix := getattr(layer, "row_adapters", None)) is not None), None)
    own = rows if mixed is None else rows.expand(mixed[0], -1, -1)
    return tuple(layer(own) for layer in layers)


class DisentangledSelfAttention(MultiHeadAttention):
    """Multi-head attention with relative positions, without its output projection.

    Args:
        terms: the scores are divided by sqrt(D * terms).
        to_position: whether content attends to positions ("c2p").
        from_position: whether positions attend to content ("p2c").
        share: positions are projected by the layers that project queries and keys.
        position_dropout: of the embeddings of distances.
    """

    attends_in_half = True

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        dropout: float,
        *,
        terms: int,
        to_position: bool,
        from_position: bool,
        share: bool,
        position_dropout: float,
    ) -> None:
        super().__init__(num_heads, dropout)
        self.query_proj = nn.Linear(hidden_size, hidden_size)
        self.key_proj = nn.Linear(hidden_size, hidden_size)
        self.value_proj = nn.Linear(hidden_size, hidden_size)
        self.pos_key_proj = nn.Linear(hidden_size, hidden_size) if to_position and not share else None
        self.pos_query_proj = nn.Linear(hidden_size, hidden_size) if from_position and not share else None
        self.pos_dropout = Dropout(position_dropout)
        self.to_position, self.from_position = to_position, from_position
        self.scale = (hidden_size // num_heads * terms) ** -0.5

    def position_layers(self) -> tuple[nn.Module, ...]:
        """The projections of distances: as keys, then as queries, as far as the scores have them."""
        layers = []
        if self.to_position:
            layers.append(self.key_proj if self.pos_key_proj is None else self.pos_key_proj)
        if self.from_position:
            layers.append(self.query_proj if self.pos_query_proj is None else self.pos_query_proj)
        return tuple(layers)

    def forward(self, hidden: Tensor, mask: Tensor | None, *shared: Tensor) -> Tensor:
        query, key, value = self.query_proj(hidden), self.key_proj(hidden), self.value_proj(hidden)
        return self.attend(query, key, value, mask, *self.project_shared(call_each, *shared))

    def project_shared(self, project: Project, *shared: Tensor) -> tuple[Tensor, ...]:
        """The index as it is, and the distances (1, R, H) projected, (P, R, H) each."""
        layers = self.position_layers()
        if not shared or not layers:
            return ()
        distances, index = shared
        return (index, *project(self.pos_dropout(distances), layers))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *shared: Tensor) -> Tensor:
        asked, told = query.shape[1], key.shape[1]
        query, key, value = (self._by_head(x) for x in (query * self.scale, key, value))  # (N, B, T, D)
        # In half precision the scaled terms fit, where the bare products may not; their sum is taken in float32.
        scores = (query @ key.mT).float()  # (N, B, Q, T)
        if shared:
            index, *projected = shared  # (2 T + 1,)
            if self.to_position:
                falling = index[1 : told + asked + 1].flip(0)  # from Q to 1 - T
                keys = self._by_head(projected.pop(0).to(query.dtype).index_select(1, falling))
                scores += shifted(_products(query, keys), told)
            if self.from_position:
                rising = index[: told + asked]  # from -T to Q - 1
                queries = self._by_head(projected.pop(0).to(query.dtype).index_select(1, rising) * self.scale)
                scores += shifted(_products(key, queries), asked).mT
        if mask is not None:
            scores.masked_fill_(mask.transpose(0, 1) != 0, torch.finfo(scores.dtype).min)
        weights = self.dropout(torch.softmax(scores, -1)).to(value.dtype)
        return (weights @ value).permute(1, 2, 0, 3).flatten(2)  # (B, Q, H)

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, T, H) -> (N, B, T, D): with the heads in front, a head's positions meet all texts in one product."""
        return x.unflatten(-1, (self.num_heads, -1)).permute(2, 0, 1, 3).contiguous()

    def onnx(self, graph: GraphBuilder, x: str, query_key_value: Sequence[nn.Module], mask: str, *shared: str) -> str:
        query, key, value = (f"{graph.path(self)}.{part}" for part in ("query", "key", "value"))
        graph.op("Split", graph.dense(x, query_key_value), outputs=[query, key, value], axis=-1, num_outputs=3)
        layers, added = list(self.position_layers()), ""
        if shared and layers:
            table, falling, rising, shape, places = shared
            scores = []  # (B, N, T, T) each
            if self.to_position:
                products = self._onnx_products(graph, query, table, layers.pop(0), falling)
                scores.append(_onnx_shifted(graph, products, shape, places))
            if self.from_position:
                products = self._onnx_products(graph, key, table, layers.pop(0), rising)
                scores.append(graph.op("Transpose", _onnx_shifted(graph, products, shape, places), perm=[0, 1, 3, 2]))
            added = graph.op("Add", *scores) if len(scores) > 1 else scores[0]
        options = {"num_heads": self.num_heads, "scale": self.scale, "mask_filter_value": MASKED}
        return graph.op("MultiHeadAttention", query, key, value, "", mask, added, domain=MICROSOFT, **options)

    def _onnx_products(self, graph: GraphBuilder, x: str, table: str, layer: nn.Module, index: str) -> str:
        """Rows (B, T, H) times the projected distances of an index (W,), scaled: (B, N, T, W)."""
        split = graph.op("Reshape", x, graph.constant([0, 0, self.num_heads, -1]))
        by_head = graph.op("Transpose", split, perm=[0, 2, 1, 3])  # (B, N, T, D)
        rows = graph.op("Gather", graph.projected_table(table, layer, self.num_heads), index, axis=1)  # (N, W, D)
        return graph.op("FusedMatMul", by_head, rows, domain=MICROSOFT, transB=1, alpha=self.scale)


def onnx_positions(graph: GraphBuilder, ids: str, rows: Tensor) -> tuple[str, str, str, str]:
    """What the graphs of all layers share beside the table: the rows of distances from T to -T and from -T to T,
    (2 T + 1,) each, and for `_onnx_shifted` a shape and the places (T,).

    Args:
        ids: (B, T).
        rows: `distance_rows` of the longest text.
    """
    most = len(rows) // 2
    length = graph.op("Shape", ids, start=1, end=2)
    first = graph.op("Sub", graph.constant([most]), length)
    end = graph.op("Add", graph.constant([most + 1]), length)
    rising = graph.op("Slice", graph.derived("distances.rows", rows.numpy(), []), first, end)
    flipped = graph.derived("distances.rows_falling", rows.flip(0).numpy(), [])
    falling = graph.op("Slice", flipped, first, end)
    shape = graph.op("Concat", graph.constant([0, 0, -1]), length, axis=0)
    odd = graph.derived("distances.places", np.arange(1, 2 * most, 2), [])
    return falling, rising, shape, graph.op("Slice", odd, graph.constant([0]), length)


def _products(rows: Tensor, positions: Tensor) -> Tensor:
    """Rows (N, B, T, D) times positions (N, P, W, D): (N, B, T, W)."""
    if positions.shape[1] > 1:
        return rows @ positions.mT
    return (rows.flatten(1, 2) @ positions[:, 0].mT).unflatten(1, rows.shape[1:3])


def _onnx_shifted(graph: GraphBuilder, scores: str, shape: str, places: str) -> str:
    """`shifted` as a graph: (B, N, T, 2 T + 1) -> (B, N, T, T), entry (a, b) is entry (a, b - a + T).

    In memory that is T + 2 T a + b, so row a is row 2 a + 1 of the same memory in rows of T: whole rows are copied, by
    all threads, where slices are copied by one.
    """
    rows = graph.op("Reshape", scores, shape)  # (B, N, 2 T + 1, T)
    return graph.op("Gather", rows, places, axis=2)
