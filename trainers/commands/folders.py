"""Verbs for folders and files of models: info, convert, merge, push."""

from pathlib import Path
from typing import Annotated

import tyro


def convert(source: Annotated[str, tyro.conf.Positional], output_dir: Path) -> None:
    """Write a published checkpoint as model.safetensors and tokenizer.json.

    Training reads the older forms too (pytorch_model.bin, spm.model); other tools may not.

        lora-core convert microsoft/deberta-v3-base --output-dir models/deberta-v3-base

    Args:
        source: a model's folder, or a hub id.
        output_dir: a new folder.
    """
    from trainers.convert import convert as write

    for path in write(source, output_dir):
        print(path)
