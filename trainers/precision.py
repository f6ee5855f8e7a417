"""Mixed precision: one autocast, one loss scaler that does nothing unless the precision is fp16."""

from contextlib import AbstractContextManager

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Matrix products in ``precision`` ("fp32", "bf16" or "fp16"), the rest as torch's autocast chooses."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def grad_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss so that small fp16 gradients survive; disabled for other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
