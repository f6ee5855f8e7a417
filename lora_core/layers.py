"""The layers that LoRA adapts, and the adapters inside them.

    y = W x + b + scaling * B A dropout(x)          A (r, in), B (out, r); W and b stay frozen

A host (LoRALinear, LoRAEmbedding, LoRAConv2d) subclasses the layer that it adapts and keeps its `weight` and
`bias`, so the model's own state-dict keys never change; `adopt` turns a layer into its host in place, which
keeps every reference to the layer and its hooks. Each adapter is one small module in the host's `lora`, and
its parameters bear the names of PEFT's files: `query.lora.default.lora_A.weight`.

LoRA: Hu et al. 2021, https://arxiv.org/abs/2106.09685. DoRA: Liu et al. 2024, https://arxiv.org/abs/2402.09353.

Shapes: B batch, T tokens, r rank; a leading `...` is any number of dimensions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_core.kernels.dropout import Dropout


class Adapter(nn.Module):
    """One low-rank update of one layer; subclasses know the layer's kind.

    Args:
        r: rank. scaling: factor of the update. lora_dropout: probability on the input of A.
        magnitude: shape of DoRA's magnitude vector, None for plain LoRA.
    """

    lora_magnitude_vector: nn.Parameter | None

    def __init__(self, r: int, scaling: float, lora_dropout: float, magnitude: int | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.r = r
        self.scaling = scaling
        self.lora_dropout = Dropout(lora_dropout)
        vector = None if magnitude is None else nn.Parameter(torch.empty(magnitude, dtype=dtype))
        self.register_parameter("lora_magnitude_vector", vector)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A as (r, n) and B as (m, r), so that the layer's update, flattened to (m, n), is scaling * B @ A."""
        raise NotImplementedError

    def row_norms(self, weight: Tensor) -> Tensor:
        """Norm of each row of ``weight + scaling * B @ A``, (m,), without building that matrix.

        ||w + s b A||^2 = ||w||^2 + 2 s (w A^T) b^T + s^2 b (A A^T) b^T for each row w of W and b of B.
        The DoRA paper (section 4.3) treats the norm as a constant, so no gradient flows through it.
        """
        with torch.no_grad():
            a, b = (factor.float() for factor in self.factors())
            w = weight.flatten(1).float()
            squared = w.square().sum(1)
            squared += (2 * self.scaling) * ((w @ a.T) * b).sum(1)
            squared += self.scaling**2 * ((b @ (a @ a.T)) * b).sum(1)
            return squared.clamp_min_(torch.finfo(torch.float32).tiny).sqrt_()

    def magnitude_scale(self, weight: Tensor) -> Tensor:
        """DoRA's factor of each output, (m,)."""
        assert self.lora_magnitude_vector is not None
        return self.lora_magnitude_vector / self.row_norms(weight)

    def merged_weight(self, weight: Tensor) -> Tensor:
        """``weight`` with this adapter's update added, in fp32 or wider, same shape."""
        a, b = (factor.to(weight.dtype) for factor in self.factors())
        merged = torch.addmm(weight.flatten(1), b, a, alpha=self.scaling)
        if self.lora_magnitude_vector is not None:
            merged *= self.magnitude_scale(weight).to(merged.dtype)[:, None]
        return merged.view_as(weight)


class LinearAdapter(Adapter):
    """``lora_A`` (r, in) and ``lora_B`` (out, r) of a linear layer."""

    def __init__(self, in_features: int, out_features: int, *, r: int, scaling: float, lora_dropout: float,
                 use_dora: bool, lora_bias: bool, dtype: torch.dtype) -> None:  # fmt: skip
        super().__init__(r, scaling, lora_dropout, out_features if use_dora else None, dtype)
        self.lora_A = nn.Linear(in_features, r, bias=False, dtype=dtype)
        self.lora_B = nn.Linear(r, out_features, bias=lora_bias, dtype=dtype)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.lora_A.weight, self.lora_B.weight

    def forward(self, x: Tensor, out: Tensor, host: "LoRALinear") -> Tensor:
        """Output of the adapted layer, (..., out), from its input and the frozen layer's output."""
        x = _cast(self.lora_dropout(x), self.lora_A.weight.dtype)
        update = F.linear(self.lora_A(x) * self.scaling, self.lora_B.weight)  # (..., r) is scaled: it is small
        if self.lora_B.bias is not None:
            update = update + self.scaling * self.lora_B.bias
        if self.lora_magnitude_vector is None:
            return out + update
        scale = self.magnitude_scale(host.weight)
        if host.bias is None:
            return (out + update) * scale
        return torch.addcmul(host.bias * (1 - scale), out + update, scale)  # the bias itself is not rescaled


