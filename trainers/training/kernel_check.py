"""Whether the fused layers compute on a GPU what the plain ones do: tried once, before a run relies on them.

Kernels meet cards, drivers and compilers that no test has seen. A small batch through both kinds of layers, forward and
backward, takes a second, and a run whose kernels fail or differ goes on with the plain ones.
"""

import logging

import torch
from torch import Tensor, nn

from lora_core.kernels.fused import fuse, product_dtype, unfuse
from lora_core.models.encoder import Encoder
from lora_core.models.host import put

logger = logging.getLogger("trainers")

TOLERANCES = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}
"""By the dtype of products: the largest norm of a difference, relative to that of the result. A gradient that is small
beside the others is held against a tenth of the largest: some, such as of a key's bias, are nothing but rounding."""
LENGTHS = (12, 7)
"""Tokens of the texts that are tried."""


def check_kernels(model: nn.Module, device: torch.device, *, says: bool = True) -> None:
    """Give a model on a GPU its plain layers back where the fused ones do not compute the same there, in place.

    Args:
        says: whether this process tells the user.
    """
    dtype = product_dtype(model)
    if device.type != "cuda" or dtype is None:
        return
    why = disagreement(model, dtype, device)
    if why is not None:
        unfuse(model)
        if says:
            logger.warning("The plain layers are used: the fused ones %s. --kernels plain leaves out this check.", why)


def disagreement(model: nn.Module, dtype: torch.dtype, device: torch.device) -> str | None:
    """What is wrong with the fused layers of a model on its device; None: nothing. They are fused again at the end."""
    encoder = next(part for part in model.modules() if isinstance(part, Encoder))
    inputs, real = small_batch(encoder, device)
    was_training = model.training
    try:
        with torch.enable_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            fuse(model.train(), dtype)
            dropped = _results(encoder, inputs, real)
            model.eval()
            found = _results(encoder, inputs, real)
            unfuse(model)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                expected = _results(encoder, inputs, real)
    except Exception as error:  # a compiler's, a driver's: whatever it is, the plain layers go on without it
        return f"fail here: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    finally:
        fuse(model, dtype).train(was_training)
    if not all(tensor.isfinite().all() for tensor in dropped):
        return "give numbers that are not finite"
    largest = max((float(tensor.norm()) for tensor in expected[1:]), default=0.0)
    for one, other in zip(found, expected, strict=True):
        error = float((one - other).norm()) / max(float(other.norm()), largest / 10)
        if not error <= TOLERANCES[dtype]:
            return f"differ from them by {error:.0%}"
    return None


def small_batch(encoder: Encoder, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of an encoder, and which of its output is real, (B, T)."""
    if encoder.reads == "images":
        channels, sides = encoder.config.num_channels, encoder.config.image_shape
        pixels = torch.linspace(-1, 1, channels * sides[0] * sides[1]).view(1, channels, *sides)
        real = torch.ones(1, encoder.image_tokens, dtype=torch.bool)
        return {"pixel_values": put(pixels, device)}, real.to(device)
    lengths = torch.tensor(LENGTHS).clamp(max=encoder.config.max_tokens)
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    pad, words = encoder.config.pad_token_id, encoder.config.vocab_size
    ids = (pad + 1 + torch.arange(real.numel()) % max(1, words - 1)).view(real.shape) % words
    inputs = {"input_ids": ids.where(real, pad), "attention_mask": real.long()}
    return {name: put(tensor, device) for name, tensor in inputs.items()}, real.to(device)


def _results(encoder: Encoder, inputs: dict[str, Tensor], real: Tensor) -> list[Tensor]:
    """The hidden states of the real tokens, and the gradients of what is trained in the encoder."""
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    hidden = encoder(**inputs)[real].float()
    weights = torch.arange(hidden.numel(), device=hidden.device).view_as(hidden).cos()
    gradients = torch.autograd.grad((hidden * weights).sum(), trained, allow_unused=True) if trained else ()
    return [hidden.detach(), *(gradient for gradient in gradients if gradient is not None)]
