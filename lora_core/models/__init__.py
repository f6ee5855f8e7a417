"""Encoders, heads and task models, under the names of their published checkpoints.

Read layers and encoder, then task_model and heads: what every family is made of. Then encoders/, a file for each family
and build for all, and pretrained/, which reads and writes checkpoints. Needs lora_core's config, dropout, files and
vit_names alone; lora_core.kernels, lora_core.export and trainers build on it.
"""

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
