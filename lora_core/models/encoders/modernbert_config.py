"""What config.json says of a ModernBERT encoder, in the fields of transformers 4 or 5."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lora_core.models.encoder import EncoderConfig
from lora_core.models.layers import ACTIVATIONS

FULL, SLIDING = "full_attention", "sliding_attention"
"""Kinds of layers, as config.json names them."""
EVERY_N_LAYERS = 3
"""Every so manyth layer attends to the whole text, where config.json does not say."""


@dataclass(frozen=True)
class ModernBertConfig(EncoderConfig):
    """Sizes of a ModernBERT encoder; the defaults are ModernBERT-base."""

    model_type = "modernbert"
    activation_field = "hidden_activation"
    attention_dropout_field = "attention_dropout"
    hidden_dropout_field = "mlp_dropout"
    above_one: ClassVar[frozenset[str]] = frozenset(
        {"global_rope_theta", "local_rope_theta", "initializer_cutoff_factor"}
    )

    vocab_size: int = 50368
    """Rows of the word embeddings."""
    hidden_size: int = 768
    """Width H of the hidden states."""
    intermediate_size: int = 1152
    """Width F of the feed-forward layers, after their gate."""
    num_hidden_layers: int = 22
    """Transformer layers."""
    num_attention_heads: int = 12
    """Attention heads a layer; divides hidden_size."""
    hidden_activation: str = "gelu"
    """Activation of the feed-forward layers."""
    max_position_embeddings: int = 8192
    """Longest input, special tokens included."""
    layer_types: tuple[str, ...] | None = None
    """"full_attention" or "sliding_attention" for each layer; None: every third from the first is full."""
    local_attention: int = 128
    """Tokens that a sliding layer attends to, half of them on either side."""
    global_rope_theta: float = 160_000.0
    """Base of the rotation's wavelengths in full layers."""
    local_rope_theta: float = 10_000.0
    """The same in sliding layers."""
    norm_eps: float = 1e-5
    """Added to the variance in each LayerNorm."""
    norm_bias: bool = False
    """Whether norms have a bias."""
    attention_bias: bool = False
    """Whether the attention's linear layers have a bias."""
    mlp_bias: bool = False
    """Whether the feed-forward layers have a bias."""
    embedding_dropout: float = 0.0
    """Dropout after the embeddings."""
    attention_dropout: float = 0.0
    """Dropout of the attention weights, and after the attention's output projection."""
    mlp_dropout: float = 0.0
    """Dropout after the gate of the feed-forward layers."""
    classifier_pooling: Literal["cls", "mean"] = "cls"
    """What the text classifier reads: the first token, or the mean of all."""
    classifier_activation: str = "gelu"
    """Activation of the heads' dense layer."""
    classifier_bias: bool = False
    """Whether that layer has a bias."""
    classifier_dropout: float = 0.0
    """Dropout before the classifier."""
    initializer_range: float = 0.02
    """Standard deviation of new weights."""
    initializer_cutoff_factor: float | None = 2.0
    """Standard deviations at which new weights are cut off; None: 3."""
    pad_token_id: int = 50283
    """Id of the padding token."""
    bos_token_id: int | None = 50281
    """Id of the token before a text; this and the next three are kept for those who read the saved model."""
    eos_token_id: int | None = 50282
    """Id of the token after a text."""
    cls_token_id: int | None = 50281
    """Id of the first token."""
    sep_token_id: int | None = 50282
    """Id of the token between texts."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModernBertConfig":
        """As for all families, from the fields of transformers 4 (`global_attn_every_n_layers` and two thetas) or 5
        (`layer_types` and `rope_parameters`). `position_embedding_type` has no meaning here: mmBERT says "sans_pos".
        """
        found = {name: value for name, value in values.items() if name != "position_embedding_type"}
        _check_rotation("rope_scaling", values.get("rope_scaling"))
        thetas = _thetas(values)
        found |= thetas
        layers, every = values.get("num_hidden_layers", cls.num_hidden_layers), values.get("global_attn_every_n_layers")
        if isinstance(values.get("layer_types"), list):
            found["layer_types"] = tuple(values["layer_types"])
        elif every is not None and isinstance(layers, int):
            found["layer_types"] = layer_types(layers, every)
        unset = {name for name in thetas if found[name] is None}
        return super().from_dict({name: value for name, value in found.items() if name not in unset})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer_types is None:
            object.__setattr__(self, "layer_types", layer_types(self.num_hidden_layers, EVERY_N_LAYERS))
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} is not an even multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        kinds = self.kinds
        if len(kinds) != self.num_hidden_layers or not {*kinds} <= {FULL, SLIDING}:
            raise ValueError(
                f"layer_types is {list(kinds)}; expected {FULL} or {SLIDING} for each of the {self.num_hidden_layers} "
                "layers"
            )
        if self.classifier_activation not in ACTIVATIONS:
            raise ValueError(
                f"classifier_activation is {self.classifier_activation!r}; implemented are {', '.join(ACTIVATIONS)}"
            )

    def with_dropout(self, *, attention: float | None, hidden: float | None) -> "ModernBertConfig":
        config = super().with_dropout(attention=attention, hidden=hidden)
        return config if hidden is None else dataclasses.replace(config, embedding_dropout=hidden)

    @property
    def kinds(self) -> tuple[str, ...]:
        """`layer_types`, filled in."""
        assert self.layer_types is not None
        return self.layer_types

    @property
    def window(self) -> int:
        """Tokens that a sliding layer attends to on either side of each."""
        return self.local_attention // 2

    @property
    def max_tokens(self) -> int:
        """Longest input, special tokens included."""
        return self.max_position_embeddings

    @property
    def head_dropout(self) -> float:
        """Dropout before the classifier."""
        return self.classifier_dropout


def layer_types(layers: int, every: int) -> tuple[str, ...]:
    """The kind of each layer, where every so manyth from the first attends to the whole text.

    Raises:
        ValueError: `every` is no number of layers.
    """
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"global_attn_every_n_layers is {every!r}; expected a whole number of at least 1")
    return tuple(SLIDING if number % every else FULL for number in range(layers))


def _thetas(values: Mapping[str, Any]) -> dict[str, Any]:
    """The two thetas that a config.json states, in its old fields or its new one.

    Raises:
        ValueError: it states more of the angles than is implemented.
    """
    rotations = values.get("rope_parameters") or {}
    if not isinstance(rotations, Mapping) or not rotations.keys() <= {FULL, SLIDING}:
        raise ValueError(f"rope_parameters is {rotations!r}; expected those of {FULL} and of {SLIDING}, and no others")
    found = {}
    for kind, field in ((FULL, "global_rope_theta"), (SLIDING, "local_rope_theta")):
        rotation = rotations.get(kind) or {}
        _check_rotation(f"rope_parameters[{kind!r}]", rotation)
        found[field] = rotation.get("rope_theta", values.get(field))
    return found


def _check_rotation(name: str, rotation: Any) -> None:
    """Refuse angles that are scaled for longer texts."""
    settings = {} if rotation is None else rotation
    if isinstance(settings, Mapping):
        usual = {"rope_theta": settings.get("rope_theta"), "rope_type": "default", "type": "default"}
        if all(name in usual and value == usual[name] for name, value in settings.items()):
            return
    raise ValueError(f"{name} is {rotation}; implemented is only the rope_type 'default', without more settings")
