"""What every task model shares: an encoder under its `base_model_prefix`, a head, and the names of the labels.

A head is one class: a `ClassifierHead` if it is one module, `classifier`, beside the encoder, and a `TaskModel` if its
published checkpoints have its layers by other names. Those that suit every text encoder are in heads.py, the families'
own beside their encoders.

Shapes: B texts or images, T tokens (padded), C channels, H hidden size, L labels.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lora_core.models.encoder import Encoder, no_graph
from lora_core.models.layers import GraphBuilder
from lora_core.patterns import shown

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
"""What the logits of a text or an image are for, in the words of transformers' `problem_type` in config.json."""


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


def problem_type_of_config(values: Mapping[str, Any]) -> ProblemType | None:
    """Return what a config.json says that its head's logits are for; None: it does not say.

    Raises:
        ValueError: it says what transformers does not know.
    """
    found = values.get("problem_type")
    if found is not None and found not in get_args(ProblemType):
        raise ValueError(f"problem_type is {shown(found)}; expected one of {', '.join(get_args(ProblemType))}, or null")
    return found


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


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the label names as a tuple.

    Raises:
        ValueError: they are not distinct, non-empty strings.
    """
    names = tuple(labels)
    if isinstance(labels, str) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"labels is {shown(labels)}; expected a list of names such as ['O', 'B-protein', 'I-protein']")
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ValueError(f"labels holds {', '.join(repeated)} more than once; give each name once")
    return names


def labels_of_config(values: Mapping[str, Any], rows: int) -> tuple[str, ...]:
    """Return the names that a config.json states for a head of `rows` labels.

    transformers leaves out names that were never set; they are LABEL_0, LABEL_1... then. ImageNet has two classes
    called crane: names that occur twice get their row, as in "crane (134)".

    Raises:
        ValueError: `id2label` is malformed, or not of so many rows.
    """
    id2label = values.get("id2label")
    if id2label is None:
        return _placeholders(rows)
    try:
        by_row = {int(row): name for row, name in id2label.items()}
    except (AttributeError, ValueError) as error:
        raise ValueError(f"id2label is {shown(id2label)}; expected names by number, such as {{'0': 'O'}}") from error
    if sorted(by_row) != list(range(rows)):
        raise ValueError(f"id2label has the numbers {shown(sorted(by_row))}; the head has the rows 0 to {rows - 1}")
    names = [str(by_row[row]) if isinstance(by_row[row], int | float) else by_row[row] for row in range(rows)]
    counts = Counter(map(str, names))
    return check_labels([name if counts[str(name)] == 1 else f"{name} ({row})" for row, name in enumerate(names)])


def are_placeholders(labels: Sequence[str]) -> bool:
    """Whether these are the names that transformers gives to labels without one: LABEL_0, LABEL_1..."""
    return tuple(labels) == _placeholders(len(labels))


def rows_for(labels: tuple[str, ...], known: tuple[str, ...]) -> list[int]:
    """Return, for each of `labels`, its row in a head whose rows are `known`.

    Placeholder names say nothing, so their rows are taken as they come.

    Raises:
        ValueError: the names differ.
    """
    if known == _placeholders(len(labels)):
        return list(range(len(labels)))
    if set(labels) != set(known):
        raise ValueError(
            f"the labels asked for are {list(labels)}, those of the checkpoint's head {list(known)}; leave "
            "labels out to keep its head, or pass fresh_head=True to start a new one"
        )
    return [known.index(name) for name in labels]


def _placeholders(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{row}" for row in range(count))
