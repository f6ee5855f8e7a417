"""Images as tokens: what the image encoders' configs share, the patches' embeddings with their positions, and positions
for other sizes.

Shapes: B images, C channels, P patches, S special tokens, T = S + P tokens, H hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_core.dropout import Dropout
from lora_core.models.checks import check_images
from lora_core.models.encoder import Config, EncoderConfig
from lora_core.models.layers import GraphBuilder


@dataclass(frozen=True)
class ImageConfig(EncoderConfig):
    """What the configs of image encoders share; the defaults are vit-base-patch16-224."""

    activation_field = "hidden_act"
    attention_dropout_field = "attention_probs_dropout_prob"
    hidden_dropout_field = "hidden_dropout_prob"

    hidden_size: int = 768
    """Width H of the hidden states."""
    num_hidden_layers: int = 12
    """Transformer layers."""
    num_attention_heads: int = 12
    """Attention heads a layer; divides hidden_size."""
    hidden_act: str = "gelu"
    """Activation of the feed-forward layers."""
    hidden_dropout_prob: float = 0.0
    """Dropout after the embeddings and before each residual sum."""
    attention_probs_dropout_prob: float = 0.0
    """Dropout of the attention weights."""
    initializer_range: float = 0.02
    """Standard deviation of new weights."""
    layer_norm_eps: float = 1e-12
    """Added to the variance in each LayerNorm."""
    image_size: int | tuple = 224
    """Pixels of an image: the side of a square, or (height, width). Multiples of patch_size."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    num_channels: int = 3
    """Channels C of an image."""
    qkv_bias: bool = True
    """Whether query, key and value projections have a bias."""

    @classmethod
    def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
        """As for all families; JSON has a list where image_size is (height, width)."""
        size = values.get("image_size")
        return super().from_dict({**values, "image_size": tuple(size)} if isinstance(size, list) else values)  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        sides = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2
        if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
            raise ValueError(f"image_size is {self.image_size!r}; expected pixels, or (height, width)")
        if any(side < 1 or side % self.patch_size for side in sides):
            raise ValueError(f"image_size is {self.image_size!r}; expected multiples of patch_size {self.patch_size}")

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) of an image in pixels."""
        height, width = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2
        return height, width

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.image_shape
        return height // self.patch_size, width // self.patch_size


class PatchEmbeddings(nn.Module):
    """One linear map of each patch's pixels, (B, C, height, width) -> (B, P, H), the patches by rows."""

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        self.image_shape = config.image_shape
        self.num_channels = config.num_channels
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        check_images(pixel_values, self.num_channels, self.image_shape)
        patches = self.projection(pixel_values.to(self.projection.weight.dtype))  # (B, H, rows, columns)
        return patches.flatten(2).transpose(1, 2)


class ImageEmbeddings(nn.Module):
    """Special tokens, then the patches, each with its position's embedding."""

    special_token_names: ClassVar[tuple[str, ...]] = ("cls_token",)
    """Parameters (1, 1, H) of the tokens before the patches, in their order."""

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        rows, columns = config.grid
        tokens = len(self.special_token_names) + rows * columns
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.empty(1, tokens, config.hidden_size))
        self.patch_embeddings = PatchEmbeddings(config)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embeddings(pixel_values)  # (B, P, H)
        tokens: list[Tensor] = [self.get_parameter(name) for name in self.special_token_names]
        special = torch.cat(tokens, dim=1).expand(len(patches), -1, -1)  # (B, S, H)
        return self.dropout(torch.cat((special, patches), dim=1) + self.position_embeddings)  # (B, T, H)

    def onnx(self, graph: GraphBuilder, pixels: str) -> str:
        """`forward` as a graph. The special tokens with their positions are the same for every image."""
        path, projection = graph.path(self), self.patch_embeddings.projection
        places, names = graph.array(self, "position_embeddings"), self.special_token_names
        special = np.concatenate([graph.array(self, name) for name in names], axis=1)  # (1, S, H)
        count = special.shape[1]
        sources = [(self, name) for name in (*names, "position_embeddings")]
        special_name = graph.derived(f"{path}.special", special + places[:, :count], sources)
        patch_places = graph.derived(f"{path}.places", places[:, count:], [(self, "position_embeddings")])
        weights = graph.parameter(projection), graph.parameter(projection, "bias")
        sides = list(projection.kernel_size)
        patches = graph.op("Conv", pixels, *weights, kernel_shape=sides, strides=sides)
        patches = graph.op("Reshape", patches, graph.constant([0, special.shape[2], -1]))
        patches = graph.op("Transpose", patches, perm=[0, 2, 1])  # (B, P, H)
        shape = graph.op("Concat", graph.op("Shape", pixels, start=0, end=1), graph.constant(special.shape[1:]), axis=0)
        expanded = graph.op("Expand", special_name, shape)  # (B, S, H)
        return graph.op("Concat", expanded, graph.op("Add", patches, patch_places), axis=1)


def resize_positions(positions: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Position embeddings (1, S + P, H) of a grid of patches (rows, columns), bicubically for another grid.

    Those of the special tokens stay. Source: the ViT paper, section 3.2; the arithmetic is that of transformers'
    `interpolate_pos_encoding`.
    """
    if grid == new_grid:
        return positions
    rows, columns = grid
    special, patches = positions.float().split([positions.shape[1] - rows * columns, rows * columns], dim=1)
    image = patches.unflatten(1, grid).permute(0, 3, 1, 2)  # (1, H, rows, columns)
    resized = F.interpolate(image, size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat((special, resized.flatten(2).transpose(1, 2)), dim=1)
