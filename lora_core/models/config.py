"""What the configs of all encoders share: they are read from config.json, checked, and written back."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from lora_core.models.layers import ACTIVATIONS

Config = TypeVar("Config", bound="EncoderConfig")

ONLY_SUPPORTED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
"""Fields of config.json that change the computation, with the one value that is implemented."""


@dataclass(frozen=True)
class EncoderConfig:
    """Base of the configs. A subclass's fields bear the names and defaults of transformers' config of that family."""

    model_type: ClassVar[str]
    """Name of the family in config.json."""
    activation_field: ClassVar[str]
    """Field that names the activation of the feed-forward layers."""
    attention_dropout_field: ClassVar[str]
    """Field with the dropout probability of the attention weights."""
    hidden_dropout_field: ClassVar[str]
    """Field with the dropout probability of embeddings and layer outputs."""

    @classmethod
    def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
        """Build the config from the content of a config.json; fields that the encoder does not use are ignored.

        Raises ValueError on a value that is malformed or that this implementation would not honour.
        """
        for name, supported in ONLY_SUPPORTED.items():
            if values.get(name, supported) != supported:
                raise ValueError(f"{name} is {values[name]!r} in this config; only {supported!r} is implemented")
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
            value, kind = getattr(self, field.name), field.type
            # JSON does not tell 0 from 0.0, so an integer does wherever a float does.
            well_typed = isinstance(value, kind) or (isinstance(value, int) and isinstance(0.0, kind))
            if not well_typed or isinstance(value, bool):
                raise ValueError(f"{field.name} is {value!r} in this config; expected {getattr(kind, '__name__', kind)}")
            least = 0 if field.name == "pad_token_id" else 1
            if kind is int and value < least:
                raise ValueError(f"{field.name} is {value} in this config; expected at least {least}")
            if isinstance(0.0, kind) and value is not None and not 0 <= value < 1:
                raise ValueError(f"{field.name} is {value} in this config; expected at least 0 and below 1")
        activation = getattr(self, self.activation_field)
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"{self.activation_field} is {activation!r} in this config; implemented are {', '.join(ACTIVATIONS)}"
            )