class EmbeddingAdapter(Adapter):
    """``lora_embedding_A`` (r, num_embeddings) and ``lora_embedding_B`` (embedding_dim, r)."""

    def __init__(self, num_embeddings: int, embedding_dim: int, *, r: int, scaling: float, use_dora: bool,
                 dtype: torch.dtype) -> None:  # fmt: skip
        super().__init__(r, scaling, 0.0, embedding_dim if use_dora else None, dtype)
        self.lora_embedding_A = nn.Parameter(torch.empty(r, num_embeddings, dtype=dtype))
        self.lora_embedding_B = nn.Parameter(torch.empty(embedding_dim, r, dtype=dtype))

    def factors(self) -> tuple[Tensor, Tensor]:
        # The table is (num_embeddings, dim), the transpose of a linear weight: rows of A^T, columns of B^T.
        return self.lora_embedding_B.T, self.lora_embedding_A.T

    def row_norms(self, weight: Tensor) -> Tensor:
        with torch.no_grad():  # PEFT's DoRA on embeddings takes the norm over the vocabulary, one value per dimension
            a, b = (factor.float() for factor in (self.lora_embedding_A.T, self.lora_embedding_B))
            w = weight.T.float()  # (dim, num_embeddings)
            squared = w.square().sum(1)
            squared += (2 * self.scaling) * ((w @ a) * b).sum(1)
            squared += self.scaling**2 * ((b @ (a.T @ a)) * b).sum(1)
            return squared.clamp_min_(torch.finfo(torch.float32).tiny).sqrt_()

    def merged_weight(self, weight: Tensor) -> Tensor:
        b_t, a_t = (factor.to(weight.dtype) for factor in self.factors())
        merged = torch.addmm(weight, a_t, b_t, alpha=self.scaling)  # (num_embeddings, dim)
        if self.lora_magnitude_vector is not None:
            merged *= self.magnitude_scale(weight).to(merged.dtype)
        return merged

    def forward(self, ids: Tensor, out: Tensor, host: "LoRAEmbedding") -> Tensor:
        """Embeddings of ``ids`` (...), as (..., embedding_dim)."""
        rows = F.embedding(ids, self.lora_embedding_A.T, host.padding_idx)  # (..., r)
        out = out + F.linear(rows * self.scaling, self.lora_embedding_B)
        return out if self.lora_magnitude_vector is None else out * self.magnitude_scale(host.weight)


class Conv2dAdapter(Adapter):
    """``lora_A`` (r, in, kh, kw) with the layer's geometry, then ``lora_B`` (out, r / groups, 1, 1)."""

    def __init__(self, conv: nn.Conv2d, *, r: int, scaling: float, lora_dropout: float, use_dora: bool,
                 lora_bias: bool, dtype: torch.dtype) -> None:  # fmt: skip
        if r % conv.groups:
            raise ValueError(f"The rank must be divisible by the convolution's {conv.groups} groups, but r is {r}.")
        if use_dora and conv.groups > 1:
            raise ValueError("use_dora is not defined for a grouped convolution; exclude it by exclude_modules.")
        super().__init__(r, scaling, lora_dropout, conv.out_channels if use_dora else None, dtype)
        geometry = {"kernel_size": conv.kernel_size, "stride": conv.stride, "padding": conv.padding}
        self.lora_A = nn.Conv2d(conv.in_channels, r, **geometry, dilation=conv.dilation, bias=False,
                                padding_mode=conv.padding_mode, dtype=dtype)  # fmt: skip
        self.lora_B = nn.Conv2d(r, conv.out_channels, 1, groups=conv.groups, bias=lora_bias, dtype=dtype)

    def factors(self) -> tuple[Tensor, Tensor]:
        if self.lora_B.groups > 1:
            raise ValueError(
                "A grouped convolution cannot take its adapter into its weight: A reads every channel, a grouped "
                "weight only its own group's. Keep the adapter unmerged, or leave the layer out of target_modules."
            )
        return self.lora_A.weight.flatten(1), self.lora_B.weight.flatten(1)

    def forward(self, x: Tensor, out: Tensor, host: "LoRAConv2d") -> Tensor:
        """Output of the adapted convolution, (B, out, H', W')."""
        x = _cast(self.lora_dropout(x), self.lora_A.weight.dtype)
        out = out + self.lora_B(self.lora_A(x)) * self.scaling
        if self.lora_magnitude_vector is None:
            return out
        scale = self.magnitude_scale(host.weight)[:, None, None]  # (out, 1, 1)
        out = out * scale
        return out if host.bias is None else out + host.bias[:, None, None] * (1 - scale)


