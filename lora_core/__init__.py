"""LoRA for encoder models, written by hand: inject, train, merge, save and load in PEFT's format."""

from lora_core.adapters import delete_adapter, disable_adapters, mixed_batch, set_adapter
from lora_core.checkpoint import load_adapter, lora_state_dict, save_adapter
from lora_core.config import LoRAConfig
from lora_core.inject import add_adapter, eject_lora, inject_lora, parameter_counts
from lora_core.merge import merge_lora, unmerge_lora

__version__ = "0.1.0"

__all__ = [
    "LoRAConfig",
    "add_adapter",
    "delete_adapter",
    "disable_adapters",
    "eject_lora",
    "inject_lora",
    "load_adapter",
    "lora_state_dict",
    "merge_lora",
    "mixed_batch",
    "parameter_counts",
    "save_adapter",
    "set_adapter",
    "unmerge_lora",
]
