"""LoRAConfig: what to adapt and how, and its form on disk (PEFT's adapter_config.json).

Below it: check_types, the type check of every dataclass of settings here and above. Which modules the names in a config
mean, patterns.py says. The package begins here; updates.py is next.
"""

import dataclasses
import functools
import json
import logging
import math
import re
import sys
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from lora_core.files import read_json_object, write_text
from lora_core.patterns import Pattern, shown

logger = logging.getLogger("lora_core")

CONFIG_FILE = "adapter_config.json"

Names = str | tuple[str, ...] | None
"""Modules by name, as `Pattern` reads them."""

MOST_RANK = 1 << 16
"""Of an update; no layer of an encoder has more to give."""
MOST_NAMES = 20_000
"""Names, patterns or layers in one field."""
MOST_TOKENS = 1 << 17
"""Rows of the embedding that an adapter may train; more are better trained in full, by modules_to_save."""
MOST_ITERATIONS = 1000
"""N of "pissa_niter_N"; some 4 to 16 are usual."""

TASK_TYPES = {
    "token-classification": "TOKEN_CLS",
    "text-classification": "SEQ_CLS",
    "encoder": "FEATURE_EXTRACTION",
}
"""Our task names and PEFT's. Image classification has no PEFT name."""

_NAMES_FIELDS = ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern")
_MOST_INDEX = 1 << 62
_INITS = ("gaussian", "kaiming", "pissa", "olora", "orthogonal", "eva", "random")
_PISSA_NITER = re.compile(r"pissa_niter_([0-9]{1,9})")