class LoRALayer(nn.Module):
    """What every host adds to the layer it adapts: its adapters and which of them act.

    Attributes:
        lora: adapters by name.
        active_adapters: names that act on every row, in order.
        row_adapters: (name, row indices) pairs of a mixed batch; replaces active_adapters while set.
        merged_adapters: names now inside `weight`; the frozen parameters wait in `frozen` meanwhile.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    original_class: type[nn.Module]

    @classmethod
    def adopt(cls, layer: nn.Module) -> "LoRALayer":
        """Turn ``layer`` into this host in place and return it."""
        original = type(layer)
        layer.__class__ = cls
        layer.lora = nn.ModuleDict()
        layer.original_class = original
        layer.active_adapters = ()
        layer.row_adapters = None
        layer.merged_adapters = ()
        layer.frozen = {}
        return layer

    def release(self) -> nn.Module:
        """Turn the host back into the plain layer it was, in place, and return it."""
        original = self.original_class
        for name in ("lora", "original_class", "active_adapters", "row_adapters", "merged_adapters", "frozen"):
            delattr(self, name)
        self.__class__ = original
        return self

    def new_adapter(self, *, r: int, scaling: float, lora_dropout: float, use_dora: bool, lora_bias: bool,
                    dtype: torch.dtype) -> Adapter:  # fmt: skip
        """An uninitialised adapter that fits this layer."""
        raise NotImplementedError

    def adapted(self, x: Tensor, out: Tensor) -> Tensor:
        """``out``, the frozen layer's output for ``x``, with the acting adapters applied; dtype kept."""
        if self.merged_adapters:
            if self.training:
                raise RuntimeError(
                    f"Adapters {list(self.merged_adapters)} are merged, so they would get no gradients. "
                    "Call lora_core.unmerge_lora(model) before training, or model.eval() for inference."
                )
            return out
        dtype = out.dtype
        if self.row_adapters is not None:
            for name, rows in self.row_adapters:
                if name in self.lora:
                    new = self.lora[name](x[rows], out[rows], self)
                    out = out.index_copy(0, rows, new.to(out.dtype))
            return out
        for name in self.active_adapters:
            out = self.lora[name](x, out, self)
        return out.to(dtype)

    def merged_parameters(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """The layer's parameters with adapters ``names`` inside, computed wide and rounded once."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        weight = self.weight.detach().to(wide)
        bias = None if self.bias is None else self.bias.detach().to(wide)
        for name in names:
            adapter = self.lora[name]
            weight = adapter.merged_weight(weight).detach()
            lora_bias = getattr(getattr(adapter, "lora_B", None), "bias", None)
            if lora_bias is not None:
                if bias is None:
                    raise ValueError(f"Adapter {name!r} has a bias (lora_bias), but the layer has none to merge it into.")
                bias = bias + adapter.scaling * lora_bias.detach().to(wide)
        merged = {"weight": weight.to(self.weight.dtype)}
        if bias is not None and self.bias is not None:
            merged["bias"] = bias.to(self.bias.dtype)
        return merged

    def _apply(self, fn, recurse: bool = True):  # moves and casts what waits in `frozen` with the rest
        super()._apply(fn, recurse)
        for parameter in self.frozen.values():
            parameter.data = fn(parameter.data)
        return self


class LoRALinear(LoRALayer, nn.Linear):
    """nn.Linear with adapters. Input (..., in_features), output (..., out_features)."""

    def new_adapter(self, **options) -> Adapter:
        return LinearAdapter(self.in_features, self.out_features, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.adapted(x, F.linear(x, self.weight, self.bias))


class LoRAEmbedding(LoRALayer, nn.Embedding):
    """nn.Embedding with adapters. Input (...) of ids, output (..., embedding_dim). Dropout does not apply to ids."""

    bias = None

    def new_adapter(self, *, lora_dropout: float, lora_bias: bool, **options) -> Adapter:
        if lora_bias:
            raise ValueError("lora_bias is not defined for an embedding; leave it out of target_modules.")
        return EmbeddingAdapter(self.num_embeddings, self.embedding_dim, **options)

    def forward(self, ids: Tensor) -> Tensor:
        return self.adapted(ids, nn.Embedding.forward(self, ids))


class LoRAConv2d(LoRALayer, nn.Conv2d):
    """nn.Conv2d with adapters. Input (B, in, H, W), output (B, out, H', W')."""

    def new_adapter(self, **options) -> Adapter:
        return Conv2dAdapter(self, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.adapted(x, nn.Conv2d.forward(self, x))


HOSTS: dict[type[nn.Module], type[LoRALayer]] = {
    nn.Linear: LoRALinear,
    nn.Embedding: LoRAEmbedding,
    nn.Conv2d: LoRAConv2d,
}
"""Which host adapts which layer. The match is exact: a subclass may compute something else."""


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in the adapter's dtype, unless autocast chooses dtypes anyway."""
    return x if x.dtype == dtype or torch.is_autocast_enabled(x.device.type) else x.to(dtype)
