"""How adapters start: each scheme is one function of the frozen weight."""

import math

import torch
from torch import Tensor, nn

from lora_core.config import LoRAConfig
from lora_core.layers import Adapter, EmbeddingAdapter


@torch.no_grad()
def initialise(adapter: Adapter, weight: Tensor, config: LoRAConfig) -> None:
    """Fill ``adapter`` for the frozen ``weight`` of its layer, by ``config.init_lora_weights``.

    Raises:
        ValueError: the scheme is not defined for this kind of layer.
    """
    if isinstance(adapter, EmbeddingAdapter):
        nn.init.zeros_(adapter.lora_embedding_A)
        nn.init.normal_(adapter.lora_embedding_B)
    else:
        a, b = adapter.lora_A.weight, adapter.lora_B.weight
        if adapter.lora_B.bias is not None:
            nn.init.zeros_(adapter.lora_B.bias)
        match config.initialisation:
            case "gaussian":
                nn.init.normal_(a, std=1 / adapter.r)
                nn.init.zeros_(b)
            case "kaiming":
                nn.init.kaiming_uniform_(a, a=math.sqrt(5))
                nn.init.zeros_(b)
            case "random":
                nn.init.kaiming_uniform_(a, a=math.sqrt(5))
                nn.init.kaiming_uniform_(b, a=math.sqrt(5))
            case other:
                raise ValueError(f"init_lora_weights={other!r} is not available yet.")
    if adapter.lora_magnitude_vector is not None and not weight.is_meta:
        adapter.lora_magnitude_vector.copy_(adapter.row_norms(weight))
