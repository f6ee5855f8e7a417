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


def merge(source: Annotated[Path, tyro.conf.Positional], output_dir: Path) -> None:
    """Write a run's model, or an adapter with its base model, as one folder that transformers and others load.

        lora-core merge runs/lora --output-dir models/genes
        lora-core merge gene-adapter --output-dir models/genes

    Args:
        source: a finished run, or the folder of an adapter that one wrote, wherever it lies now.
        output_dir: a new folder.
    """
    from trainers.serve.merge import merge as write

    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"{output_dir} exists and is not empty; name another folder for the merged model.")
    for path in sorted(write(source, output_dir).iterdir()):
        print(path)
