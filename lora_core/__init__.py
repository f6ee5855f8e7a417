"""LoRA for encoder models, written by hand: inject, train, merge, save and load in PEFT's format."""

from lora_core.adapters import delete_adapter, disable_adapters, mixed_batch, set_adapter
from lora_core.checkpoint import load_adapter, lora_state_dict, save_adapter
from lora_core.combine import combine_adapters
from lora_core.config import LoRAConfig
from lora_core.eva import initialise_eva
from lora_core.hotswap import hotswap_adapter, prepare_hotswap
from lora_core.inject import add_adapter, eject_lora, inject_lora, parameter_counts
from lora_core.lora_plus import lora_plus_groups
from lora_core.merge import merge_lora, unmerge_lora
from lora_core.summary import summary

__version__ = "0.1.0"

__all__ = [
    "LoRAConfig",
    "add_adapter",
    "combine_adapters",
    "delete_adapter",
    "disable_adapters",
    "eject_lora",
    "hotswap_adapter",
    "initialise_eva",
    "inject_lora",
    "load_adapter",
    "lora_plus_groups",
    "lora_state_dict",
    "merge_lora",
    "mixed_batch",
    "parameter_counts",
    "prepare_hotswap",
    "save_adapter",
    "set_adapter",
    "summary",
    "unmerge_lora",
]
