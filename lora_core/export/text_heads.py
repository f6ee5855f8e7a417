"""The graphs of the heads that suit every text encoder.

Shapes: B texts, T tokens (padded), H hidden size, F filters of one width.
"""

import numpy as np
from onnx import TensorProto

from lora_core.export.graph import MICROSOFT, Graph
from lora_core.models.build import FIRST_TOKEN_HEADS
from lora_core.models.layers import MASKED
from lora_core.models.task_model import TaskModel
from lora_core.models.text_heads import KERNEL_WIDTHS

READ_FIRST_TOKEN = ("default", *FIRST_TOKEN_HEADS)
"""The same with the families' own heads."""
NO_GRAPH = ("lstm", "crf")
"""Heads that are not written as graphs: ONNX has no packed sequences, and a CRF's result is not its logits."""


def head_before_labels(graph: Graph, model: TaskModel, hidden: str, ids: str, mask: str) -> str:
    """What the label layer of a head other than the family's own reads.

    `hidden` is (B, H), or (B, T, H) for heads that read all tokens; `ids` and `mask` are (B, T) int32.
    """
    if model.head == "mlp":
        return graph.op("Add", hidden, graph.op("Gelu", graph.dense(hidden, "classifier.dense"), domain=MICROSOFT))
    if model.head == "textcnn":
        return _text_cnn(graph, hidden, mask)
    if model.head == "attention":
        return _attention_pooling(graph, hidden, ids, mask)
    assert model.head == "linear", model.head
    return hidden


def _text_cnn(graph: Graph, hidden: str, mask: str) -> str:
    real = graph.op("Unsqueeze", graph.op("Cast", mask, to=TensorProto.FLOAT), _axes(graph, 1))  # (B, 1, T)
    tokens = graph.op("Mul", graph.op("Transpose", hidden, perm=[0, 2, 1]), real)  # (B, H, T)
    pooled = []
    for number, width in enumerate(KERNEL_WIDTHS):
        path = f"classifier.convolutions.{number}"
        weights = (graph.parameter(f"{path}.{name}") for name in ("weight", "bias"))
        found = graph.op("Relu", graph.op("Conv", tokens, *weights, pads=[(width - 1) // 2, width // 2]))  # (B, F, T)
        pooled.append(graph.op("ReduceMax", graph.op("Mul", found, real), _axes(graph, 2), keepdims=0))
    return graph.op("Concat", *pooled, axis=1)


def _attention_pooling(graph: Graph, hidden: str, ids: str, mask: str) -> str:
    inner = graph.op("Tanh", graph.dense(hidden, "classifier.dense"))
    scores = graph.op("Squeeze", graph.linear(inner, "classifier.energy"), _axes(graph, 2))  # (B, T)
    confusing = graph.op("Gather", graph.parameter("classifier.confusing"), ids)
    scores = graph.op("Sub", scores, graph.op("Mul", confusing, graph.parameter("classifier.penalty")))
    real = graph.op("Cast", mask, to=TensorProto.BOOL)
    scores = graph.op("Where", real, scores, graph.constant(np.array(MASKED, np.float32)))
    weights = graph.op("Unsqueeze", graph.op("Softmax", scores, axis=-1), _axes(graph, 1))  # (B, 1, T)
    return graph.op("Squeeze", graph.op("MatMul", weights, hidden), _axes(graph, 1))


def _axes(graph: Graph, axis: int) -> str:
    return graph.constant(np.array([axis], np.int64))
