"""How a model computes: fused or plain layers, what they keep, how much at a time, the precision of products, fp16's
loss scaler.
"""

import logging
import timeit
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import nn

from lora_core.kernels.fused import fuse, product_dtype, stacks, unfuse
from lora_core.kernels.linear import is_plain
from lora_core.kernels.native.build import ops
from lora_core.models.encoder import Encoder
from lora_core.models.layers import LayerStack
from trainers.config import TrainConfig
from trainers.processes.failure import is_main

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FUSED_ON = {("cpu", "fp32"), ("cpu", "bf16"), ("cuda", "fp32"), ("cuda", "bf16"), ("cuda", "fp16")}
"""Devices and precisions that the fused layers are for."""
FUSED_TOKENS = 384
"""Tokens of a training pass of fused layers for each thread; 512 are up to 4% faster and take 20 to 30% more memory."""

SLOWER = 0.9
"""Relative speed below which a precision is called slower; a busy machine blurs it."""


def choose_kernels(model: nn.Module, config: TrainConfig, device: torch.device) -> None:
    """Give ``model`` the layers that ``config.kernels`` asks for, in place.

    The fused ones are for CUDA, and for the CPU in fp32 and bf16. Elsewhere, in models without layers that can be
    fused, and where the parameters are shared out over processes, or layers are compiled, the plain ones are used.

    Raises:
        ValueError: gradient_checkpointing is asked for, but the model has no stack of layers to compute again; or
            frozen, but the fused layers are not used.
    """
    if config.parallel == "fsdp" or config.compile:
        unfuse(model)
    elif config.kernels == "fused" and (device.type, config.precision) in FUSED_ON and stacks(model):
        fuse(model, DTYPES[config.precision], config.frozen and torch.int8)
        if config.frozen is not None and is_main() and not _has_frozen_products(model):
            logger.warning(
                "--frozen %s changes nothing here: every weight of the layers is trained, or its adapter is not LoRA's "
                "plain form (DoRA, PiSSA), for which layers run as they are.",
                config.frozen,
            )
    elif config.frozen is not None:
        why = "this model has none" if not stacks(model) else f"{config.precision} on {device.type} has none"
        raise ValueError(f"frozen {config.frozen} is for the fused layers, but {why}. Leave out --frozen.")
    else:
        unfuse(model)
    found = _layer_stacks(model)
    if config.gradient_checkpointing and not found:
        raise ValueError(
            "gradient_checkpointing computes an encoder's layers again, but this model has none. Leave out "
            "--gradient-checkpointing; a smaller --micro-batch-tokens takes less memory too."
        )
    for stack in found:
        stack.gradient_checkpointing = config.gradient_checkpointing


def compile_layers(model: nn.Module, config: TrainConfig, backend: str | Callable = "inductor") -> None:
    """Have each layer of ``model`` compiled when it is first called, if ``config.compile`` says so, in place.

    The layers of an encoder share what is compiled; parameters and their names stay. Sizes of batches are variables of
    the compiled code, so that no batch waits for a compiler but the first, and the first without padding.

    Raises:
        ValueError: the model has no stack of layers.
    """
    if not config.compile:
        return
    found = _layer_stacks(model)
    if not found:
        raise ValueError("compile is for an encoder's layers, but this model has none. Leave out --compile.")
    for stack in found:
        for layer in stack:
            layer.compile(backend=backend, dynamic=True)


def _has_frozen_products(model: nn.Module) -> bool:
    """Whether a layer of the fused stacks multiplies by a frozen weight in the kernels."""
    layers = (layer for stack in stacks(model) for layer in stack.modules())
    return any(is_plain(layer) and not layer.weight.requires_grad for layer in layers)


def _layer_stacks(model: nn.Module) -> list[LayerStack]:
    return [module for module in model.modules() if isinstance(module, LayerStack)]


def dropout_drawn_by(model: nn.Module) -> str:
    """What draws the masks of dropout in training: fused layers on a CPU have a generator in C++, where it is built."""
    cpu = next(model.parameters()).device.type == "cpu"
    return "C++" if cpu and product_dtype(model) is not None and ops() is not None else "torch"


def micro_batch_tokens(model: nn.Module, config: TrainConfig) -> int | None:
    """Most tokens in one training pass of ``model``, padding included; None: no limit, or it is counted in examples.

    An image counts as one, as in ``config``. What "auto" asks for is found before (largest_batch.py).
    """
    if config.micro_batch_tokens is not None:
        assert config.micro_batch_tokens != "auto"
        return config.micro_batch_tokens
    if config.micro_batch_size is not None or product_dtype(model) is None:
        return None
    if next(model.parameters()).device.type != "cpu":
        return None
    most = FUSED_TOKENS * max(2, torch.get_num_threads())
    of_image = next((part.image_tokens for part in model.modules() if isinstance(part, Encoder)), 0)
    return max(1, round(most / of_image)) if of_image else most


def autocast(model: nn.Module, precision: str, device: torch.device) -> AbstractContextManager:
    """Matrix products in ``precision`` ("fp32", "bf16" or "fp16"), the rest as torch's autocast chooses.

    Layers fused in that precision need no autocast, and what is around them (embeddings, head) stays in fp32.
    """
    dtype = DTYPES[precision]
    return torch.autocast(device.type, dtype, enabled=precision != "fp32" and product_dtype(model) != dtype)


def slow_precision(precision: str, device: str, capability: tuple[int, int] | None = None) -> str | None:
    """What is said of a precision that is slower than another on a device; None where there is nothing to say.

    Args:
        device: its type, "cpu" or "cuda".
        capability: of a GPU.
    """
    if precision == "fp16" and device == "cpu":
        return (
            "--precision fp16 on a CPU takes about 15 times as long as fp32, which is the better choice here; so is "
            "bf16 on CPUs with AMX and some with AVX512-bf16. fp16 is for GPUs."
        )
    if precision == "bf16" and device == "cpu" and (speed := bf16_speed()) < SLOWER:
        return (
            f"--precision bf16: this CPU multiplies matrices in bf16 at {speed:.2f} times its speed in fp32. Use "
            "--precision fp32."
        )
    if precision == "bf16" and capability is not None and capability < (8, 0):
        return (
            f"--precision bf16: this GPU (compute capability {capability[0]}.{capability[1]}) computes bf16 without "
            "its tensor cores, slower than fp32. Use --precision fp16."
        )
    return None


def bf16_speed() -> float:
    """How fast this CPU multiplies matrices in bf16, as a multiple of its speed in fp32.

    It is measured, in a tenth of a second: AVX512-bf16 without AMX doubles the speed of some CPUs and halves that of
    others, and what is emulated is slower still.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        rows, weight = torch.ones(512, 384, dtype=dtype), torch.ones(1536, 384, dtype=dtype)
        seconds[dtype] = min(timeit.repeat(lambda x=rows, w=weight: nn.functional.linear(x, w), number=1, repeat=8))
    return seconds[torch.float32] / seconds[torch.bfloat16]


def grad_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss so that small fp16 gradients survive; disabled for other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
