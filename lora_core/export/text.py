"""The graphs of BERT, RoBERTa and DistilBERT with their heads.

Shapes: B texts, T tokens (padded), H hidden size, L labels.
"""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from lora_core.export.graph import MICROSOFT, Graph
from lora_core.export.text_heads import READ_FIRST_TOKEN, head_before_labels
from lora_core.models.distilbert import LAYER_NORM_EPS, DistilBertModel
from lora_core.models.roberta import RobertaModel
from lora_core.models.task_model import TaskModel
from lora_core.models.text_classifiers import RobertaTextClassification


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
