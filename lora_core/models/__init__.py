"""Encoders, heads and task models, under the names of their published checkpoints."""

from lora_core.models.bert import BertConfig, BertModel
from lora_core.models.build import build_model, config_from_dict
from lora_core.models.distilbert import DistilBertConfig, DistilBertModel
from lora_core.models.pretrained import load_pretrained, save_pretrained
from lora_core.models.roberta import (
    CamembertConfig,
    CamembertModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)
from lora_core.models.source import resolve
from lora_core.models.vit import DeiTConfig, DeiTModel, ViTConfig, ViTModel

__all__ = [
    "BertConfig",
    "BertModel",
    "CamembertConfig",
    "CamembertModel",
    "DeiTConfig",
    "DeiTModel",
    "DistilBertConfig",
    "DistilBertModel",
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
