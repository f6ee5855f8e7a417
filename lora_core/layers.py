"""The layers that LoRA adapts: hosts of the low-rank updates of updates.py.

A host (LoRALinear, LoRAEmbedding, LoRAConv2d, LoRAConv1D, LoRAMultiheadAttention) subclasses the layer that it adapts
and keeps its `weight` and `bias`, so the model's own state-dict keys never change; `adopt` turns a layer into its host
in place, which keeps every reference to the layer and its hooks. The updates of all its adapters lie in the host's
`lora`, by the adapter's name.
"""

import math
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_core.updates import Conv2dUpdate, EmbeddingUpdate, LinearUpdate, ThirdsUpdate, Update


class LoRALayer(nn.Module):
    """What every host adds to the layer it adapts: the updates of adapters, and which of them act.

    Attributes:
        lora: the update of each adapter, by the adapter's name.
        active_adapters: names that act on every row, in order.
        row_adapters: number of rows of a mixed batch and its (name, row indices) pairs; replaces
            active_adapters while set.
        merged_adapters: names now inside `weight`; the frozen parameters wait in `frozen` meanwhile.
    """

    weight_name = "weight"
    bias_name = "bias"
    transposed = False
    """Whether the weight is (in, out)."""
    bias: nn.Parameter | None
    lora: nn.ModuleDict
    original_class: type[nn.Module]
    active_adapters: tuple[str, ...]
    row_adapters: tuple[int, list[tuple[str, Tensor]]] | None
    merged_adapters: tuple[str, ...]
    frozen: dict[str, nn.Parameter]

    @classmethod
    def adopt(cls, layer: nn.Module) -> "LoRALayer":
        """Turn ``layer`` into this host in place and return it."""
        original = type(layer)
        layer.__class__ = cls
        assert isinstance(layer, cls)
        layer.lora = nn.ModuleDict().train(layer.training)
        layer.original_class = original
        layer.active_adapters = ()
        layer.row_adapters = None
        layer.merged_adapters = ()
        layer.frozen = {}
        return layer

    def update_of(self, name: str) -> Update:
        """This layer's update of the adapter ``name``."""
        found = self.lora[name]
        assert isinstance(found, Update)
        return found

    def release(self) -> nn.Module:
        """Turn the host back into the plain layer it was, in place, and return it."""
        original = self.original_class
        for name in ("lora", "original_class", "active_adapters", "row_adapters", "merged_adapters", "frozen"):
            delattr(self, name)
        object.__setattr__(self, "__class__", original)
        return self

    @classmethod
    def matrix(cls, weight: Tensor) -> Tensor:
        """``weight`` of this kind of layer as (out, in), without a copy."""
        return weight.T if cls.transposed else weight.flatten(1)

    def weight_matrix(self) -> Tensor:
        """The layer's own weight as (out, in)."""
        return self.matrix(getattr(self, self.weight_name))

    def new_update(
        self, *, r: int, scaling: float, lora_dropout: float, use_dora: bool, lora_bias: bool, dtype: torch.dtype
    ) -> Update:
        """An uninitialised update that fits this layer."""
        raise NotImplementedError

    def new_update_like(self, old: Update, r: int, **changes) -> Update:
        """An uninitialised update of rank ``r`` on the device of ``old``, and as it in all but ``changes``."""
        like = next(old.parameters())
        options = {
            "scaling": float(old.scaling),
            "lora_dropout": old.lora_dropout.p,
            "use_dora": old.lora_magnitude_vector is not None,
            "lora_bias": old.bias is not None,
            "dtype": like.dtype,
        }
        with torch.device(like.device):
            return self.new_update(r=r, **(options | changes)).train(old.training)

    def adapted(self, x: Tensor, out: Tensor) -> Tensor:
        """``out``, the frozen layer's output for ``x``, with the acting adapters applied; dtype kept."""
        if self.merged_adapters:
            if self.training:
                raise RuntimeError(
                    f"Adapters {list(self.merged_adapters)} are merged, so they would get no gradients. "
                    "Call lora_core.unmerge_lora(model) before training, or model.eval() for inference."
                )
            return out
        dtype, matrix, bias = out.dtype, self.weight_matrix(), getattr(self, self.bias_name)
        if self.row_adapters is not None:
            count, rows_of = self.row_adapters
            if len(x) != count:
                raise ValueError(
                    f"mixed_batch was given {count} adapter names, but an adapted layer sees {len(x)} rows. Give one "
                    "name for each row of the batch; layers whose first dimension is not the batch cannot be mixed."
                )
            for name, rows in rows_of:
                if name in self.lora:
                    new = self.lora[name](x[rows], out[rows], matrix, bias)
                    out = out.index_copy(0, rows, new.to(out.dtype))
            return out
        for name in self.active_adapters:
            out = self.lora[name](x, out, matrix, bias)
        return out.to(dtype)

    def merged_parameters(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """The layer's parameters with adapters ``names`` inside, computed wide and rounded once."""
        weight: Tensor = getattr(self, self.weight_name).detach()
        bias: Tensor | None = getattr(self, self.bias_name)
        wide = torch.promote_types(weight.dtype, torch.float32)
        matrix = self.matrix(weight).to(wide)
        wide_bias = None if bias is None else bias.detach().to(wide)
        for name in names:
            update = self.update_of(name)
            matrix = update.merged_matrix(matrix).detach()
            if update.bias is not None:
                if wide_bias is None:
                    raise ValueError(
                        f"Adapter {name!r} has a bias (lora_bias), but the layer has none to merge it into."
                    )
                wide_bias = wide_bias + update.scaling * update.bias.detach().to(wide)
        merged = matrix.T.contiguous() if self.transposed else matrix.view_as(weight)
        parameters = {self.weight_name: merged.to(weight.dtype)}
        if bias is not None and wide_bias is not None:
            parameters[self.bias_name] = wide_bias.to(bias.dtype)
        return parameters

    def _apply(self, fn, recurse: bool = True):  # moves and casts what waits in `frozen` with the rest
        super()._apply(fn, recurse)
        for parameter in self.frozen.values():
            parameter.data = fn(parameter.data)
        return self


class LoRALinear(LoRALayer, nn.Linear):
    """nn.Linear with adapters. Input (..., in_features), output (..., out_features)."""

    def new_update(self, *, thirds: tuple[str, ...] = (), **options) -> Update:
        if thirds:
            return ThirdsUpdate(self.in_features, self.out_features, thirds=thirds, **options)
        return LinearUpdate(self.in_features, self.out_features, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.adapted(x, F.linear(x, self.weight, self.bias))


class LoRAConv1D(LoRALayer):
    """transformers' Conv1D, a linear layer with a weight of (in, out), with adapters."""

    transposed = True
    weight: nn.Parameter

    def new_update(self, **options) -> Update:
        return LinearUpdate(*self.weight.shape, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.adapted(x, F.linear(x, self.weight.T, self.bias))


class LoRAEmbedding(LoRALayer, nn.Embedding):
    """nn.Embedding with adapters. Input (...) of ids, output (..., embedding_dim). Dropout does not apply to ids.

    Its matrix is (embedding_dim, num_embeddings), so DoRA has one magnitude per dimension, as in PEFT.
    """

    transposed = True
    bias = None

    def new_update(self, *, lora_dropout: float, lora_bias: bool, **options) -> Update:
        if lora_bias:
            raise ValueError("lora_bias is not defined for an embedding; leave it out of target_modules.")
        return EmbeddingUpdate(self.num_embeddings, self.embedding_dim, padding_idx=self.padding_idx, **options)

    def forward(self, ids: Tensor) -> Tensor:
        return self.adapted(ids, nn.Embedding.forward(self, ids))


class LoRAConv2d(LoRALayer, nn.Conv2d):
    """nn.Conv2d with adapters. Input (B, in, H, W), output (B, out, H', W')."""

    def new_update(self, **options) -> Update:
        return Conv2dUpdate(self, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.adapted(x, nn.Conv2d.forward(self, x))


class LoRAMultiheadAttention(LoRALayer, nn.MultiheadAttention):
    """nn.MultiheadAttention with adapters on its input projection; the output projection has its own host.

    nn.MultiheadAttention holds query, key and value projections as one raw parameter and never calls its `out_proj`,
    so its forward is written out here. torch's nn.TransformerEncoderLayer reads the weights of its children directly
    when it is not training; `block_fast_paths` makes it call them instead.

    Shapes: B batch, T target tokens, S source tokens, E embed_dim, H heads, D = E / H. `lora_A` (r, E), `lora_B`
    (3 E, r).
    """

    weight_name = "in_proj_weight"
    bias_name = "in_proj_bias"

    def new_update(self, *, use_dora: bool, lora_bias: bool, **options) -> Update:
        if self.bias_k is not None or self.add_zero_attn:
            raise ValueError(
                "nn.MultiheadAttention with add_bias_kv or add_zero_attn cannot be adapted; "
                "exclude it by exclude_modules."
            )
        if use_dora or lora_bias:
            raise ValueError(
                "nn.MultiheadAttention takes neither use_dora nor lora_bias, as in PEFT; exclude it by exclude_modules."
            )
        return LinearUpdate(self.embed_dim, 3 * self.embed_dim, use_dora=False, lora_bias=False, **options)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask, so attn_mask must be given too.")
        q, k, v = (self._split_heads(x) for x in self._project(query, key, value))  # (B, H, T or S, D)
        mask = self._mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q / math.sqrt(self.head_dim)) @ k.transpose(-2, -1)  # (B, H, T, S)
            scores = scores if mask is None else scores + mask
            weights = F.dropout(scores.softmax(-1), dropout)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))  # (B, T, E)
        if query.dim() == 2:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Projected query, key and value, (B, T or S, E). Inputs that are the same object are projected once."""
        q = self._fused(query)
        k = q if key is query else self._fused(key)
        v = q if value is query else k if value is key else self._fused(value)
        return tuple(fused.chunk(3, dim=-1)[i] for i, fused in enumerate((q, k, v)))

    def _fused(self, x: Tensor) -> Tensor:
        """All three projections of one input, (B, T or S, 3 E)."""
        rows = x.unsqueeze(0) if x.dim() == 2 else x if self.batch_first else x.transpose(0, 1)
        return self.adapted(rows, F.linear(rows, self.in_proj_weight, self.in_proj_bias))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # (B, H, T, D)

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
        """Both masks as one to add to the scores, (B or 1, H or 1, T or 1, S)."""
        total = None
        if attn_mask is not None:  # (T, S) or (B H, T, S)
            per_head = attn_mask.dim() == 3
            total = _additive(attn_mask.unflatten(0, (-1, self.num_heads)) if per_head else attn_mask[None, None], q)
        if key_padding_mask is not None:  # (B, S), or (S,) for an input without a batch
            padding = _additive(key_padding_mask, q).view(-1, 1, 1, key_padding_mask.shape[-1])
            total = padding if total is None else total + padding
        return total


def block_fast_paths(model: nn.Module, called: Collection[nn.Module]) -> dict[tuple[str, str], object]:
    """Make torch's transformer encoders call the modules in them in every mode.

    Args:
        model: where the encoders are.
        called: the modules that must be called; encoders without any of them stay fast.

    Returns:
        {(path, attribute): its old value}, for `restore_fast_paths`. The two attributes serve torch for nothing but
        the choice of the fast path.
    """
    old: dict[tuple[str, str], object] = {}
    for path, module in model.named_modules():
        attribute = _FAST_PATH_SWITCHES.get(next((c for c in _FAST_PATH_SWITCHES if isinstance(module, c)), object))
        if attribute and getattr(module, attribute, False) and any(inner in called for inner in module.modules()):
            old[path, attribute] = getattr(module, attribute)
            setattr(module, attribute, False)
    return old


def restore_fast_paths(model: nn.Module, old: dict[tuple[str, str], object]) -> None:
    """Undo ``block_fast_paths``."""
    for (path, attribute), value in old.items():
        setattr(model.get_submodule(path), attribute, value)


_FAST_PATH_SWITCHES: dict[type, str] = {
    nn.TransformerEncoderLayer: "activation_relu_or_gelu",
    nn.TransformerEncoder: "use_nested_tensor",
}


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """A boolean mask (True: hidden) as 0 and -inf; any other one as it is."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, -math.inf)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's wrapper, which has its modules under other paths; another model as it is."""
    return getattr(model, "_orig_mod", model)


def model_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of everything in ``model`` but what lies in adapters, in the order of ``named_modules``."""
    seen: set[nn.Module] = set()
    waiting = [("", unwrapped(model))]
    while waiting:
        path, module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        yield path, module
        if not module._modules:
            continue
        prefix, is_host = f"{path}." if path else "", isinstance(module, LoRALayer)
        for name, child in reversed(module._modules.items()):
            if child is not None and not (is_host and name == "lora"):
                waiting.append((prefix + name, child))
