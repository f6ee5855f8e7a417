"""Encoders, heads and task models, under the names of their published checkpoints."""

from lora_core.models.bert import BertConfig, BertModel
from lora_core.models.build import build_model, config_from_dict
from lora_core.models.distilbert import DistilBertConfig, DistilBertModel
from lora_core.models.pretrained import load_pretrained
from lora_core.models.roberta import RobertaConfig, RobertaModel
from lora_core.models.save import save_pretrained
from lora_core.models.source import resolve

__all__ = [
    "BertConfig",
    "BertModel",
    "DistilBertConfig",
    "DistilBertModel",
    "RobertaConfig",
    "RobertaModel",
    "build_model",
    "config_from_dict",
    "load_pretrained",
    "resolve",
    "save_pretrained",
]
