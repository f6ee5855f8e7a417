"""A GPU that no machine needs: torch's meta device, on which tensors have shapes and no content, watched.

What works there works on a GPU as far as devices go: a tensor of the CPU that meets one of the device raises, and so
does whatever has a shape that depends on content. What brings content to the host is a wait on a GPU: it is answered
with ones or zeros, and counted by the place in our code that asked.
"""

import sys
from collections import Counter
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[2]
OURS = (str(ROOT / "lora_core"), str(ROOT / "trainers"))
META = torch.device("meta")
aten = torch.ops.aten
TAKES_BOTH = {aten._pack_padded_sequence.default}
"""Operations that want some of their tensors on the CPU: here the lengths."""


class DeviceWatch(TorchDispatchMode):
    """Within it every operation is looked at; `waits` says how often the host waits for the device, by place."""

    def __init__(self, device: torch.device = META) -> None:
        """
        Args:
            device: the CPU: only what is read of its tensors is counted, and answered truly.
        """
        super().__init__()
        self.device = device
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # as in inference mode, where what is made of other operations arrives whole
                return func.decompose(*args, **kwargs)
        if self.device != META:
            self.waits[place()] += func is aten._local_scalar_dense.default
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default and args[0].is_meta:
            self.waits[place()] += 1
            return 1.0 if args[0].dtype.is_floating_point else True
        if func is aten._to_copy.default:
            source, target = args[0], torch.device(kwargs.get("device") or args[0].device)
            if source.is_meta and target.type == "cpu":
                self.waits[place()] += 1
                return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
            if source.device.type == "cpu" and target == META and not kwargs.get("non_blocking"):
                self.waits[place()] += 1  # torch waits for a copy that is not said to be non_blocking
        elif func is aten.copy_.default and args[0].device != args[1].device:
            self.waits[place()] += 1
            return args[0].zero_() if args[1].is_meta else args[0]
        elif func not in TAKES_BOTH:
            check_devices(func, args, kwargs)
        return func(*args, **kwargs)


def check_devices(func, args, kwargs) -> None:
    """Refuse what a GPU refuses: tensors of both devices, but for numbers (tensors without dimensions)."""
    values = [*args, *kwargs.values()]
    values += [inner for value in values if isinstance(value, (list, tuple)) for inner in value]
    found = {value.device.type for value in values if isinstance(value, torch.Tensor) and value.ndim}
    if len(found) > 1:
        raise RuntimeError(f"{func} in {place()} mixes tensors of {' and '.join(sorted(found))}")


def place() -> str:
    """The function of ours that is at work, as `trainers/loop.py fit`."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(OURS):
            return f"{Path(frame.f_code.co_filename).relative_to(ROOT)} {frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"
