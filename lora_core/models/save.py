"""Write a model such that transformers' Auto classes and `load_pretrained` read it."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save_file

from lora_core.models.build import ENCODERS, architecture_name, assemble
from lora_core.models.config import CONFIG_FILE, HEAD_FIELD
from lora_core.models.task_model import Encoder, TaskModel
from lora_core.models.weights import SINGLE_FILE


def save_pretrained(model: Encoder | TaskModel, folder: str | Path) -> None:
    """Write the model's config.json and model.safetensors to `folder`, which is made if need be.

    Each file is written under a temporary name and then renamed, the weights first. The tokenizer's files are
    not the model's: copy them from its source.

    Raises ValueError when the model has other parameters than its architecture, such as unmerged adapters.
    """
    if not isinstance(model, (TaskModel, *ENCODERS.values())):
        raise ValueError(f"cannot save a {type(model).__name__}; expected a model of load_pretrained or build_model")
    with_pooler = model.task == "encoder" and getattr(model, "pooler", None) is not None
    head = model.head if isinstance(model, TaskModel) else "default"
    wanted = assemble(model.config, model.task, model.labels, head=head, with_pooler=with_pooler).state_dict()
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    differing = sorted(wanted.keys() ^ tensors.keys())
    if differing:
        raise ValueError(
            f"the model has other parameters than its architecture, first {differing[0]}; merge and eject "
            "adapters before saving the model, or save the adapter alone"
        )
    values = {
        "architectures": [architecture_name(model.config.model_type, model)],
        **model.config.to_dict(),
    }
    if head != "default":
        values[HEAD_FIELD] = head
    if model.labels:
        values["id2label"] = {str(row): name for row, name in enumerate(model.labels)}
        values["label2id"] = {name: row for row, name in enumerate(model.labels)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _replacing(folder / SINGLE_FILE) as path:
        save_file(tensors, path, metadata={"format": "pt"})
    with _replacing(folder / CONFIG_FILE) as path:
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it if the block succeeds, remove it if it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
