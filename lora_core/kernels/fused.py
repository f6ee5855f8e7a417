"""Fast transformer layers for training on a CPU: ``fuse(model)`` and back by ``unfuse(model)``.

The plain layers of lora_core.models say what is computed, and each says where its parts are. A fused model computes the
same (in fp32 to rounding, with other random numbers in dropout) in less time and memory: without the padding of the
batch (the hidden states of padding are zeros, not what they happen to be otherwise), with hand-written backward passes
that compute and keep only what is needed, and if wished with matrix products in bf16, or those of frozen weights in
int8, on a copy of the frozen weights, made once.

Only the class of the stack of layers changes, so parameters, their names and their dtypes are as before, and adapters
are injected, loaded, merged, saved and ejected as usual, before or after. Where the fused layers would not compute
what the plain ones do (`obstacle` lists when), the plain ones run, and a log message says why. Layers with DoRA, PiSSA
or several active adapters run as they are inside the fused stack.
"""

import logging

import torch
from torch import Tensor, nn

from lora_core.kernels.int8 import unsupported
from lora_core.kernels.linear import FROZEN_COPY, Products
from lora_core.kernels.packing import Layout
from lora_core.kernels.transformer_layer import run_layer
from lora_core.layers import LoRALayer
from lora_core.models.layers import LayerStack

logger = logging.getLogger("lora_core")


def fuse(model: nn.Module, dtype: torch.dtype | None = None, frozen: torch.dtype | None = None) -> nn.Module:
    """Let every stack of transformer layers in ``model`` use the fast path, in place; returns ``model``.

    Args:
        dtype: torch.bfloat16 computes matrix products in bf16. Frozen weights are then held in bf16 too (half their
            size on top), while the parameters, adapters, norms, softmax, residual sums and gradients stay fp32. Do
            not use autocast as well. torch.float16 does the same in fp16, on a GPU; scale the loss then. None computes
            in fp32.
        frozen: torch.int8 computes products with frozen weights in int8, forward and for the gradient of the input, on
            CPUs that have the instructions: twice the speed of bf16, with an error of about 1% in each product. The
            weights are rounded once, and what they meet as it comes (int8.py); all else is in ``dtype``. What is
            trained, and the adapters saved, are ordinary. None computes them in ``dtype`` too.

    Raises:
        ValueError: another dtype, or nothing in the model can be fused.
    """
    if frozen not in (None, torch.int8):
        raise ValueError(f"frozen is {frozen}; products with frozen weights can be in torch.int8, or None: in dtype.")
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype is {dtype}; matrix products can be in torch.bfloat16, torch.float16 or torch.float32.")
    found = stacks(model)
    if not found:
        raise ValueError(
            f"This {type(model).__name__} has no stack of layers that can be fused: no {LayerStack.__name__} of "
            "lora_core.models. Train it as it is."
        )
    for stack in found:
        object.__setattr__(stack, "__class__", FusedStack)
        assert isinstance(stack, FusedStack)
        stack.products = Products(None if dtype == torch.float32 else dtype, frozen)
        stack.told = set()
    return model


def unfuse(model: nn.Module) -> nn.Module:
    """Undo ``fuse``, in place, and free the copies of weights; returns ``model``. A plain model is left as it is."""
    for module in model.modules():
        if isinstance(module, FusedStack):
            del module.products, module.told
            object.__setattr__(module, "__class__", LayerStack)
            for layer in module.modules():
                vars(layer).pop(FROZEN_COPY, None)
    return model


def stacks(model: nn.Module) -> list[nn.Module]:
    """The stacks of transformer layers in ``model`` that are fused or can be."""
    return [module for module in model.modules() if type(module) in (LayerStack, FusedStack)]  # not a user's subclass


def product_dtype(model: nn.Module) -> torch.dtype | None:
    """What fused layers of ``model`` compute matrix products in; None without such layers."""
    fused = (module for module in model.modules() if isinstance(module, FusedStack))
    return next((stack.products.dtype or torch.float32 for stack in fused), None)


DEVICES = ("cpu", "cuda", "meta")
"""Where the fused layers compute; on the meta device, which computes shapes alone, what a GPU would."""


class FusedStack(LayerStack):
    """The layers in their fast form."""

    products: Products
    told: set[str]
    """Reasons that were logged."""

    def forward(self, hidden: Tensor, mask: Tensor | None, *shared: Tensor, read: int | None = None) -> Tensor:
        if self.blocked(hidden):
            return super().forward(hidden, mask, *shared, read=read)
        layout, products = Layout.of(hidden, mask), self.products_on(hidden.device)
        x = layout.pack(hidden)
        read_last = read if layout.index is None else None  # with padding, all are computed and the leading ones taken
        *before, last = self.sequence()
        for layer in before:
            x = self.run(run_layer, layer, x, layout, products, shared)
        hidden = layout.pad(self.run(run_layer, last, x, layout, products, shared, read_last))
        return hidden if read is None else hidden[:, :read]

    def blocked(self, hidden: Tensor) -> bool:
        """Whether the plain layers must run; says why, once for each reason."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            return True  # an exporter or compiler wants the plain operations, and no messages
        if not hidden.numel():
            return True
        reason = obstacle(self, hidden)
        if reason is not None:
            self.tell(f"The plain layers are used, not the fused ones: {reason}.")
        return reason is not None

    def products_on(self, device: torch.device) -> Products:
        """How matrix products are computed there; says once why not in int8."""
        if self.products.frozen is None:
            return self.products
        reason = unsupported(device.type)
        if reason is None:
            return self.products
        self.tell(f"Products with frozen weights are not computed in int8 but as the others: {reason}.")
        return self.products._replace(frozen=None)

    def tell(self, reason: str) -> None:
        """Log it, once."""
        if reason not in self.told:
            self.told.add(reason)
            logger.warning(reason)


def obstacle(stack: FusedStack, hidden: Tensor) -> str | None:
    """Why the fused layers would not compute what the plain ones do; None when they would."""
    if hidden.device.type not in DEVICES:
        return f"the model is on {hidden.device.type}, they are for CPUs and CUDA"
    if hidden.device.type == "cpu" and stack.products.dtype == torch.float16:
        return "products in torch.float16 are for a GPU; fuse(model, dtype=torch.bfloat16) is for a CPU"
    if hidden.dtype != torch.float32:
        return f"the hidden states are {hidden.dtype}, they take torch.float32"
    if hidden.device.type != "meta" and torch.is_autocast_enabled(hidden.device.type):
        return "autocast is on; fuse(model, dtype=torch.bfloat16) takes its place"
    for layer in stack:
        if "parts" not in vars(type(layer)):  # a subclass of the layer that has them may compute something else
            return f"a layer is a {type(layer).__name__}, which does not say where its parts are"
        for path, module in layer.named_modules():
            hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
            if any(hooks):
                return f"there is a hook on {path or 'a layer'}"
            if isinstance(module, LoRALayer) and module.row_adapters is not None:
                return "the batch mixes adapters"
            if "forward" in vars(module):
                return f"{path or 'a layer'} has a forward of its own"
    return None
