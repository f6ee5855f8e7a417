"""A run, or an adapter's folder, as a whole model: adapters merged, in transformers' layout."""

import shutil
from pathlib import Path

from lora_core.files import replacing
from lora_core.models import save_pretrained
from lora_core.models.task_model import TaskModel
from trainers.data.images.processing import PREPROCESSOR_FILE
from trainers.data.labels import DECISION_FILE
from trainers.data.texts.encode import TEXT_PROCESSING_FILE
from trainers.data.tokenizer import CONFIG, TOKENIZER_FILE
from trainers.serve.served import load_served

BESIDE = (TOKENIZER_FILE, CONFIG, TEXT_PROCESSING_FILE, PREPROCESSOR_FILE, DECISION_FILE)
"""Files beside the weights that inference reads."""


def merge(source: str | Path, folder: str | Path) -> Path:
    """Write the model of a run or of an adapter, adapters merged, into a folder, which is made if need be.

    Args:
        source: a finished run, or a folder with an adapter that moves alone.

    Returns:
        The folder, for `trainers.pipeline` and for transformers.

    Raises:
        ValueError, OSError: as `load_served`; or the source is an ONNX file.
    """
    served, folder = load_served(source, device="cpu"), Path(folder)
    if not isinstance(served.model, TaskModel) or served.folder is None:
        raise ValueError(f"{source} is an ONNX file, whose weights are merged already. Give the run that it is from.")
    save_pretrained(served.model, folder)
    for name in BESIDE:
        if (served.folder / name).is_file():
            with replacing(folder / name) as path:
                shutil.copyfile(served.folder / name, path)
    return folder
