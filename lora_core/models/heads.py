"""Text classifiers: each family's own under the names of its published checkpoints, and those with other heads.

Shapes: B texts, T tokens (padded), H hidden size, L labels.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from lora_core.models.bert import BertModel
from lora_core.models.crf import CRFHead
from lora_core.models.distilbert import DistilBertModel
from lora_core.models.layers import Dropout
from lora_core.models.recurrent import BiLSTMModel, LSTMModel
from lora_core.models.roberta import CamembertModel, RobertaModel, XLMRobertaModel
from lora_core.models.task_model import Encoder, TaskModel, TextEncoder, TextModel
from lora_core.models.text_heads import AttentionPooling, FirstToken, LastToken, LSTMPooling, ResidualMLP, TextCNN
from lora_core.models.vit import DeiTModel, ViTModel

# DOC """The task models: an encoder under its `base_model_prefix`, a head under the names of its published checkpoints.
#
# A new head is a subclass of TaskModel and a row in `TASK_MODELS`, or in `HEADS` if it suits every text encoder.
#
# Shapes: B texts or images, T tokens (padded), H hidden size, L labels.
# """


class TextClassification(TextModel):
    """Base of the text classifiers: all read the first token, each family in its own way."""

    task = "text-classification"
    architecture_suffix = "ForSequenceClassification"


class BertTextClassification(TextClassification):
    """The encoder's pooler, then one linear layer."""

    def __init__(self, encoder: BertModel, labels: Sequence[str]) -> None:
        encoder.add_pooler()
        super().__init__(encoder, labels)
        self.dropout = Dropout(self.config.head_dropout)
        self.classifier = nn.Linear(self.config.hidden_size, len(self.labels))

    def logits(self, hidden: Tensor, attention_mask: Tensor | None = None, input_ids: Tensor | None = None) -> Tensor:
        pooled = self.base_model.get_submodule("pooler")(hidden)  # (B, H)
        return self.classifier(self.dropout(pooled))  # (B, L)


class RobertaClassificationHead(nn.Module):
    """Two linear layers with dropout before each and tanh between."""

    def __init__(self, hidden_size: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)
        self.out_proj = nn.Linear(hidden_size, num_labels)

    def forward(self, hidden: Tensor) -> Tensor:
        first = self.dropout(hidden[:, 0])  # (B, H)
        return self.out_proj(self.dropout(torch.tanh(self.dense(first))))


class RobertaTextClassification(TextClassification):
    """RobertaClassificationHead under the name `classifier`."""

    label_layers = ("classifier.out_proj",)

    def __init__(self, encoder: RobertaModel, labels: Sequence[str]) -> None:
        super().__init__(encoder, labels)
        self.classifier = RobertaClassificationHead(self.config.hidden_size, len(self.labels), self.config.head_dropout)

    def logits(self, hidden: Tensor, attention_mask: Tensor | None = None, input_ids: Tensor | None = None) -> Tensor:
        return self.classifier(hidden)  # (B, L)


class DistilBertTextClassification(TextClassification):
    """Two linear layers with ReLU and dropout between."""

    head_names = ("pre_classifier", "classifier")

    def __init__(self, encoder: DistilBertModel, labels: Sequence[str]) -> None:
        super().__init__(encoder, labels)
        self.pre_classifier = nn.Linear(self.config.hidden_size, self.config.hidden_size)
        self.dropout = Dropout(encoder.config.seq_classif_dropout)
        self.classifier = nn.Linear(self.config.hidden_size, len(self.labels))

    def logits(self, hidden: Tensor, attention_mask: Tensor | None = None, input_ids: Tensor | None = None) -> Tensor:
        pooled = torch.relu(self.pre_classifier(hidden[:, 0]))  # (B, H)
        return self.classifier(self.dropout(pooled))  # (B, L)


class HeadedTextClassification(TextClassification):
    """Base of the text classifiers with a head of `text_heads` under the name `classifier`."""

    label_layers = ("classifier.out_proj",)
    head_class: ClassVar[type[nn.Module]]

    def __init__(self, encoder: TextEncoder, labels: Sequence[str]) -> None:
        super().__init__(encoder, labels)
        self.classifier = self.head_class(
            hidden_size=self.config.hidden_size,
            num_labels=len(self.labels),
            dropout=self.config.head_dropout,
            **self.head_options(),
        )

    def head_options(self) -> dict[str, int]:
        """What the head must know beyond its sizes."""
        return {}

    def logits(self, hidden: Tensor, attention_mask: Tensor | None = None, input_ids: Tensor | None = None) -> Tensor:
        return self.classifier(hidden, attention_mask, input_ids)  # (B, L)


class LinearTextClassification(HeadedTextClassification):
    head = "linear"
    head_class = FirstToken
    architecture_suffix = "LinearForSequenceClassification"


class MLPTextClassification(HeadedTextClassification):
    head = "mlp"
    head_class = ResidualMLP
    architecture_suffix = "MLPForSequenceClassification"


class LSTMTextClassification(HeadedTextClassification):
    head = "lstm"
    head_class = LSTMPooling
    architecture_suffix = "LSTMForSequenceClassification"


class TextCNNTextClassification(HeadedTextClassification):
    head = "textcnn"
    head_class = TextCNN
    architecture_suffix = "TextCNNForSequenceClassification"


