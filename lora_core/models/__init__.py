"""Encoders, heads and task models, under the names of their published checkpoints.

Read layers and encoder, then task_model and heads: what every family is made of. Then encoders/, a file for each family
and build for all, and pretrained/, which reads and writes checkpoints. Needs lora_core's formats, config, dropout
and files alone; lora_core.kernels, lora_core.export and trainers build on it.

Names are imported when they are first used: labels, checks and decoding need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_core.models.encoders.albert import AlbertConfig, AlbertModel
    from lora_core.models.encoders.bert import BertConfig, BertModel
    from lora_core.models.encoders.build import build_model, config_from_dict
    from lora_core.models.encoders.deberta import DebertaV2Config, DebertaV2Model
    from lora_core.models.encoders.dinov2 import Dinov2Config, Dinov2Model
    from lora_core.models.encoders.distilbert import DistilBertConfig, DistilBertModel
    from lora_core.models.encoders.electra import ElectraConfig, ElectraModel
    from lora_core.models.encoders.modernbert import ModernBertConfig, ModernBertModel
    from lora_core.models.encoders.mpnet import MPNetConfig, MPNetModel
    from lora_core.models.encoders.roberta import (
        CamembertConfig,
        CamembertModel,
        RobertaConfig,
        RobertaModel,
        XLMRobertaConfig,
        XLMRobertaModel,
    )
    from lora_core.models.encoders.vit import DeiTConfig, DeiTModel, ViTConfig, ViTModel
    from lora_core.models.pretrained.loading import load_pretrained, save_pretrained
    from lora_core.models.pretrained.source import resolve

__all__ = [
    "AlbertConfig",
    "AlbertModel",
    "BertConfig",
    "BertModel",
    "CamembertConfig",
    "CamembertModel",
    "DebertaV2Config",
    "DebertaV2Model",
    "DeiTConfig",
    "DeiTModel",
    "Dinov2Config",
    "Dinov2Model",
    "DistilBertConfig",
    "DistilBertModel",
    "ElectraConfig",
    "ElectraModel",
    "MPNetConfig",
    "MPNetModel",
    "ModernBertConfig",
    "ModernBertModel",
    "RobertaConfig",
    "RobertaModel",
    "ViTConfig",
    "ViTModel",
    "XLMRobertaConfig",
    "XLMRobertaModel",
    "build_model",
    "config_from_dict",
    "load_pretrained",
    "resolve",
    "save_pretrained",
]

_HOMES = {
    "AlbertConfig": "encoders.albert",
    "AlbertModel": "encoders.albert",
    "BertConfig": "encoders.bert",
    "BertModel": "encoders.bert",
    "CamembertConfig": "encoders.roberta",
    "CamembertModel": "encoders.roberta",
    "DebertaV2Config": "encoders.deberta",
    "DebertaV2Model": "encoders.deberta",
    "DeiTConfig": "encoders.vit",
    "DeiTModel": "encoders.vit",
    "Dinov2Config": "encoders.dinov2",
    "Dinov2Model": "encoders.dinov2",
    "DistilBertConfig": "encoders.distilbert",
    "DistilBertModel": "encoders.distilbert",
    "ElectraConfig": "encoders.electra",
    "ElectraModel": "encoders.electra",
    "MPNetConfig": "encoders.mpnet",
    "MPNetModel": "encoders.mpnet",
    "ModernBertConfig": "encoders.modernbert",
    "ModernBertModel": "encoders.modernbert",
    "RobertaConfig": "encoders.roberta",
    "RobertaModel": "encoders.roberta",
    "ViTConfig": "encoders.vit",
    "ViTModel": "encoders.vit",
    "XLMRobertaConfig": "encoders.roberta",
    "XLMRobertaModel": "encoders.roberta",
    "build_model": "encoders.build",
    "config_from_dict": "encoders.build",
    "load_pretrained": "pretrained.loading",
    "resolve": "pretrained.source",
    "save_pretrained": "pretrained.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
