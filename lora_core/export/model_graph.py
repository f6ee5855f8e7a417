"""The graph of a whole task model: inputs, embeddings, layers, head.

How an encoder's embeddings and attention and how a head are written, they say themselves (`onnx`), and each layer where
its parts are.

Shapes: B texts or images, T tokens (padded), C channels, H hidden size, L labels.
"""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from lora_core.export.graph import Graph
from lora_core.models.encoder import Encoder, no_graph
from lora_core.models.layers import LayerStack
from lora_core.models.task_model import TaskModel


def model_graph(graph: Graph, model: TaskModel, segments: bool = False) -> str:
    """Write the whole model.

    Args:
        segments: `token_type_ids` are an input too.

    Returns:
        The logits, (B, T, L) or (B, L).

    Raises:
        ValueError: the encoder or the head has no graph.
    """
    encoder, count = model.base_model, model.tokens_read
    if encoder.reads == "images":
        shape = ["batch", model.config.num_channels, *model.config.image_shape]  # (B, C, height, width)
        inputs, ids, mask = graph.input("pixel_values", TensorProto.FLOAT, shape), "", ""
        read = None if count is None else range(count)
    else:
        ids = graph.input("input_ids", TensorProto.INT64, ["batch", "length"])
        mask = graph.cast(graph.input("attention_mask", TensorProto.INT64, ["batch", "length"]), np.int32)
        inputs = ids = graph.cast(ids, np.int32)  # (B, T)
        read = None if count is None else 0
    if segments:
        types = graph.cast(graph.input("token_type_ids", TensorProto.INT64, ["batch", "length"]), np.int32)
        hidden = encoder.onnx_segments(graph, inputs, types)
    else:
        hidden = encoder.onnx_embeddings(graph, inputs)
    stack = encoder.layer_stack()
    if stack is None:
        raise no_graph(f"{model.config.model_type} models")
    write = pre_norm_graph if stack.sequence()[0].norm_first else post_norm_graph
    hidden = write(graph, encoder, stack, hidden, mask, encoder.onnx_shared(graph, inputs), read)
    return model.onnx(graph, hidden, ids, mask)


def post_norm_graph(
    graph: Graph,
    encoder: Encoder,
    stack: LayerStack,
    hidden: str,
    mask: str,
    shared: Sequence[str],
    read: int | Sequence[int] | None,
) -> str:
    """Write layers that are normalised after each residual sum, (B, T, H) -> (B, T, H).

    Args:
        mask: (B, T) int32, or "".
        shared: as `LayerStack.forward` takes it.
        read: the tokens whose states are wanted; the last layer goes on with them alone. One token gives (B, H), n of
            them (B, n, H), None all.
    """
    layers = stack.sequence()
    for number, layer in enumerate(layers, 1):
        parts = layer.parts()
        attended = parts.attention.onnx(graph, hidden, parts.query_key_value, mask, *shared)
        if number == len(layers) and read is not None:
            attended, hidden = graph.tokens(attended, read), graph.tokens(hidden, read)
        attended = graph.add_and_normalise(
            attended, parts.attention_output, hidden, parts.attention_norm, output_scale=parts.attention_scale
        )
        wide = graph.activated(attended, parts.intermediate, parts.activation)
        hidden = graph.add_and_normalise(
            wide, parts.output, attended, parts.output_norm, output_scale=parts.output_scale
        )
    norm = encoder.norm_after_layers()
    return hidden if norm is None else graph.normalise(hidden, norm)


def pre_norm_graph(
    graph: Graph,
    encoder: Encoder,
    stack: LayerStack,
    hidden: str,
    mask: str,
    shared: Sequence[str],
    read: int | Sequence[int] | None,
) -> str:
    """Write layers that are normalised before each half, and the norm after them; as `post_norm_graph`.

    Each residual sum is normalised at once for the half layer that follows it.
    """
    layers, last_norm = stack.sequence(), encoder.norm_after_layers()
    assert last_norm is not None, "layers that begin with a norm end without one"
    norms = [layer.parts().attention_norm for layer in layers]
    normed = graph.normalise(hidden, norms[0])
    for layer, next_norm in zip(layers, [*norms[1:], last_norm], strict=True):
        parts = layer.parts()
        attended = parts.attention.onnx(graph, normed, parts.query_key_value, mask, *shared)
        if layer is layers[-1] and read is not None:
            attended, hidden = graph.tokens(attended, read), graph.tokens(hidden, read)
        halfway, total = f"{graph.path(layer)}.halfway", f"{graph.path(layer)}.total"
        normed = graph.add_and_normalise(
            attended, parts.attention_output, hidden, parts.output_norm, halfway, parts.attention_scale
        )
        wide = graph.activated(normed, parts.intermediate, parts.activation)
        normed = graph.add_and_normalise(wide, parts.output, halfway, next_norm, total, parts.output_scale)
        hidden = total
    return normed
