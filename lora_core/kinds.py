"""Which host adapts which kind of layer."""

from torch import nn

from lora_core.layers import LoRAConv1D, LoRAConv2d, LoRAEmbedding, LoRALayer, LoRALinear
from lora_core.multihead import LoRAMultiheadAttention

HOSTS: dict[type[nn.Module], type[LoRALayer]] = {
    nn.Linear: LoRALinear,
    nn.Embedding: LoRAEmbedding,
    nn.Conv2d: LoRAConv2d,
    nn.MultiheadAttention: LoRAMultiheadAttention,
}


def host_class(layer: nn.Module) -> type[LoRALayer] | None:
    """The host of ``layer``; None when there is none for what it computes."""
    if isinstance(layer, LoRALayer):
        return type(layer)
    if _own_forward(layer):
        return None
    if type(layer).__name__ == "Conv1D" and hasattr(layer, "nf") and getattr(layer, "weight", None) is not None:
        return LoRAConv1D  # transformers', known by its looks so that transformers need not be there
    return next((host for kind, host in HOSTS.items() if isinstance(layer, kind)), None)


def refusal(path: str, layer: nn.Module) -> str | None:
    """Why a layer that looks adaptable is not; None when it is, or does not look so."""
    if host_class(layer) is not None or not isinstance(layer, tuple(HOSTS)):
        return None
    return (
        f"{path} is a {type(layer).__name__} with a computation of its own, which an adapter would bypass. "
        "Leave it out by exclude_modules."
    )


def _own_forward(layer: nn.Module) -> bool:
    """Whether ``layer`` computes something else than the kind of layer it descends from."""
    kind = next((kind for kind in HOSTS if isinstance(layer, kind)), None)
    changed = kind is not None and type(layer).forward is not kind.forward
    return changed or "forward" in vars(layer) or hasattr(layer, "parametrizations")
