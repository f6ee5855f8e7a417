"""The graphs of ViT and DeiT with their classifiers.

Shapes: B images, C channels, P patches, S special tokens, T = S + P, H hidden size, L labels.
"""

import numpy as np
from onnx import TensorProto

from lora_core.export.graph import Graph
from lora_core.models.task_model import TaskModel
from lora_core.models.vit import ViTModel


def image_graph(graph: Graph, model: TaskModel) -> str:
    """Write the whole model; returns the logits (B, L)."""
    height, width = model.config.image_shape
    pixels = graph.input("pixel_values", TensorProto.FLOAT, ["batch", model.config.num_channels, height, width])
    return _classify(graph, model, _layers(graph, model, _embeddings(graph, model, pixels)))


def _embeddings(graph: Graph, model: TaskModel, pixels: str) -> str:
    """(B, C, height, width) -> (B, T, H). The special tokens with their positions are the same for every image."""
    prefix = f"{model.base_model_prefix}.embeddings"
    tensors, settable = graph.parameters.tensors, graph.parameters.settable
    encoder = model.base_model
    assert isinstance(encoder, ViTModel)
    special_paths = [f"{prefix}.cls_token", f"{prefix}.distillation_token"][: encoder.embeddings.num_special_tokens]
    places = f"{prefix}.position_embeddings"
    special = np.concatenate([tensors[path] for path in special_paths], axis=1)  # (1, S, H)
    special = special + tensors[places][:, : special.shape[1]]
    special_name = graph.weight(f"{prefix}.special", special, not settable.isdisjoint((*special_paths, places)))
    patch_places = graph.weight(f"{prefix}.places", tensors[places][:, special.shape[1] :], places in settable)
    projection, size = f"{prefix}.patch_embeddings.projection", model.config.patch_size
    patches = graph.op("Conv", pixels, graph.parameter(f"{projection}.weight"), graph.parameter(f"{projection}.bias"),
                       kernel_shape=[size, size], strides=[size, size])  # fmt: skip
    shape = graph.constant(np.array([0, model.config.hidden_size, -1], np.int64))
    patches = graph.op("Transpose", graph.op("Reshape", patches, shape), perm=[0, 2, 1])  # (B, P, H)
    batch = graph.op("Shape", pixels, start=0, end=1)
    tail = graph.constant(np.array(special.shape[1:], np.int64))
    expanded = graph.op("Expand", special_name, graph.op("Concat", batch, tail, axis=0))  # (B, S, H)
    return graph.op("Concat", expanded, graph.op("Add", patches, patch_places), axis=1)


def _layers(graph: Graph, model: TaskModel, hidden: str) -> str:
    """The layers and the last normalisation, (B, T, H) -> (B, S, H): the last layer goes on with what the head reads.

    Each residual sum is normalised at once for the half layer that follows it.
    """
    prefix, eps = model.base_model_prefix, model.config.layer_norm_eps
    encoder = model.base_model
    assert isinstance(encoder, ViTModel)
    paths = [f"{prefix}.encoder.layer.{number}" for number in range(model.config.num_hidden_layers)]
    after = [*(f"{path}.layernorm_before" for path in paths[1:]), f"{prefix}.layernorm"]
    normed = graph.normalise(hidden, f"{paths[0]}.layernorm_before", eps)
    for path, next_norm in zip(paths, after, strict=True):
        attention = f"{path}.attention.attention"
        attended = graph.attention(normed, [f"{attention}.{part}" for part in ("query", "key", "value")],
                                   model.config.num_attention_heads)  # fmt: skip
        if path == paths[-1]:
            read = range(encoder.embeddings.num_special_tokens)
            attended, hidden = graph.tokens(attended, read), graph.tokens(hidden, read)
        halfway, total = f"{path}.halfway", f"{path}.total"
        normed = graph.add_and_normalise(attended, f"{path}.attention.output.dense", hidden,
                                         f"{path}.layernorm_after", eps, halfway)  # fmt: skip
        wide = graph.activated(normed, f"{path}.intermediate.dense", model.config.hidden_act)
        normed = graph.add_and_normalise(wide, f"{path}.output.dense", halfway, next_norm, eps, total)
        hidden = total
    return normed


def _classify(graph: Graph, model: TaskModel, hidden: str) -> str:
    """The classifier of each special token; DeiT's two are averaged."""
    logits = [graph.label_layer(graph.tokens(hidden, row), layer) for row, layer in enumerate(model.label_layers)]
    if len(logits) == 1:
        return logits[0]
    return graph.op("Div", graph.op("Add", *logits), graph.constant(np.array(len(logits), np.float32)))
