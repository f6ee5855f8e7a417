"""LoRA for encoder models, written by hand: inject, train, merge, save and load in PEFT's format.

Read the files of this folder in the order of their imports:

    config           what to adapt and how, and adapter_config.json
    updates          the low-rank arithmetic: one small module for each adapter and layer
    layers           the hosts: layers that hold updates
    whole            heads and biases, trained in full
    adapters         several adapters on one model: set, disable, mix in a batch, delete
    targets          which layers a config means
    initialise       how A and B start
    inject           put adapters in, take them out
    merge            put updates into the weights, take them out again
    checkpoint       adapters on disk, in PEFT's format

What they share: patterns (which modules a name means), dropout, files. The rooms beside them: formats (of others'
weights), extras (what a reader who came for LoRA may skip), models, kernels, export. lora_core knows nothing of data or
training.

Names are imported when they are first used, so that programs which need no torch can use lora_core.files without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_core.adapters import delete_adapter, disable_adapters, mixed_batch, set_adapter
    from lora_core.checkpoint import load_adapter, lora_state_dict, save_adapter
    from lora_core.config import LoRAConfig
    from lora_core.extras.combine import combine_adapters
    from lora_core.extras.eva import initialise_eva
    from lora_core.extras.hotswap import hotswap_adapter, prepare_hotswap
    from lora_core.extras.lora_plus import lora_plus_groups
    from lora_core.extras.summary import summary
    from lora_core.inject import add_adapter, eject_lora, inject_lora, parameter_counts
    from lora_core.merge import merge_lora, unmerge_lora

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


_FILES = (
    "inject",
    "adapters",
    "checkpoint",
    "config",
    "merge",
    "extras.combine",
    "extras.eva",
    "extras.hotswap",
    "extras.lora_plus",
    "extras.summary",
)
"""Where the names are looked for, in this order."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        for file in _FILES:
            names = vars(import_module(f"{__name__}.{file}"))
            if name in names:
                return names[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
