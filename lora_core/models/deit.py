"""DeiT (Touvron et al. 2021, https://arxiv.org/abs/2012.12877): ViT with a second special token, which learned
from a teacher. DeiT checkpoints without that token are plain ViT, in their config.json too.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lora_core.models.vit import ViTConfig, ViTEmbeddings, ViTModel


@dataclass(frozen=True)
class DeiTConfig(ViTConfig):
    """Sizes of a distilled DeiT encoder; the defaults are deit-base-distilled-patch16-224."""

    model_type: ClassVar[str] = "deit"


class DeiTEmbeddings(ViTEmbeddings):
    """ViT's embeddings with the distillation token after the class token."""

    num_special_tokens: ClassVar[int] = 2

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.distillation_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))

    def special_tokens(self) -> Tensor:
        return torch.cat((self.cls_token, self.distillation_token), dim=1)


class DeiTModel(ViTModel):
    """The encoder without a head."""

    config_class: ClassVar[type[ViTConfig]] = DeiTConfig
    embeddings_class: ClassVar[type[ViTEmbeddings]] = DeiTEmbeddings
    base_model_prefix: ClassVar[str] = "deit"
    architecture_stem: ClassVar[str] = "DeiT"
