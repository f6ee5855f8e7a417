"""torch's nn.MultiheadAttention with adapters on its input projection; the output projection has its own host.

nn.MultiheadAttention holds query, key and value projections as one raw parameter and never calls its `out_proj`,
so its forward is written out here. torch's nn.TransformerEncoderLayer reads the weights of its children directly
when it is not training; `block_fast_paths` makes it call them instead.

Shapes: B batch, T target tokens, S source tokens, E embed_dim, H heads, D = E / H. `lora_A` (r, E), `lora_B` (3 E, r).
"""

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_core.layers import LoRALayer
from lora_core.updates import LinearUpdate, Update


class LoRAMultiheadAttention(LoRALayer, nn.MultiheadAttention):
    """nn.MultiheadAttention with adapters; same arguments and results."""

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