class AttentionTextClassification(HeadedTextClassification):
    head = "attention"
    head_class = AttentionPooling
    architecture_suffix = "AttentionForSequenceClassification"

    def head_options(self) -> dict[str, int]:
        return {"vocab_size": self.config.vocab_size}


class LastTokenTextClassification(HeadedTextClassification):
    """The left-to-right encoder's own head."""

    head_class = LastToken


class BiLSTMTextClassification(AttentionTextClassification):
    """Attention pooling as the family's own head."""

    head = "default"
    architecture_suffix = "ForSequenceClassification"


class TokenClassification(TextModel):
    """One linear layer over every token; the same for all families."""

    task = "token-classification"
    architecture_suffix = "ForTokenClassification"

    def __init__(self, encoder: TextEncoder, labels: Sequence[str]) -> None:
        super().__init__(encoder, labels)
        self.dropout = Dropout(self.config.head_dropout)
        self.classifier = nn.Linear(self.config.hidden_size, len(self.labels))

    def logits(self, hidden: Tensor, attention_mask: Tensor | None = None, input_ids: Tensor | None = None) -> Tensor:
        return self.classifier(self.dropout(hidden))  # (B, T, L)


class CRFTokenClassification(TextModel):
    """A conditional random field over the words. The logits are the packed scores of CRFHead, (B, T + 1 + L, L)."""

    task = "token-classification"
    head = "crf"
    architecture_suffix = "CRFForTokenClassification"
    label_layers = ("classifier.out_proj",)

    def __init__(self, encoder: TextEncoder, labels: Sequence[str]) -> None:
        super().__init__(encoder, labels)
        self.classifier = CRFHead(self.config.hidden_size, len(self.labels), self.config.head_dropout)

    def logits(self, hidden: Tensor, attention_mask: Tensor | None = None, input_ids: Tensor | None = None) -> Tensor:
        return self.classifier(hidden, attention_mask, input_ids)

    @classmethod
    def with_label_rows(cls, head: dict[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
        head = super().with_label_rows(head, rows)
        ordered = {"classifier.start": lambda start: start[rows]} | dict.fromkeys(
            ("classifier.transitions", "classifier.forbidden"), lambda pairs: pairs[rows][:, rows]
        )
        return {name: ordered[name](tensor) if name in ordered else tensor for name, tensor in head.items()}


class ImageClassification(TaskModel):
    """One linear layer over the class token."""

    task = "image-classification"
    architecture_suffix = "ForImageClassification"

    def __init__(self, encoder: ViTModel, labels: Sequence[str]) -> None:
        super().__init__(encoder, labels)
        self.classifier = nn.Linear(self.config.hidden_size, len(self.labels))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the logits (B, L) of images (B, C, height, width)."""
        return self.logits(self.base_model(pixel_values, read=1))

    def logits(self, hidden: Tensor) -> Tensor:
        return self.classifier(hidden[:, 0])  # (B, L)


class DistilledImageClassification(TaskModel):
    """The mean of two classifiers, over the class token and the distillation token (DeiT paper, section 4)."""

    task = "image-classification"
    architecture_suffix = "ForImageClassificationWithTeacher"
    head_names = label_layers = ("cls_classifier", "distillation_classifier")

    def __init__(self, encoder: DeiTModel, labels: Sequence[str]) -> None:
        super().__init__(encoder, labels)
        self.cls_classifier = nn.Linear(self.config.hidden_size, len(self.labels))
        self.distillation_classifier = nn.Linear(self.config.hidden_size, len(self.labels))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the logits (B, L) of images (B, C, height, width)."""
        return self.logits(self.base_model(pixel_values, read=2))

    def logits(self, hidden: Tensor) -> Tensor:
        return (self.cls_classifier(hidden[:, 0]) + self.distillation_classifier(hidden[:, 1])) / 2  # (B, L)


_ROBERTA_MODELS = (RobertaModel, XLMRobertaModel, CamembertModel)

TASK_MODELS: dict[tuple[type[Encoder], str], type[TaskModel]] = {
    (BertModel, "token-classification"): TokenClassification,
    (BertModel, "text-classification"): BertTextClassification,
    **{(encoder, "token-classification"): TokenClassification for encoder in _ROBERTA_MODELS},
    **{(encoder, "text-classification"): RobertaTextClassification for encoder in _ROBERTA_MODELS},
    (DistilBertModel, "token-classification"): TokenClassification,
    (DistilBertModel, "text-classification"): DistilBertTextClassification,
    **{(encoder, "token-classification"): TokenClassification for encoder in (LSTMModel, BiLSTMModel)},
    (LSTMModel, "text-classification"): LastTokenTextClassification,
    (BiLSTMModel, "text-classification"): BiLSTMTextClassification,
    (ViTModel, "image-classification"): ImageClassification,
    (DeiTModel, "image-classification"): DistilledImageClassification,
}
"""The model of each family and task."""

HEADS: dict[str, type[TextModel]] = {
    model.head: model
    for model in (
        LinearTextClassification, MLPTextClassification, LSTMTextClassification, TextCNNTextClassification,
        AttentionTextClassification, CRFTokenClassification,
    )
}  # fmt: skip
"""The models of other heads than the family's own, by name; they take every text encoder."""
