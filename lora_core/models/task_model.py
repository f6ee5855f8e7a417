"""What all task models share: an encoder under its `base_model_prefix`, and a head.

Shapes: B texts, T tokens (padded), H hidden size, L labels.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from lora_core.models.bert import BertModel
from lora_core.models.distilbert import DistilBertModel
from lora_core.models.recurrent import LSTMModel
from lora_core.models.vit import ViTModel

TextEncoder = BertModel | DistilBertModel | LSTMModel
Encoder = TextEncoder | ViTModel


class TaskModel(nn.Module):
    """Encoder and head. Subclasses add the head's modules, `forward` and `logits`."""

    task: ClassVar[str]
    """The name that `load_pretrained` knows the task by."""
    architecture_suffix: ClassVar[str]
    """End of the class name that a checkpoint of this task states in config.json, after the family's name."""
    head: ClassVar[str] = "default"
    """Name in `HEADS`; "default" for the family's own head."""
    head_names: tuple[str, ...] = ("classifier",)
    """Modules that belong to the head: trained and saved with an adapter. So is a pooler that the checkpoint lacked."""
    label_layers: ClassVar[tuple[str, ...]] = ("classifier",)
    """The Linears whose rows are the labels."""
    config: Any
    """The config of the encoder's family."""

    def __init__(self, encoder: Encoder, labels: Sequence[str]) -> None:
        super().__init__()
        self.config = encoder.config
        self.labels = tuple(labels)
        self.base_model_prefix = encoder.base_model_prefix
        self.fresh_parameters: tuple[str, ...] = ()
        """Names of the parameters that the checkpoint lacked and that therefore start at random."""
        self.add_module(self.base_model_prefix, encoder)

    @property
    def base_model(self) -> Encoder:
        """The encoder."""
        return getattr(self, self.base_model_prefix)

    def in_head(self, name: str) -> bool:
        """Whether a parameter or buffer of this name belongs to the head."""
        return name.startswith(tuple(f"{part}." for part in self.head_names))

    @classmethod
    def with_label_rows(cls, head: dict[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
        """The tensors of a head, by name, with its labels in the order that `rows` gives."""
        return {name: tensor[rows] if name.rpartition(".")[0] in cls.label_layers else tensor
                for name, tensor in head.items()}  # fmt: skip


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
