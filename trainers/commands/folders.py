"""Verbs for folders and files of models: info, convert, merge, push."""

import json
from pathlib import Path
from typing import Annotated, Literal

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


def push(
    source: Annotated[Path, tyro.conf.Positional],
    name: Annotated[str, tyro.conf.Positional],
    private: bool = False,
    message: str = "",
    dry_run: bool = False,
) -> None:
    """Upload a run's adapter or model, with its card, to the Hugging Face hub.

    The card shows an example of the scored data: read it before it is public (--dry-run says where it is). The token is
    that of `hf auth login`, or HF_TOKEN.

        lora-core push runs/lora user/genes --dry-run
        lora-core push runs/lora user/genes --private

    Args:
        source: a finished run, of which adapter/ or best/ goes; or such a folder, wherever it lies now.
        name: the repository, user/name; it is made if there is none.
        private: a new repository is private; else it is as the settings of the account have it.
        message: of the commit.
        dry_run: list what would be uploaded, and stop.
    """
    from trainers.run_folder import RunFolder
    from trainers.sharing.card import CARD, write_card
    from trainers.sharing.hub import check_name, uploads
    from trainers.sharing.hub import push as upload

    check_name(name)
    folder = source
    if RunFolder(source).metrics.is_file():
        from trainers.finished import FinishedRun

        finished = FinishedRun.open(source)
        folder = finished.weights_folder
        if not (folder / CARD).is_file():  # a run of an older version
            write_card(finished.config, finished.run.result)
    files = uploads(folder)
    for file in files:
        print(f"{file.size:>13,}  {file.name}")
    if dry_run:
        print(f"{sum(file.size for file in files):>13,}  bytes of {folder} would go to {name}; nothing was uploaded")
        return
    print(upload(files, name, private=private or None, message=message))


def info(path: Annotated[str, tyro.conf.Positional], format: Literal["text", "json"] = "text") -> None:
    """Say what a folder or file is: a run, an adapter, a model, a checkpoint, an ONNX file; with labels, sizes, origin.

    Of weights the headers are read, never the numbers.

        lora-core info runs/lora
        lora-core info runs/lora/model.int8.onnx --format json

    Args:
        path: a folder or a file.
        format: text for reading, json for programs.
    """
    from trainers.sharing.describe import describe, shown

    found = describe(Path(path).expanduser())
    print(json.dumps(found, indent=2, ensure_ascii=False) if format == "json" else shown(found))
