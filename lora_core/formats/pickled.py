"""Weights as PyTorch pickles (`pytorch_model.bin`), which many older checkpoints have alone.

A pickle can run code when it is read. These are read by torch's unpickler of tensors (`weights_only`), which builds
nothing but tensors and plain containers and refuses the rest. Before torch 2.10 a file could still be made that spoils
its memory (CVE-2026-24747): there a warning says so.
"""

import errno
import logging
import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger("lora_core")

PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
SAFE_TORCH = "2.10"
"""The first version whose reader of pickled tensors has no known hole."""


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict that `torch.save` wrote, on the CPU.

    Those of a file in the zip format (torch 1.6 and newer) are views of the file: copy them before writing to them.

    Raises:
        ValueError: the file is damaged, holds anything but a state dict, or would run code.
    """
    again = "Download it again, or take a copy of the model in safetensors"
    if torch.__version__ < SAFE_TORCH:
        logger.warning(
            "%s is a pickle, and torch %s can be attacked by one (CVE-2026-24747). Read those of people that you "
            "trust, take a copy of the model in safetensors, or install torch %s.",
            path,
            torch.__version__,
            SAFE_TORCH,
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{path} holds more than tensors and could run code, or is damaged: it is not read ({reason}). {again}"
        ) from error
    except Exception as error:  # of a damaged file torch and pickle raise RuntimeError, EOFError, KeyError and others
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # with which a cut file cannot be mapped
            raise
        raise ValueError(f"{path} is not a whole file of torch.save ({_first_line(error)}). {again}") from error
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{path} holds {type(found).__name__}, not tensors by name. {again}")
    others = [(name, type(value).__name__) for name, value in found.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(
            f"{path} holds other things than tensors by name, first {others[0][0]!r}, a {others[0][1]}: it is a "
            "training checkpoint rather than a model. Save the model alone: torch.save(model.state_dict(), path)"
        )
    logger.info("%s is a pickle, of which only tensors are read; `lora-core convert` makes safetensors of it", path)
    return dict(found)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
