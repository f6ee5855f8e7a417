"""What the configs of all encoders share: they are read from config.json, checked, and written back."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from lora_core.models.layers import ACTIVATIONS

Config = TypeVar("Config", bound="EncoderConfig")

CONFIG_FILE = "config.json"
HEAD_FIELD = "head"
"""In config.json: the name of a head that is not the family's own."""

ONLY_SUPPORTED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
"""Fields of config.json that change the computation, with the one value that is implemented."""


@dataclass(frozen=True)
class EncoderConfig:
    """Base of the configs; a subclass's fields bear the names and defaults of transformers' config."""

    model_type: ClassVar[str]
    """Name of the family in config.json."""
    activation_field: ClassVar[str | None]
    """Field that names the activation of the feed-forward layers; None: it has none."""
    attention_dropout_field: ClassVar[str]
    """Field with the dropout probability of the attention weights."""
    hidden_dropout_field: ClassVar[str]
    """Field with the dropout probability of embeddings and layer outputs."""

    @classmethod
    def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
        """Build the config from the content of a config.json, leaving aside fields that have no use here.

        Raises ValueError on a value that is malformed or that this implementation would not honour.
        """
        for name, supported in ONLY_SUPPORTED.items():
            if values.get(name, supported) != supported:
                raise ValueError(f"{name} is {values[name]!r}; only {supported!r} is implemented")
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in names})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and `model_type`, as config.json holds them."""
        return {"model_type": self.model_type, **dataclasses.asdict(self)}

    def with_dropout(self: Config, *, attention: float | None, hidden: float | None) -> Config:
        """Return a copy with other dropout probabilities; None keeps the present one."""
        changes = {self.attention_dropout_field: attention, self.hidden_dropout_field: hidden}
        return dataclasses.replace(self, **{name: p for name, p in changes.items() if p is not None})

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            kind: Any = field.type
            value = getattr(self, field.name)
            takes_float = isinstance(0.0, kind)
            # JSON does not tell 0 from 0.0, so an integer does wherever a float does.
            well_typed = isinstance(value, kind) or (takes_float and isinstance(value, int))
            if not well_typed or (isinstance(value, bool) and kind is not bool):
                raise ValueError(f"{field.name} is {value!r}; expected {getattr(kind, '__name__', kind)}")
            least = 0 if field.name == "pad_token_id" else 1
            if kind is int and value < least:
                raise ValueError(f"{field.name} is {value}; expected at least {least}")
            if takes_float and value is not None and not 0 <= value < 1:
                raise ValueError(f"{field.name} is {value}; expected at least 0 and below 1")
        activation = None if self.activation_field is None else getattr(self, self.activation_field)
        if activation is not None and activation not in ACTIVATIONS:
            raise ValueError(f"{self.activation_field} is {activation!r}; implemented are {', '.join(ACTIVATIONS)}")


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of the folder's config.json.

    Raises FileNotFoundError when there is none, ValueError when it is not a JSON object.
    """
    path = folder / CONFIG_FILE
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no {CONFIG_FILE}; give a model folder in the transformers layout")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); download or save the model again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected an object; download the model again")
    return values
