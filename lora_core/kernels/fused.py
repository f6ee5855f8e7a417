"""Fast transformer layers for training on a CPU: ``fuse(model)`` and back by ``unfuse(model)``.

The plain layers of lora_core.models say what is computed. A fused model computes the same (in fp32 to rounding, with
other random numbers in dropout) in less time and memory: without the padding of the batch (the hidden states of
padding are zeros, not what they happen to be otherwise), with hand-written backward passes that compute and keep only
what is needed, and if wished with matrix products in bf16 on a copy of the frozen weights, made once.

Only the class of the stack of layers changes, so parameters, their names and their dtypes are as before, and adapters
are injected, loaded, merged, saved and ejected as usual, before or after. Where the fused layers would not compute
what the plain ones do (`obstacle` lists when), the plain ones run, and a log message says why. Layers with DoRA, PiSSA
or several active adapters run as they are inside the fused stack.
"""

import logging
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lora_core.kernels.layers import Parts, post_norm_layer, pre_norm_layer
from lora_core.kernels.linear import FROZEN_COPY
from lora_core.kernels.packing import Layout
from lora_core.layers import LoRALayer
from lora_core.models.bert import BertEncoder, BertLayer
from lora_core.models.distilbert import Transformer, TransformerBlock
from lora_core.models.vit import ViTEncoder, ViTLayer

logger = logging.getLogger("lora_core")


