"""The graphs of BERT, RoBERTa and DistilBERT with their heads.

Shapes: B texts, T tokens (padded), H hidden size, L labels.
"""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from lora_core.export.graph import MICROSOFT, Graph
from lora_core.models.build import FIRST_TOKEN_HEADS
from lora_core.models.distilbert import LAYER_NORM_EPS, DistilBertModel
from lora_core.models.heads import RobertaTextClassification
from lora_core.models.layers import MASKED
from lora_core.models.roberta import RobertaModel
from lora_core.models.task_model import TaskModel
from lora_core.models.text_heads import KERNEL_WIDTHS

# DOC """The graphs of the heads that suit every text encoder.
#
# Shapes: B texts, T tokens (padded), H hidden size, F filters of one width.
# """


@dataclass(frozen=True)
class PostNormLayer:
    """Paths of one layer that is normalised after each residual sum."""

    query_key_value: tuple[str, str, str]
    attention_output: str
    attention_norm: str
    intermediate: str
    output: str
    output_norm: str


def text_graph(graph: Graph, model: TaskModel) -> str:
    """Write the whole model; returns the logits, (B, T, L) or (B, L)."""
    ids = graph.input("input_ids", TensorProto.INT64, ["batch", "length"])
    mask = graph.input("attention_mask", TensorProto.INT64, ["batch", "length"])
    mask = graph.op("Cast", mask, to=TensorProto.INT32)
    eps = LAYER_NORM_EPS if isinstance(model.base_model, DistilBertModel) else model.config.layer_norm_eps
    ids = graph.op("Cast", ids, to=TensorProto.INT32)
    hidden = _embeddings(graph, model, ids, eps)
    first_token = model.task == "text-classification" and model.head in READ_FIRST_TOKEN
    layers = _layers(model)
    for layer in layers:
        attended = graph.attention(hidden, layer.query_key_value, model.config.num_attention_heads, mask)
        if layer is layers[-1] and first_token:  # the head reads no other
            attended, hidden = graph.tokens(attended, 0), graph.tokens(hidden, 0)
        hidden = _feed_forward(graph, model, layer, attended, hidden, eps)
    if model.head == "default":
        read = _before_labels(graph, model, hidden)
    else:
        read = head_before_labels(graph, model, hidden, ids, mask)
    return graph.label_layer(read, model.label_layers[0])


def _embeddings(graph: Graph, model: TaskModel, ids: str, eps: float) -> str:
    """(B, T) int32 -> (B, T, H). Without segments the embedding of segment 0 belongs to every position."""
    prefix = f"{model.base_model_prefix}.embeddings"
    tensors, settable = graph.parameters.tensors, graph.parameters.settable
    places, segments = f"{prefix}.position_embeddings.weight", f"{prefix}.token_type_embeddings.weight"
    place = tensors[places]
    if segments in tensors:
        place = place + tensors[segments][0]
    place = graph.weight(f"{prefix}.places", place, not settable.isdisjoint((places, segments)))
    words = graph.parameter(f"{prefix}.word_embeddings.weight")
    scale, shift = graph.parameter(f"{prefix}.LayerNorm.weight"), graph.parameter(f"{prefix}.LayerNorm.bias")
    options = {"domain": MICROSOFT, "outputs": ["embeddings", "unused_mask_index"], "epsilon": eps}
    if not isinstance(model.base_model, RobertaModel):
        return graph.op("EmbedLayerNormalization", ids, "", words, place, "", scale, shift, **options)
    padding = graph.constant(np.array(model.config.pad_token_id, np.int32))
    real = graph.op("Cast", graph.op("Not", graph.op("Equal", ids, padding)), to=TensorProto.INT32)  # (B, T)
    counted = graph.op("CumSum", real, graph.constant(np.array(1, np.int64)))
    positions = graph.op("Add", graph.op("Mul", counted, real), padding)
    return graph.op("EmbedLayerNormalization", ids, "", words, place, "", scale, shift, "", positions, **options)


def _feed_forward(graph: Graph, model: TaskModel, layer: PostNormLayer, attended: str, hidden: str, eps: float) -> str:
    activation = getattr(model.config, model.config.activation_field)
    attended = graph.add_and_normalise(attended, layer.attention_output, hidden, layer.attention_norm, eps)
    wide = graph.activated(attended, layer.intermediate, activation)
    return graph.add_and_normalise(wide, layer.output, attended, layer.output_norm, eps)


def _layers(model: TaskModel) -> list[PostNormLayer]:
    """The layers' paths, first to last."""
    distil = isinstance(model.base_model, DistilBertModel)
    stack = f"{model.base_model_prefix}.{'transformer' if distil else 'encoder'}.layer"
    paths = [f"{stack}.{number}" for number in range(model.config.num_hidden_layers)]
    if distil:
        return [
            PostNormLayer(
                (f"{path}.attention.q_lin", f"{path}.attention.k_lin", f"{path}.attention.v_lin"),
                f"{path}.attention.out_lin", f"{path}.sa_layer_norm",
                f"{path}.ffn.lin1", f"{path}.ffn.lin2", f"{path}.output_layer_norm")
            for path in paths
        ]  # fmt: skip
    return [
        PostNormLayer(
            (f"{path}.attention.self.query", f"{path}.attention.self.key", f"{path}.attention.self.value"),
            f"{path}.attention.output.dense", f"{path}.attention.output.LayerNorm",
            f"{path}.intermediate.dense", f"{path}.output.dense", f"{path}.output.LayerNorm")
        for path in paths
    ]  # fmt: skip


def _before_labels(graph: Graph, model: TaskModel, hidden: str) -> str:
    """What the label layer reads: every token, or the first one through the family's own dense layer."""
    if model.task == "token-classification":
        return hidden  # (B, T, H)
    if isinstance(model.base_model, DistilBertModel):
        return graph.op("Relu", graph.dense(hidden, "pre_classifier"))  # (B, H)
    roberta = isinstance(model, RobertaTextClassification)
    return graph.op("Tanh", graph.dense(hidden, "classifier.dense" if roberta else "bert.pooler.dense"))


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
