"""Encoders, heads and task models, under the names of their published checkpoints.

Read layers and encoder, then task_model and heads, then a family (bert), then build, source and pretrained. Needs
lora_core's config, dropout, files and vit_names alone; lora_core.kernels, lora_core.export and trainers build on it.
"""

from lora_core.models.bert import BertConfig, BertModel
from lora_core.models.build import build_model, config_from_dict
from lora_core.models.distilbert import DistilBertConfig, DistilBertModel
from lora_core.models.electra import ElectraConfig, ElectraModel
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
    "ElectraConfig",
    "ElectraModel",
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
