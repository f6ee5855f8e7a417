"""LoRA on chosen thirds of one fused query-key-value Linear, as timm's vision transformers have it.

The Linear's output holds queries, keys and values one after the other. A target such as `attn.qkv.q` adapts only the
first third of its rows. On disk that is an ordinary adapter of the whole Linear (which PEFT loads): the A factors
stacked, the B factors on the diagonal of a block matrix. Loaded from there it is an ordinary one.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_core.updates import LinearAdapter

THIRDS = ("q", "k", "v")

_FUSED_NAMES = ("qkv", "Wqkv")


def is_fused_qkv(path: str, module: nn.Module) -> bool:
    """Whether the layer at ``path`` holds query, key and value projections one after the other (timm, ModernBERT)."""
    named = path.rpartition(".")[2] in _FUSED_NAMES
    return named and isinstance(module, nn.Linear) and module.out_features % 3 == 0


def split_thirds(targets: Sequence[str], fused: set[str]) -> dict[str, tuple[str, ...]]:
    """Targets as {path of the layer: the thirds to adapt, () for all of it}; ``fused`` has the fused layers' paths."""
    layers: dict[str, tuple[str, ...]] = {}
    for target in targets:
        path, _, third = target.rpartition(".")
        if path in fused and third in THIRDS:
            if layers.get(path) == ():
                raise ValueError(f"target_modules matches both {path} and its part {target}; name one of them.")
            layers[path] = (*layers.get(path, ()), third)
        else:
            layers[target] = ()
    return layers


class ThirdsAdapter(LinearAdapter):
    """Updates of some thirds of a fused layer: ``lora_A`` (n r, in) and ``lora_B`` (n out / 3, r) for n thirds."""

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

    def update(self, x: Tensor) -> Tensor:
        hidden = (F.linear(x, self.lora_A.weight) * self.scaling).chunk(len(self.thirds), dim=-1)  # (..., r) each
        parts = [F.linear(h, b) for h, b in zip(hidden, self.lora_B.weight.chunk(len(self.thirds)), strict=True)]
        zero = torch.zeros_like(parts[0])
        return torch.cat([parts[self.thirds.index(i)] if i in self.thirds else zero for i in range(3)], dim=-1)
