"""Attention of packed tokens on a GPU: every token attends to its own sentence.

By one of two routes, which `route` chooses:

- "varlen": a kernel that is told where each sentence begins (torch.nn.attention.varlen, which is FlashAttention), so
  that nothing is computed for padding.
- "padded": scaled_dot_product_attention on the padded batch with a mask, for all else. Batches hold sentences of
  similar length (trainers sort them), so that little of it is padding. With a mask torch takes its memory-efficient
  kernel, which a V100 has too.

Shapes: B sentences, T tokens (padded), R packed rows, N attention heads, D size of a head, H = N D.
"""

import importlib
import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_core.kernels.packing import Layout
from lora_core.models.layers import MASKED, multi_head_attention

Route = Literal["varlen", "padded"]
VARLEN_ARGUMENTS = ("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k")
"""What torch's function is given, in this order."""
LARGEST_HEAD = 256
"""Size of a head that FlashAttention takes at most; and it must be a multiple of 8."""
MULTIPLE = 8
"""Padded lengths are multiples of it, as tensor cores want them."""


def route(
    capability: tuple[int, int] | None, dtype: torch.dtype, head_size: int, dropout_p: float, *, has_varlen: bool
) -> Route:
    """How the attention of packed tokens is computed.

    Args:
        capability: of the GPU, such as (8, 0); None: it is none.
        dtype: of queries, keys and values.
        head_size: D.
        dropout_p: of the attention weights; the kernel knows none.
        has_varlen: whether torch has the kernel: from 2.10 on.
    """
    fits = dtype in (torch.float16, torch.bfloat16) and head_size <= LARGEST_HEAD and head_size % 8 == 0
    if has_varlen and fits and not dropout_p and capability is not None and capability >= (8, 0):
        return "varlen"
    return "padded"


@lru_cache
def varlen_attention() -> Callable[..., Tensor] | None:
    """torch's attention of variable lengths; None where torch has none, or one that is called in another way."""
    try:
        found = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    return found if tuple(inspect.signature(found).parameters)[: len(VARLEN_ARGUMENTS)] == VARLEN_ARGUMENTS else None


@lru_cache
def _capability(device: torch.device) -> tuple[int, int] | None:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def attend_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    num_heads: int,
    dropout_p: float = 0.0,
    by: Route | None = None,
) -> Tensor:
    """`multi_head_attention` of packed queries, keys and values (R, H), packed too.

    Args:
        query: (R, H); or (B Q, H), where the first Q tokens of every sentence ask, in a batch without padding.
        dropout_p: of the attention weights, as it stands: 0 outside training.
        by: the route; None: `route` chooses.
    """
    if by is None:
        capability, size = _capability(query.device), query.shape[-1] // num_heads
        by = route(capability, query.dtype, size, dropout_p, has_varlen=varlen_attention() is not None)
    if by == "padded":
        return _padded(query, key, value, layout, num_heads, dropout_p)
    attention, (told, longest) = varlen_attention(), layout.boundaries
    assert attention is not None
    asked, most = told, longest
    if len(query) != len(key):
        most = len(query) // layout.sentences
        asked = torch.arange(0, len(query) + 1, most, dtype=torch.int32, device=query.device)
    query, key, value = (x.unflatten(-1, (num_heads, -1)) for x in (query, key, value))  # (R, N, D)
    return attention(query, key, value, asked, told, most, longest).flatten(1)


def _padded(query: Tensor, key: Tensor, value: Tensor, layout: Layout, num_heads: int, dropout_p: float) -> Tensor:
    query, key, value = (layout.pad(x) for x in (query, key, value))  # (B, T, H)
    asked, told, mask = query.shape[1], key.shape[1], layout.mask
    if mask is not None:
        more = -told % MULTIPLE
        key, value = (F.pad(x, (0, 0, 0, more)) for x in (key, value))
        query = F.pad(query, (0, 0, 0, -asked % MULTIPLE))
        mask = F.pad(mask.to(query.dtype), (0, more), value=MASKED)  # (B, 1, 1, T)
    context = multi_head_attention(query, key, value, mask, num_heads, dropout_p)
    context = context[:, :asked]
    return layout.pack(context) if asked == told else context.flatten(0, 1)
