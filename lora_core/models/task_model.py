"""What every task model shares: an encoder under its `base_model_prefix`, a head, and the names of the labels.

A head is one class: a `ClassifierHead` if it is one module, `classifier`, beside the encoder, and a `TaskModel` if its
published checkpoints have its layers by other names. Those that suit every text encoder are in heads.py, the families'
own beside their encoders.

Shapes: B texts or images, T tokens (padded), C channels, H hidden size, L labels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_core.models.encoder import Encoder, no_graph
from lora_core.models.labels import ProblemType
from lora_core.models.layers import GraphBuilder


class Head:
    """What is known of a head before a model with it is built."""

    task: str
    """The name that `load_pretrained` knows the task by."""
    architecture_suffix: str
    """End of the class name that a checkpoint with this head states in config.json, after the family's name."""
    head_kind: str = "default"
    """Name in `HEADS`; "default" for the family's own head."""
    head_names: tuple[str, ...] = ("classifier",)
    """Modules that belong to the head: trained and saved with an adapter. So is a pooler that the checkpoint lacked."""
    pretrained_names: tuple[str, ...] = ()
    """Modules beside the encoder that pretraining made: they are taken from every checkpoint that has them, whatever
    its task, and belong to the head only where it had none."""
    label_layers: tuple[str, ...] = ("classifier",)
    """The Linears whose rows are the labels."""
    tokens_read: int | None = None
    """The number of leading tokens whose hidden states the head reads; None: all."""

    @classmethod
    def build(cls, encoder: Encoder, labels: Sequence[str]) -> "TaskModel":
        """The encoder with a new head."""
        raise NotImplementedError

    @classmethod
    def with_label_rows(cls, tensors: Mapping[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
        """The tensors of a head, by their names in the task model, with its labels in the order that `rows` gives."""
        return {
            name: tensor[rows] if name.rpartition(".")[0] in cls.label_layers else tensor
            for name, tensor in tensors.items()
        }

    def onnx(self, graph: GraphBuilder, hidden: str, input_ids: str, mask: str) -> str:
        """The logits as a graph.

        Args:
            hidden: (B, T, H); of a text head that reads one token, (B, H); of an image head, (B, tokens_read, H).
            input_ids: (B, T) int32; "" for images.
            mask: (B, T) int32, nonzero at real tokens; "" for images.

        Raises:
            ValueError: the head has no graph.
        """
        raise no_graph(f"the head {self.head_kind!r}")


class TaskModel(Head, nn.Module):
    """Encoder and head. Subclasses add the head's modules, `forward` and `logits`."""

    config: Any
    """The config of the encoder's family."""

    def __init__(self, encoder: Encoder, labels: Sequence[str]) -> None:
        super().__init__()
        self.config = encoder.config
        self.labels = tuple(labels)
        self.problem_type: ProblemType | None = None
        """What config.json says that the logits of a text or an image are for; None: it does not say."""
        self.base_model_prefix = encoder.base_model_prefix
        self.fresh_parameters: tuple[str, ...] = ()
        """Names of the parameters that the checkpoint lacked and that therefore start at random."""
        self.name_or_path: str | None = None
        """The hub id or folder it was loaded from, which a saved adapter names as its base."""
        self.add_module(self.base_model_prefix, encoder)

    @classmethod
    def build(cls, encoder: Encoder, labels: Sequence[str]) -> "TaskModel":
        return cls(encoder, labels)

    @property
    def base_model(self) -> Encoder:
        """The encoder."""
        return getattr(self, self.base_model_prefix)

    def in_head(self, name: str) -> bool:
        """Whether a parameter or buffer of this name belongs to the head."""
        return name.startswith(tuple(f"{part}." for part in self.head_names))

    def draw(self, module: nn.Module, parameter: Tensor, generator: torch.Generator) -> None:
        """Fill a new weight of `module`, as `Encoder.draw` does."""
        self.base_model.draw(module, parameter, generator)


class TextModel(TaskModel):
    """Base of the models that read text."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Return the logits: (B, T, L) for token classification, (B, L) for text classification.

        The arguments are those of the encoder, (B, T) each.
        """
        return self.logits(self.base_model(input_ids, attention_mask, token_type_ids), attention_mask, input_ids)

    def logits(self, hidden: Tensor, attention_mask: Tensor | None = None, input_ids: Tensor | None = None) -> Tensor:
        """Apply the head to the encoder's last hidden state (B, T, H).

        `attention_mask` (B, T) is nonzero or True at real tokens (None: all are real). `input_ids` (B, T) are for
        the heads that tell tokens apart.
        """
        raise NotImplementedError


class ImageModel(TaskModel):
    """Base of the models that read images."""

    task = "image-classification"
    architecture_suffix = "ForImageClassification"

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the logits (B, L) of images (B, C, height, width)."""
        return self.logits(self.base_model(pixel_values, read=self.tokens_read))

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the head to the encoder's states of the tokens that it reads, (B, tokens_read, H)."""
        raise NotImplementedError


class ClassifierHead(Head, nn.Module):
    """Base of the heads that are one module, called as `head(hidden, attention_mask, input_ids)`.

    Its labels' layer is `out_proj`. A text's logits must not depend on the padding of its batch.
    """

    task = "text-classification"
    architecture_suffix = "ForSequenceClassification"
    label_layers = ("classifier.out_proj",)

    @classmethod
    def build(cls, encoder: Encoder, labels: Sequence[str]) -> TaskModel:
        return HeadedTextModel(encoder, labels, cls)

    @classmethod
    def of_config(cls: Any, config: Any, num_labels: int) -> "ClassifierHead":
        """The head for an encoder of this config."""
        return cls(config.hidden_size, num_labels, config.head_dropout)


class HeadedTextModel(TextModel):
    """A text encoder with a `ClassifierHead` under the name `classifier`."""

    def __init__(self, encoder: Encoder, labels: Sequence[str], head_class: type[ClassifierHead]) -> None:
        super().__init__(encoder, labels)
        self.task, self.head_kind = head_class.task, head_class.head_kind
        self.architecture_suffix = head_class.architecture_suffix
        self.label_layers, self.tokens_read = head_class.label_layers, head_class.tokens_read
        self.classifier = head_class.of_config(self.config, len(self.labels))

    def logits(self, hidden: Tensor, attention_mask: Tensor | None = None, input_ids: Tensor | None = None) -> Tensor:
        return self.classifier(hidden, attention_mask, input_ids)

    def onnx(self, graph: GraphBuilder, hidden: str, input_ids: str, mask: str) -> str:
        return self.classifier.onnx(graph, hidden, input_ids, mask)


def scores_of_logits(logits: Tensor, problem_type: ProblemType | None) -> Tensor:
    """Return the scores (B, L) of texts or images, as transformers' pipelines make them of logits (B, L).

    A regression's values are the logits. Labels that are there or not each for itself have the sigmoid; so has a label
    that is alone, whatever `problem_type` says of a classification. Of several labels that exclude each other it is
    the softmax.
    """
    if problem_type == "regression":
        return logits
    if problem_type == "multi_label_classification" or logits.shape[-1] == 1:
        return logits.sigmoid()
    return logits.softmax(dim=-1)