def fuse(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Let every stack of transformer layers in ``model`` use the fast path, in place; returns ``model``.

    Args:
        dtype: torch.bfloat16 computes matrix products in bf16. Frozen weights are then held in bf16 too (half their
            size on top), while the parameters, adapters, norms, softmax, residual sums and gradients stay fp32. Do
            not use autocast as well. None computes in fp32.

    Raises:
        ValueError: another dtype, or nothing in the model can be fused.
    """
    if dtype not in (None, torch.float32, torch.bfloat16):
        raise ValueError(f"dtype is {dtype}; matrix products can be in torch.bfloat16 or torch.float32.")
    found = stacks(model)
    if not found:
        known = ", ".join(plain.__name__ for plain in FUSED)
        raise ValueError(f"This {type(model).__name__} has no stack of layers that can be fused: {known}.")
    for stack in found:
        if not isinstance(stack, FusedStack):
            object.__setattr__(stack, "__class__", FUSED[type(stack)])
        assert isinstance(stack, FusedStack)
        stack.product_dtype = None if dtype == torch.float32 else dtype
        stack.told = set()
    return model


def unfuse(model: nn.Module) -> nn.Module:
    """Undo ``fuse``, in place, and free the copies of weights; returns ``model``. A plain model is left as it is."""
    for module in model.modules():
        if isinstance(module, FusedStack):
            del module.product_dtype, module.told
            object.__setattr__(module, "__class__", module.plain_class)
            for layer in module.modules():
                vars(layer).pop(FROZEN_COPY, None)
    return model


def stacks(model: nn.Module) -> list[nn.Module]:
    """The stacks of transformer layers in ``model`` that are fused or can be."""
    return [module for module in model.modules() if type(module) in FUSED or isinstance(module, FusedStack)]


def product_dtype(model: nn.Module) -> torch.dtype | None:
    """What fused layers of ``model`` compute matrix products in; None without such layers."""
    fused = (module for module in model.modules() if isinstance(module, FusedStack))
    return next((stack.product_dtype or torch.float32 for stack in fused), None)


class FusedStack(nn.Module):
    """What the fused classes share."""

    plain_class: ClassVar[type[nn.Module]]
    layer_class: ClassVar[type[nn.Module]]
    layer: nn.ModuleList
    product_dtype: torch.dtype | None
    told: set[str]
    """Obstacles that were logged."""

    def blocked(self, hidden: Tensor) -> bool:
        """Whether the plain layers must run; says why, once for each reason."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            return True  # an exporter or compiler wants the plain operations, and no messages
        if not hidden.numel():
            return True
        reason = obstacle(self, hidden)
        if reason is not None and reason not in self.told:
            self.told.add(reason)
            logger.warning("The plain layers are used, not the fused ones: %s.", reason)
        return reason is not None


def obstacle(stack: FusedStack, hidden: Tensor) -> str | None:
    """Why the fused layers would not compute what the plain ones do; None when they would."""
    if hidden.device.type != "cpu":
        return f"the model is on {hidden.device.type}, they are for the CPU"
    if hidden.dtype != torch.float32:
        return f"the hidden states are {hidden.dtype}, they take torch.float32"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on; fuse(model, dtype=torch.bfloat16) takes its place"
    for layer in stack.layer:
        if type(layer) is not stack.layer_class:
            return f"a layer is a {type(layer).__name__}"
        for path, module in layer.named_modules():
            if any((module._forward_hooks, module._forward_pre_hooks,
                    module._backward_hooks, module._backward_pre_hooks)):  # fmt: skip
                return f"there is a hook on {path or 'a layer'}"
            if isinstance(module, LoRALayer) and module.row_adapters is not None:
                return "the batch mixes adapters"
    return None


class FusedBertEncoder(FusedStack, BertEncoder):
    plain_class, layer_class = BertEncoder, BertLayer

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        if self.blocked(hidden):
            return BertEncoder.forward(self, hidden, mask)
        return run_post_norm(self, bert_parts, hidden, mask)


class FusedTransformer(FusedStack, Transformer):
    plain_class, layer_class = Transformer, TransformerBlock

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        if self.blocked(hidden):
            return Transformer.forward(self, hidden, mask)
        return run_post_norm(self, distilbert_parts, hidden, mask)


class FusedViTEncoder(FusedStack, ViTEncoder):
    plain_class, layer_class = ViTEncoder, ViTLayer

    def forward(self, hidden: Tensor, read: int | None) -> Tensor:
        if self.blocked(hidden):
            return ViTEncoder.forward(self, hidden, read)
        layout = Layout.of(hidden, None)
        x, last = layout.pack(hidden), len(self.layer) - 1
        for number, layer in enumerate(self.layer):
            assert isinstance(layer, ViTLayer)
            x = pre_norm_layer(vit_parts(layer), x, layout, self.product_dtype, read if number == last else None)
        return layout.pad(x)


FUSED: dict[type[nn.Module], type[FusedStack]] = {
    fused.plain_class: fused for fused in (FusedBertEncoder, FusedTransformer, FusedViTEncoder)
}
"""The fused class of each stack of layers."""


def run_post_norm(stack: FusedStack, parts_of: Callable[[Any], Parts], hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Hidden states (B, T, H) after all layers."""
    layout = Layout.of(hidden, mask)
    x = layout.pack(hidden)
    for layer in stack.layer:
        x = post_norm_layer(parts_of(layer), x, layout, stack.product_dtype)
    return layout.pad(x)


def bert_parts(layer: BertLayer) -> Parts:
    own, first, inner, second = layer.attention.self, layer.attention.output, layer.intermediate, layer.output
    return Parts(
        own.query, own.key, own.value, own.num_heads, own.dropout, first.dense, first.dropout, first.LayerNorm,
        inner.dense, inner.intermediate_act_fn, second.dense, second.dropout, second.LayerNorm,
    )  # fmt: skip


def distilbert_parts(layer: TransformerBlock) -> Parts:
    own, ffn = layer.attention, layer.ffn
    return Parts(
        own.q_lin, own.k_lin, own.v_lin, own.num_heads, own.dropout, own.out_lin, None, layer.sa_layer_norm,
        ffn.lin1, ffn.activation, ffn.lin2, ffn.dropout, layer.output_layer_norm,
    )  # fmt: skip


def vit_parts(layer: ViTLayer) -> Parts:
    own, first, inner, second = layer.attention.attention, layer.attention.output, layer.intermediate, layer.output
    return Parts(
        own.query, own.key, own.value, own.num_heads, own.dropout, first.dense, first.dropout, layer.layernorm_before,
        inner.dense, inner.intermediate_act_fn, second.dense, second.dropout, layer.layernorm_after,
    )  # fmt: skip
