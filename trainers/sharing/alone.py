"""An adapter's folder that moves alone: head.json says what its base model becomes before the adapter is put in.

The folder names its base model in adapter_config.json, as PEFT has it; labels, task and head have no place there.
"""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lora_core
from lora_core.config import LoRAConfig, check_types
from lora_core.files import read_json_object, write_json
from lora_core.models import load_pretrained, resolve
from lora_core.models.labels import ProblemType, check_labels
from lora_core.models.pretrained.source import CONFIG_FILE
from lora_core.models.task_model import TaskModel
from trainers.inputs import weights_of

logger = logging.getLogger("trainers")

HEAD_FILE = "head.json"
"""The name beside an adapter's weights."""
REMEDY = "Copy the adapter's folder again, or take it from its run."


@dataclass(frozen=True)
class AdapterHead:
    """What a base model becomes before an adapter is put in."""

    task: str
    labels: tuple[str, ...]
    """Names in the order of the logits."""
    head: str = "default"
    """Its kind, as in the settings of a run."""
    fresh_head: bool = False
    """Whether the base model's own head is left out."""
    image_size: int | tuple[int, ...] | None = None
    """Side of the pictures in pixels, or height and width, where it is not the base model's."""
    problem_type: ProblemType | None = None
    """What the logits of a text or an image are for."""
    base: dict[str, str] = field(default_factory=dict)
    """sha256 of the files of the base model's weights (`trainers.inputs.weights_of`), by name."""

    def __post_init__(self) -> None:
        check_types(self)
        check_labels(self.labels)

    @classmethod
    def of(cls, model: TaskModel, config: Any, size: Any, base: Mapping[str, Any]) -> "AdapterHead":
        """That of a run's model.

        Args:
            config: the run's settings.
            size: `image_size` of its model.
            base: size and digest of the base model's files, as inputs.json has them.
        """
        size = tuple(size) if isinstance(size, (list, tuple)) else size
        digests = {name: file["sha256"] for name, file in base.items() if name != CONFIG_FILE}
        return cls(model.task, model.labels, config.head, config.fresh_head, size, model.problem_type, digests)

    def save(self, folder: Path) -> None:
        """Write head.json into a folder."""
        write_json(folder / HEAD_FILE, dataclasses.asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "AdapterHead":
        """From head.json in an adapter's folder.

        Raises:
            ValueError: the file is damaged.
        """
        path = folder / HEAD_FILE
        known = {own.name for own in dataclasses.fields(cls)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in read_json_object(path, REMEDY).items()
        }
        try:
            return cls(**{name: value for name, value in values.items() if name in known})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}. {REMEDY}") from error


def moves_alone(folder: Path) -> bool:
    """Whether an adapter's folder says all that its model needs."""
    return (folder / HEAD_FILE).is_file() and (folder / lora_core.checkpoint.CONFIG_FILE).is_file()


def load_alone(folder: Path) -> TaskModel:
    """The base model with the adapter of a folder, in eval mode.

    Raises:
        FileNotFoundError, ValueError: the base model is not found, or a file is missing or damaged.
    """
    head, base = AdapterHead.read(folder), LoRAConfig.load(folder).base_model_name_or_path
    where = f"{folder} is an adapter of the base model {base!r}, as adapter_config.json names it"
    if not base:
        raise ValueError(f"{where}. Write the model's folder or hub id there, under base_model_name_or_path.")
    try:
        found = resolve(base)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(
            f"{where}, which is not found: {error}. Write where it is into that file, under base_model_name_or_path."
        ) from error
    model = load_pretrained(
        base,
        head.task,
        head.labels,
        image_size=head.image_size,  # type: ignore[arg-type]
        head=head.head,
        fresh_head=head.fresh_head,
        head_follows=True,
    )
    assert isinstance(model, TaskModel)
    now = {name: file["sha256"] for name, file in weights_of(found).items() if name != CONFIG_FILE}
    if head.base and not set(now.values()) & set(head.base.values()):
        logger.warning(
            "the weights of %s are not the files that the adapter in %s was trained on: its predictions may differ, "
            "unless only their form has changed",
            base,
            folder,
        )
    lora_core.load_adapter(model, folder)
    model.problem_type = head.problem_type or model.problem_type
    return model.eval()
