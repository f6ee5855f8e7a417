"""A checkpoint as it was found, written anew: safetensors, tokenizer.json, and the small files beside them."""

import logging
import shutil
from pathlib import Path

from safetensors.torch import save_file

from lora_core.checkpoint import refuse_non_finite
from lora_core.files import make_folder, replacing
from lora_core.models import resolve
from lora_core.models.pretrained.source import CONFIG_FILE, SINGLE_FILE, read_config, read_tensors, without_wrapper
from trainers.data.tokenizer import CONFIG, TOKENIZER_FILE, load_tokenizer

logger = logging.getLogger("trainers")

KEPT = (CONFIG_FILE, CONFIG, "special_tokens_map.json", "preprocessor_config.json")
"""Files that are copied as they are."""


def convert(source: str, folder: Path) -> list[Path]:
    """Write a checkpoint's weights as safetensors and its tokenizer as tokenizer.json, for this and other libraries.

    Names, shapes and precision of the tensors stay; TensorFlow's names of layer norms and what DataParallel put before
    the names are mended, as they are when a model is loaded.

    Args:
        source: a folder in transformers' layout, with a pickle or a SentencePiece model perhaps, or a hub id.
        folder: where the files go; another one than the source's.

    Returns:
        The files that were written.

    Raises:
        FileNotFoundError: the source lacks its config or its weights.
        ValueError: a file is damaged or not read here, a tensor holds NaN or infinity, or the folder is not empty.
    """
    found = resolve(source)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; name another folder for the converted model.")
    read_config(found)
    # Copies, because a pickle's tensors may share memory (tied embeddings), which safetensors does not write.
    tensors = {name: tensor.clone() for name, tensor in without_wrapper(read_tensors(found)).items()}
    refuse_non_finite(tensors, f"{found} was not converted (download the model again, or take another)")
    is_text = not (found / "preprocessor_config.json").is_file()
    tokenizer = load_tokenizer(found) if is_text else None
    make_folder(folder)
    with replacing(folder / SINGLE_FILE, sum(tensor.nbytes for tensor in tensors.values())) as path:
        save_file(tensors, path, metadata={"format": "pt"})
    for name in KEPT:
        if (found / name).is_file():
            with replacing(folder / name) as path:
                shutil.copyfile(found / name, path)
    if tokenizer is not None:
        with replacing(folder / TOKENIZER_FILE) as path:
            tokenizer.save(str(path))
    return sorted(folder.iterdir())
