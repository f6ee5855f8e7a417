"""Low-rank updates: one small module for each adapter of each adapted layer, inside the layer's host (layers.py).

    update(x) = scaling * B A dropout(x)          A (r, in), B (out, r)

An update is called as `update(x, out, matrix, bias)`: the layer's input, the frozen layer's output for it, and the
layer's own weight and bias, which DoRA needs. It sees the frozen weight as a matrix (out, in), whatever the layer's own
layout is. Parameters bear the names of PEFT's files: `query.lora.default.lora_A.weight`.

In reading order: `Update`, what all have in common; `LinearUpdate`, the usual one; `ThirdsUpdate` of chosen thirds of a
fused query-key-value layer; `EmbeddingUpdate`; `Conv2dUpdate`; and `TokenRows`, which is not of low rank: rows of the
input embedding, trained in full.

LoRA: Hu et al. 2021, https://arxiv.org/abs/2106.09685. DoRA: Liu et al. 2024, https://arxiv.org/abs/2402.09353.

Shapes: B batch, T tokens, r rank; a leading `...` is any number of dimensions.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_core.dropout import Dropout

THIRDS = ("q", "k", "v")
"""Names of the thirds of a fused query-key-value layer, in the order of its rows."""


class Update(nn.Module):
    """One low-rank update of one layer; subclasses know the layer's kind.

    Args:
        r: rank.
        scaling: factor of the update.
        lora_dropout: probability of dropping an element of A's input.
        magnitude: length of DoRA's magnitude vector, None for plain LoRA.
        dtype: of the parameters.
    """

    factor_names = ("lora_A.weight", "lora_B.weight")
    """PEFT's names of A and B."""
    lora_magnitude_vector: nn.Parameter | None
    scaling: float | Tensor
    """A tensor once a hotswap is prepared, so that torch.compile takes it for no constant."""

    def __init__(self, r: int, scaling: float, lora_dropout: float, magnitude: int | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.r = r
        self.scaling = scaling
        self.lora_dropout = Dropout(lora_dropout)
        vector = None if magnitude is None else nn.Parameter(torch.empty(magnitude, dtype=dtype))
        self.register_parameter("lora_magnitude_vector", vector)

    @property
    def bias(self) -> Tensor | None:
        """The bias of B, (out,), which lora_bias asks for; None without one."""
        return getattr(getattr(self, "lora_B", None), "bias", None)

    @property
    def has_start(self) -> bool:
        """Whether the update began away from zero and its start is subtracted (PiSSA, OLoRA)."""
        return getattr(self, "start_A", None) is not None

    def factors(self) -> tuple[Tensor, Tensor]:
        """A as (r, in) and B as (out, r), so that the update of the weight's matrix is scaling * B @ A."""
        raise NotImplementedError

    def blocks(self, matrix: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(A, B, part of ``matrix`` that they update) of each independent update, to be initialised in place."""
        a, b = self.factors()
        yield a, b, matrix

    def named_tensors(self) -> dict[str, Tensor]:
        """The parameters under PEFT's names."""
        return dict(self.named_parameters())

    def file_tensors(self) -> dict[str, Tensor]:
        """What to save: a plain adapter. It shares memory with the parameters where those are in this form."""
        tensors = self.named_tensors()
        a, b = self.factor_names
        if tensors[a].shape[0] > self.r and tensors[b].shape[1] > self.r:  # padded for a hotswap
            tensors[a], tensors[b] = tensors[a][: self.r], tensors[b][:, : self.r]
        return tensors

    def row_norms(self, matrix: Tensor) -> Tensor:
        """Norm of each row of ``matrix + scaling * B @ A``, (out,), without building that sum.

        ||w + s b A||^2 = ||w||^2 + 2 s (w A^T) b^T + s^2 b (A A^T) b^T for each row w of W and b of B.
        The DoRA paper (section 4.3) treats the norm as a constant, so no gradient flows through it.
        """
        with torch.no_grad(), torch.autocast(matrix.device.type, enabled=False):
            a, b = (factor.float() for factor in self.factors())
            w = matrix.float()
            squared = w.square().sum(1)
            squared += (2 * self.scaling) * ((w @ a.T) * b).sum(1)
            squared += self.scaling**2 * ((b @ (a @ a.T)) * b).sum(1)
            return squared.clamp_min_(torch.finfo(torch.float32).tiny).sqrt_()

    def magnitude_scale(self, matrix: Tensor) -> Tensor:
        """DoRA's factor of each output, (out,)."""
        assert self.lora_magnitude_vector is not None
        return self.lora_magnitude_vector / self.row_norms(matrix)

    def merged_matrix(self, matrix: Tensor) -> Tensor:
        """``matrix`` with this update added, in its dtype."""
        a, b = (factor.to(matrix.dtype) for factor in self.factors())
        merged = torch.addmm(matrix, b, a, alpha=float(self.scaling))
        if self.lora_magnitude_vector is not None:
            merged *= self.magnitude_scale(matrix).to(merged.dtype)[:, None]
        return merged


class LinearUpdate(Update):
    """``lora_A`` (r, in) and ``lora_B`` (out, r) of a linear layer.

    PiSSA and OLoRA start away from zero. The factors they start from, kept in ``start_A`` and ``start_B``, are
    subtracted again, so the frozen weight needs no change and the update is a plain one of rank 2 r.
    """

    start_A: Tensor | None
    start_B: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        r: int,
        scaling: float,
        lora_dropout: float,
        use_dora: bool,
        lora_bias: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(r, scaling, lora_dropout, out_features if use_dora else None, dtype)
        self.lora_A = nn.Linear(in_features, r, bias=False, dtype=dtype)
        self.lora_B = nn.Linear(r, out_features, bias=lora_bias, dtype=dtype)
        self.register_buffer("start_A", None)
        self.register_buffer("start_B", None)

    def trained_factors(self) -> tuple[Tensor, Tensor]:
        """A and B as trained, without the start that is subtracted."""
        return self.lora_A.weight, self.lora_B.weight

    def keep_start(self) -> None:
        """From now on subtract the update that the present factors make."""
        a, b = self.trained_factors()
        self.start_A, self.start_B = a.detach().clone(), b.detach().clone()

    def factors(self) -> tuple[Tensor, Tensor]:
        a, b = self.trained_factors()
        if self.start_A is None or self.start_B is None:
            return a, b
        return torch.cat((a, self.start_A)), torch.cat((b, -self.start_B), dim=1)

    def file_tensors(self) -> dict[str, Tensor]:
        tensors = super().file_tensors()
        if self.start_A is not None:
            tensors["lora_A.weight"], tensors["lora_B.weight"] = self.factors()
        return tensors

    def product(self, x: Tensor) -> Tensor:
        """scaling * B A x, (..., out), without dropout and start."""
        return F.linear(F.linear(x, self.lora_A.weight) * self.scaling, self.lora_B.weight)  # r is small: scale there

    def forward(self, x: Tensor, out: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        """Output of the adapted layer, (..., out).

        Args:
            x: its input, (..., in).
            out: the frozen layer's output, (..., out).
            matrix: the frozen layer's weight, (out, in).
            bias: the frozen layer's bias, (out,).
        """
        x = cast(x, self.lora_A.weight.dtype)
        update = self.product(self.lora_dropout(x))
        if self.start_A is not None and self.start_B is not None:
            update = update - F.linear(F.linear(x, self.start_A) * self.scaling, self.start_B)
        if self.lora_B.bias is not None:
            update = update + self.scaling * self.lora_B.bias
        if self.lora_magnitude_vector is None:
            return out + update
        scale = self.magnitude_scale(matrix)
        if bias is None:
            return (out + update) * scale
        return torch.addcmul(bias * (1 - scale), out + update, scale)  # the bias itself is not rescaled


class ThirdsUpdate(LinearUpdate):
    """Updates of n chosen thirds of a fused layer: ``lora_A`` (n r, in) and ``lora_B`` (n out / 3, r).

    The output of one Linear, `qkv`, holds queries, keys and values one after the other, as timm's vision transformers
    have it. A target such as `attn.qkv.q` adapts only the first third of its rows. On disk that is an ordinary adapter
    of the whole Linear (which PEFT loads): the A factors stacked, the B factors on the diagonal of a block matrix.
    Loaded from there it is an ordinary one.
    """

    def __init__(self, in_features: int, out_features: int, *, thirds: Sequence[str], r: int, **options) -> None:
        if options["lora_bias"]:
            raise ValueError("lora_bias is not available for thirds of a fused layer; target the whole layer.")
        super().__init__(in_features, out_features, r=r, **options)
        count, dtype = len(thirds), options["dtype"]
        self.thirds = tuple(THIRDS.index(third) for third in thirds)
        self.lora_A = nn.Linear(in_features, count * r, bias=False, dtype=dtype)
        self.lora_B = nn.Linear(r, count * out_features // 3, bias=False, dtype=dtype)

    def trained_factors(self) -> tuple[Tensor, Tensor]:
        parts = self.lora_B.weight.chunk(len(self.thirds))  # (out / 3, r) each
        rows = [parts[0].new_zeros(parts[0].shape[0], len(parts) * self.r) for _ in THIRDS]
        for column, (third, part) in enumerate(zip(self.thirds, parts, strict=True)):
            after = (len(parts) - 1 - column) * self.r
            rows[third] = F.pad(part, (column * self.r, after))
        return self.lora_A.weight, torch.cat(rows)  # (n r, in), (out, n r)

    def blocks(self, matrix: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        count = len(self.thirds)
        weights = matrix.chunk(3)
        for third, a, b in zip(
            self.thirds, self.lora_A.weight.chunk(count), self.lora_B.weight.chunk(count), strict=True
        ):
            yield a, b, weights[third]

    def file_tensors(self) -> dict[str, Tensor]:
        tensors = super().file_tensors()
        tensors["lora_A.weight"], tensors["lora_B.weight"] = self.factors()
        return tensors

    def product(self, x: Tensor) -> Tensor:
        hidden = (F.linear(x, self.lora_A.weight) * self.scaling).chunk(len(self.thirds), dim=-1)  # (..., r) each
        parts = [F.linear(h, b) for h, b in zip(hidden, self.lora_B.weight.chunk(len(self.thirds)), strict=True)]
        zero = torch.zeros_like(parts[0])
        return torch.cat([parts[self.thirds.index(i)] if i in self.thirds else zero for i in range(3)], dim=-1)


class EmbeddingUpdate(Update):
    """``lora_embedding_A`` (r, num_embeddings) and ``lora_embedding_B`` (embedding_dim, r).

    The row of ``padding_idx`` in A.T gets no gradient.
    """

    factor_names = ("lora_embedding_A", "lora_embedding_B")

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        padding_idx: int | None,
        r: int,
        scaling: float,
        use_dora: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(r, scaling, 0.0, embedding_dim if use_dora else None, dtype)
        self.padding_idx = padding_idx
        self.lora_embedding_A = nn.Parameter(torch.empty(r, num_embeddings, dtype=dtype))
        self.lora_embedding_B = nn.Parameter(torch.empty(embedding_dim, r, dtype=dtype))

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.lora_embedding_A, self.lora_embedding_B

    def forward(self, ids: Tensor, out: Tensor, matrix: Tensor, bias: None) -> Tensor:
        """Embeddings of ``ids`` (...), as (..., embedding_dim); ``matrix`` is (embedding_dim, num_embeddings)."""
        rows = F.embedding(ids, self.lora_embedding_A.T, self.padding_idx)  # (..., r)
        out = out + F.linear(rows * self.scaling, self.lora_embedding_B)
        return out if self.lora_magnitude_vector is None else out * self.magnitude_scale(matrix)


class Conv2dUpdate(Update):
    """``lora_A`` (r, in, kh, kw) with the layer's geometry, then ``lora_B`` (out, r / groups, 1, 1)."""

    def __init__(
        self,
        conv: nn.Conv2d,
        *,
        r: int,
        scaling: float,
        lora_dropout: float,
        use_dora: bool,
        lora_bias: bool,
        dtype: torch.dtype,
    ) -> None:
        if r % conv.groups:
            raise ValueError(f"The rank must be divisible by the convolution's {conv.groups} groups, but r is {r}.")
        if use_dora and conv.groups > 1:
            raise ValueError("use_dora is not defined for a grouped convolution; exclude it by exclude_modules.")
        super().__init__(r, scaling, lora_dropout, conv.out_channels if use_dora else None, dtype)
        geometry: dict[str, Any] = {
            "kernel_size": conv.kernel_size,
            "stride": conv.stride,
            "padding": conv.padding,
            "dilation": conv.dilation,
            "padding_mode": conv.padding_mode,
        }
        self.lora_A = nn.Conv2d(conv.in_channels, r, **geometry, bias=False, dtype=dtype)
        self.lora_B = nn.Conv2d(r, conv.out_channels, 1, groups=conv.groups, bias=lora_bias, dtype=dtype)

    def factors(self) -> tuple[Tensor, Tensor]:
        if self.lora_B.groups > 1:
            raise ValueError(
                "A grouped convolution cannot take its adapter into its weight: A reads every channel, a grouped "
                "weight only its own group's. Keep the adapter unmerged, or leave the layer out of target_modules."
            )
        return self.lora_A.weight.flatten(1), self.lora_B.weight.flatten(1)

    def blocks(self, matrix: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        yield self.lora_A.weight, self.lora_B.weight, matrix

    def named_tensors(self) -> dict[str, Tensor]:
        tensors = super().named_tensors()
        if self.lora_magnitude_vector is not None:
            tensors["lora_magnitude_vector"] = self.lora_magnitude_vector.view(1, -1, 1, 1)  # PEFT's form
        return tensors

    def forward(self, x: Tensor, out: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        """Output of the adapted convolution, (B, out, H', W'); ``matrix`` is (out, in * kh * kw)."""
        x = cast(self.lora_dropout(x), self.lora_A.weight.dtype)
        out = out + self.lora_B(self.lora_A(x)) * self.scaling
        if self.lora_magnitude_vector is None:
            return out
        scale = self.magnitude_scale(matrix)[:, None, None]  # (out, 1, 1)
        out = out * scale
        return out if bias is None else out + bias[:, None, None] * (1 - scale)


class TokenRows(Update):
    """Rows of the input embedding that are trained in full: new tokens, without training the whole table.

    ``trainable_tokens_delta`` (n, embedding_dim) are the rows of n token ids, not what is added to them, in spite of
    PEFT's name. As an update it has neither A nor B.
    """

    row_of: Tensor
    """The row of every token id, -1 for one that is not trained, (num_embeddings,)."""

    def __init__(self, embedding: nn.Embedding, token_ids: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__(len(token_ids), 1.0, 0.0, None, dtype)
        table = embedding.weight.detach()
        if len(set(token_ids)) < len(token_ids) or max(token_ids) >= len(table):
            raise ValueError(
                f"trainable_token_indices must be different numbers below {len(table)}, the size of the embedding, "
                f"but they are {list(token_ids)}."
            )
        ids = torch.tensor(token_ids, device=table.device)
        row_of = torch.full((len(table),), -1, device=table.device).index_copy_(
            0, ids, torch.arange(len(ids), device=ids.device)
        )
        self.register_buffer("row_of", row_of, persistent=False)
        self.trainable_tokens_delta = nn.Parameter(table[ids].to(dtype, copy=True))

    def named_tensors(self) -> dict[str, Tensor]:
        return {"token_adapter.trainable_tokens_delta": self.trainable_tokens_delta}

    def file_tensors(self) -> dict[str, Tensor]:
        return self.named_tensors()

    def token_ids(self) -> Tensor:
        """The token ids in the order of the rows, (n,)."""
        ids = (self.row_of >= 0).nonzero().squeeze(1)
        return ids[self.row_of[ids].argsort()]

    def merged_matrix(self, matrix: Tensor) -> Tensor:
        return matrix.index_copy(1, self.token_ids(), self.trainable_tokens_delta.T.to(matrix.dtype))

    def forward(self, ids: Tensor, out: Tensor, matrix: Tensor, bias: None) -> Tensor:
        """Embeddings of ``ids`` (...), as (..., embedding_dim), own rows in place of the table's."""
        row = self.row_of[ids]  # (...), -1 for a token that is not ours
        own = F.embedding(row.clamp(min=0), self.trainable_tokens_delta)
        return torch.where((row >= 0)[..., None], own.to(out.dtype), out)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in the adapter's dtype, unless autocast chooses dtypes anyway."""
    return x if x.dtype == dtype or torch.is_autocast_enabled(x.device.type) else x.to(dtype)