@dataclass(frozen=True)
class LoRAConfig:
    """Every choice about one adapter. Field names are PEFT's; sequences are stored as tuples."""

    r: int = 8
    """Rank of the update B @ A."""
    lora_alpha: float | None = None
    """Numerator of the scaling alpha / r. None means r, that is a scaling of 1."""
    lora_dropout: float = 0.0
    """Probability of dropping an input element on the adapter's path (the frozen path sees every element)."""
    target_modules: Names = None
    """What to adapt: a preset ("qv", "qkv", "attention", "all-linear"), a regular expression that must match
    a module's whole dotted path (one string), or suffixes of paths (several strings). None means "qv"."""
    exclude_modules: Names = None
    """What not to adapt although target_modules matches it; a regular expression or suffixes."""
    modules_to_save: tuple[str, ...] | None = None
    """Modules trained in full and saved with the adapter, besides the task head; () freezes the head."""
    bias: str = "none"
    """Which bias vectors are trained too: "none", "all" (of the whole model) or "lora_only" (of the targets)."""
    init_lora_weights: str | bool = "gaussian"
    """"gaussian": A ~ N(0, 1/r^2), B = 0. "kaiming" (or True): A as PEFT's default, B = 0. "random" (or
    False): both random, so the adapter changes the model at once. "pissa", "pissa_niter_N" (randomised SVD with
    N iterations), "olora", "orthogonal", "eva"."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r), https://arxiv.org/abs/2312.03732."""
    use_dora: bool = False
    """Train a magnitude per output as well, https://arxiv.org/abs/2402.09353."""
    lora_bias: bool = False
    """Give B a bias vector; the base layer must have one to merge into."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Rank by module: the key is a regular expression that must match the end of a path after a dot."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """lora_alpha by module, keys as in rank_pattern."""
    layers_to_transform: tuple[int, ...] | None = None
    """Adapt only the layers with these indices; None or empty: all, as in PEFT."""
    layers_pattern: Names = None
    """Name of the module list that layers_to_transform counts in, when a path holds several."""
    trainable_token_indices: tuple[int, ...] | None = None
    """Rows of the input embedding that are trained in full and saved with the adapter."""
    fan_in_fan_out: bool = False
    """Kept for files of PEFT; the weight layout follows from the layer's class."""
    task_type: str | None = None
    """PEFT's task name; filled from the model when the adapter is saved."""
    base_model_name_or_path: str | None = None
    """Where the base model came from."""
    revision: str | None = None
    """Revision of the base model."""
    inference_mode: bool = False
    """Kept for files of PEFT, which writes true."""

    def __post_init__(self) -> None:
        for name in _NAMES_FIELDS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                object.__setattr__(self, name, _as_tuple(name, value))
        if isinstance(self.modules_to_save, str):
            object.__setattr__(self, "modules_to_save", (self.modules_to_save,))
        for name in ("layers_to_transform", "trainable_token_indices"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, (value,) if isinstance(value, int) else _as_tuple(name, value) or None)
        for name in ("rank_pattern", "alpha_pattern"):
            if isinstance(getattr(self, name), dict):
                object.__setattr__(self, name, dict(getattr(self, name)))
        self._validate()

    def _validate(self) -> None:
        for name in (*_NAMES_FIELDS, "rank_pattern", "alpha_pattern", "layers_to_transform", "trainable_token_indices"):
            value, most = getattr(self, name), MOST_TOKENS if name == "trainable_token_indices" else MOST_NAMES
            if isinstance(value, (tuple, dict)) and len(value) > most:
                raise ValueError(f"{name} holds {len(value):,} entries; the most allowed are {most:,}.")
        check_types(self)
        for where, r in [("r", self.r), *((f"rank_pattern[{k!r}]", v) for k, v in self.rank_pattern.items())]:
            if not 1 <= r <= MOST_RANK:
                raise ValueError(f"{where} must be a whole number of 1 to {MOST_RANK}, but it is {shown(r)}.")
        for name in _NAMES_FIELDS:
            names = getattr(self, name)
            if isinstance(names, tuple) and "" in names:
                raise ValueError(f"{name} must hold names of modules, but it is {shown(names)}.")
        for name in ("layers_to_transform", "trainable_token_indices"):
            if any(not 0 <= number < _MOST_INDEX for number in getattr(self, name) or ()):
                raise ValueError(f"{name} must hold whole numbers from 0, but it is {shown(getattr(self, name))}.")
        alphas = [("lora_alpha", self.alpha), *((f"alpha_pattern[{k!r}]", v) for k, v in self.alpha_pattern.items())]
        for where, alpha in alphas:
            if not math.isfinite(alpha):
                raise ValueError(f"{where} must be a finite number, but it is {alpha!r}.")
        expressions = [(name, getattr(self, name), Pattern) for name in ("target_modules", "exclude_modules")]
        for name in ("rank_pattern", "alpha_pattern"):
            expressions += [(name, key, Pattern.at_end) for key in getattr(self, name)]
        for name, expression, compiled in expressions:
            try:
                compiled(expression)
            except ValueError as error:
                raise ValueError(f"{name}: {error}.") from error
        if not 0.0 <= self.lora_dropout < 1.0:
            raise ValueError(f"lora_dropout must be at least 0 and below 1, but it is {self.lora_dropout!r}.")
        if self.bias not in ("none", "all", "lora_only"):
            raise ValueError(f'bias must be "none", "all" or "lora_only", but it is {shown(self.bias)}.')
        init = self.init_lora_weights
        if not isinstance(init, bool) and not _is_named_init(init):
            known = ", ".join((*_INITS, "pissa_niter_N"))
            raise ValueError(f"init_lora_weights must be one of {known}, True or False, but it is {shown(init)}.")
        if self.pissa_iterations is not None and self.pissa_iterations > MOST_ITERATIONS:
            raise ValueError(f"init_lora_weights is {init!r}; the most iterations allowed are {MOST_ITERATIONS}.")
        if init == "orthogonal" and any(r % 2 for r in (self.r, *self.rank_pattern.values())):
            raise ValueError(f"init_lora_weights='orthogonal' needs an even rank, but r is {self.r}.")
        if self.lora_bias and self.use_dora:
            raise ValueError("lora_bias cannot be combined with use_dora: neither paper says how the two act together.")

    @property
    def alpha(self) -> float:
        """lora_alpha with its default filled in."""
        return self.r if self.lora_alpha is None else self.lora_alpha

    @property
    def initialisation(self) -> str:
        """init_lora_weights as a name: PEFT's True is "kaiming", its False is "random"."""
        init = self.init_lora_weights
        return {True: "kaiming", False: "random"}[init] if isinstance(init, bool) else init

    @property
    def pissa_iterations(self) -> int | None:
        """N of "pissa_niter_N"; None for an exact SVD."""
        match = _PISSA_NITER.fullmatch(self.initialisation)
        return int(match[1]) if match else None

    def rank_of(self, path: str) -> int:
        """Rank of the module at ``path``, rank_pattern considered."""
        return next((r for key, r in self.rank_pattern.items() if Pattern.at_end(key).matches(path)), self.r)

    def alpha_of(self, path: str) -> float:
        """lora_alpha of the module at ``path``, alpha_pattern considered."""
        default = self.rank_of(path) if self.lora_alpha is None else self.lora_alpha
        return next((alpha for key, alpha in self.alpha_pattern.items() if Pattern.at_end(key).matches(path)), default)

    def scaling_of(self, path: str) -> float:
        """Factor of the update B @ A at ``path``: alpha / r, or alpha / sqrt(r) with use_rslora."""
        r = self.rank_of(path)
        return self.alpha_of(path) / (math.sqrt(r) if self.use_rslora else r)

    def with_alphas(self) -> "LoRAConfig":
        """This config with every alpha stated, since a file has no "as large as the rank"."""
        if self.lora_alpha is not None:
            return self
        by_rank = {pattern: r for pattern, r in self.rank_pattern.items() if pattern not in self.alpha_pattern}
        return dataclasses.replace(self, lora_alpha=self.r, alpha_pattern=self.alpha_pattern | by_rank)

    def to_dict(self) -> dict[str, Any]:
        """The fields as adapter_config.json holds them: sorted keys and lists, so equal configs give equal files."""
        values = dataclasses.asdict(self.with_alphas())
        for name, value in values.items():
            if isinstance(value, tuple):
                values[name] = list(value) if name == "trainable_token_indices" else sorted(value)  # rows have an order
        init = {"kaiming": True, "random": False}.get(self.initialisation, self.initialisation)
        values["init_lora_weights"] = True if self.lora_bias else init  # PEFT refuses names together with lora_bias
        values["peft_type"] = "LORA"
        return dict(sorted(values.items()))

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "the adapter's config") -> "LoRAConfig":
        """Read adapter_config.json's content; keys of features that this library lacks must be unset.

        Raises:
            ValueError: not a LoRA adapter, or one of a feature that would change its results is in use.
        """
        peft_type = values.get("peft_type")
        if peft_type != "LORA":
            raise ValueError(
                f"{where}: peft_type must be 'LORA', but it is {shown(peft_type)}. Only LoRA adapters can be read."
            )
        in_use = [name for name in _UNSUPPORTED if values.get(name)]
        if in_use:
            raise ValueError(
                f"{where} uses {', '.join(in_use)}, which lora_core does not have. "
                "Merge the adapter in PEFT and save the model instead."
            )
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known - _IGNORED - set(_UNSUPPORTED))
        if unknown:
            logger.warning("%s: unknown keys ignored: %s", where, shown(", ".join(unknown)))
        fields = {name: value for name, value in values.items() if name in known}
        if isinstance(fields.get("trainable_token_indices"), dict):
            raise ValueError(f"{where}: trainable_token_indices by module name is not supported; give a plain list.")
        init = fields.get("init_lora_weights", True)
        if isinstance(init, str) and init in _CHANGED_BASE:
            raise ValueError(
                f"{where}: init_lora_weights={init!r} changed the base model that the adapter belongs to. "
                "Save it in PEFT with path_initial_model_for_weight_conversion, or merge it there and save the model."
            )
        if not isinstance(init, bool) and not _is_named_init(init):
            fields["init_lora_weights"] = True  # only how training began; the file holds the weights
        try:
            given: dict[str, Any] = {k: v for k, v in fields.items() if v is not None or k in _NULLABLE}
            return cls(**given)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error

    def save(self, folder: Path) -> None:
        """Write adapter_config.json into ``folder``, whole or not at all."""
        write_text(folder / CONFIG_FILE, self.to_json())

    def to_json(self) -> str:
        """The content of adapter_config.json, in ASCII, since PEFT reads it in the encoding of the user's locale."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def load(cls, folder: Path) -> "LoRAConfig":
        """Read adapter_config.json from ``folder``.

        Raises:
            ValueError: the file is missing, is not JSON, or does not describe a LoRA adapter.
        """
        path = folder / CONFIG_FILE
        if not path.exists():
            inner = sorted(str(found.parent) for found in folder.glob(f"*/{CONFIG_FILE}"))
            remedy = f" There are adapters in {', '.join(inner)}; name one of them." if inner else ""
            raise ValueError(f"{path} does not exist; {folder} is not a folder that an adapter was saved in.{remedy}")
        values = read_json_object(path, "Save or copy the adapter again.")
        return cls.from_dict(values, where=str(path))


_NULLABLE = {f.name for f in dataclasses.fields(LoRAConfig) if f.default is None}
_UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
"""PEFT features that change what an adapter computes and that encoders do without."""
_IGNORED = {
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
}
"""PEFT fields that do not change what a saved adapter computes."""


_CHANGED_BASE = ("corda", "loftq", "lora_ga")
"""Starts of PEFT that leave the base model other than it was, and that are not repeated here."""


def _is_named_init(init: Any) -> bool:
    return isinstance(init, str) and (init in _INITS or _PISSA_NITER.fullmatch(init) is not None)


def _as_tuple(field: str, value: Any) -> tuple:
    if not isinstance(value, list | tuple | set | frozenset | range):
        raise ValueError(f"{field} must be a list, but it is {shown(value)}.")
    return tuple(value)


def check_types(settings: Any) -> None:
    """Check the values of a dataclass against the types that its annotations name.

    Known are str, bool, int, float (an int does where a float is expected, as in TOML and JSON), Path, Literal, unions,
    tuple[..., ...] and dict.

    Raises:
        ValueError: a field holds something else; the message names it, its value and what it should be.
    """
    for name, hint in _type_hints(type(settings)).items():
        if typing.get_origin(hint) is not ClassVar and not _fits(getattr(settings, name), hint):
            raise ValueError(f"{name} is {shown(getattr(settings, name))}, but it should be {_describe(hint)}.")


_type_hints = functools.cache(typing.get_type_hints)  # evaluating annotations takes longer than the checks


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        pairs = value.items() if isinstance(value, dict) else [(None, None)]
        return all(_fits(key, arguments[0]) and _fits(item, arguments[1]) for key, item in pairs)
    if arguments:
        return any(_fits(value, option) for option in arguments)
    if hint is float and isinstance(value, int) and abs(value) > sys.float_info.max:
        return False
    return isinstance(value, (int, float) if hint is float else hint) and (hint is bool or not isinstance(value, bool))


_NAMES = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    bool: ("true or false", "true or false"),
    Path: ("a path", "paths"),
    tuple: ("a list", "lists"),
}
"""What a type is called in a message, one and several."""


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin is tuple:
        return f"a list of {_NAMES[arguments[0]][1]}"
    if origin is dict:
        return f"{_NAMES[arguments[1]][1]} by name"
    return " or ".join(_describe(option) for option in arguments if option is not type(None)) or _NAMES[hint][0]
