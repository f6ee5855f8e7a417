"""Dynamic int8: weights in 8 bits, activations quantised as they come.

Weights are signed, symmetric, with a scale per output column (per row of the word embeddings), over the whole range
-127 to 127: what VNNI and later instructions compute exactly. (AVX2 alone adds products in 16 bits and may saturate.)
Activations have one scale and zero point for each tensor, so a text's logits depend a little on its batch; the file's
metadata says so (`activation_scales`). Texts that are run alone always get the same. A scale for each row would cost a
tenth to a fifth of each product's time with onnxruntime 1.31, whose fast kernel takes one scale for the whole matrix.

The head stays in fp32. A SkipLayerNormalization becomes an addition and a LayerNormalization: with onnxruntime 1.31 on
a CPU that takes an eighth of the fused operator's time.

Shapes: B texts, T tokens, H hidden size, V vocabulary.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from lora_core.export.onnx_file import fused_counts, read_file
from lora_core.export.write import read_model, write_model
from lora_core.models.layers import MICROSOFT

INT8_FACTS = {"precision": "int8", "activation_scales": "one for each tensor: results depend a little on the batch"}
"""What a file says of its numbers."""
LAYER = re.compile(r"\.\d+\.")
"""In the name of every weight of an encoder's layers: its layer's number."""


def quantize_onnx(path: str | Path, target: str | Path) -> Path:
    """Write the fp32 file ``path`` as int8 to ``target``, with its metadata, and return ``target``.

    A base for adapters can be quantised too: what the adapters change stays in fp32.

    Raises:
        FileNotFoundError: as `read_metadata`.
        ValueError: as `read_metadata`, or the file is int8 already.
    """
    path, target = Path(path), Path(target)
    metadata = read_file(path).metadata
    if metadata["precision"] != "fp32":
        raise ValueError(f"{path} is {metadata['precision']}; quantise the fp32 file")
    model = read_model(path)
    _Quantiser(model.graph).run()
    facts = {name: text for name, text in metadata.items() if name not in ("graph_sha256", "external_data")}
    write_model(model, target, {**facts, **INT8_FACTS, "fp32_sha256": metadata["graph_sha256"]})
    before, after = fused_counts(path), fused_counts(target)
    assert after["attention"] == before["attention"], (before, after)
    assert after["layer_norm"] >= before["skip_layer_norm"] == 2 * after["layers"], (before, after)
    return target


def quantised(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 values and fp32 scales of a matrix, one scale for all entries along ``axis``."""
    scale = np.abs(weight).max(axis, keepdims=True) / np.float32(127)
    scale[scale == 0] = 1
    return np.rint(weight / scale).astype(np.int8), np.squeeze(scale, axis)


class _Quantiser:
    """One pass over the nodes of a graph of this library."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        settable = {value.name for value in graph.input}
        self.weights = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in settable}
        self.token_ids = {node.output[0] for node in graph.node if node.op_type == "Cast" and "input_ids" in node.input}
        self.added: dict[str, TensorProto] = {}
        self.rules: dict[str, Callable[[NodeProto], Iterable[NodeProto]]] = {
            "MatMul": self._mat_mul,
            "Attention": self._attention,
            "SkipLayerNormalization": self._skip_layer_norm,
            "EmbedLayerNormalization": self._embeddings,
            "Gather": self._gather,
        }

    def run(self) -> None:
        nodes = [new for node in self.graph.node for new in self.rules.get(node.op_type, _unchanged)(node)]
        used = {name for node in nodes for name in node.input} | {value.name for value in self.graph.input}
        for number in reversed(range(len(self.graph.initializer))):
            if self.graph.initializer[number].name not in used:
                del self.graph.initializer[number]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(self.added.values())

    def _int8(self, name: str, axis: int) -> tuple[str, str]:
        """Names of a weight's values and scales in int8."""
        values, scales = f"{name}.int8", f"{name}.scale"
        if values not in self.added:
            quantised_values, scale = quantised(numpy_helper.to_array(self.weights[name]), axis)
            self.added[values] = numpy_helper.from_array(quantised_values, values)
            self.added[scales] = numpy_helper.from_array(scale, scales)
        return values, scales

    def _constant(self, name: str, value: np.ndarray) -> str:
        self.added[name] = numpy_helper.from_array(value, name)
        return name

    def _mat_mul(self, node: NodeProto) -> Iterable[NodeProto]:
        if node.input[1] not in self.weights or not LAYER.search(node.input[1]):
            return [node]
        weight = self._int8(node.input[1], 0)
        return [_node("DynamicQuantizeMatMul", [node.input[0], *weight], node.output, node.name)]

    def _attention(self, node: NodeProto) -> Iterable[NodeProto]:
        values, scales = self._int8(node.input[1], 0)
        x, scale, zero = (f"{node.name}_{part}" for part in ("int8", "scale", "zero_point"))
        inputs = [x, values, node.input[2], scale, scales, *(node.input[3:] or [""]), zero]
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        return [
            _node("DynamicQuantizeLinear", [node.input[0]], [x, scale, zero], f"{node.name}_quantise", ""),
            _node("QAttention", inputs, node.output, node.name, **attributes),
        ]

    def _skip_layer_norm(self, node: NodeProto) -> Iterable[NodeProto]:
        """LayerNorm(x + skip), or of x + bias + skip; the sum is the fourth output."""
        x, skip, scale, shift, *bias = node.input
        total = node.output[3] if len(node.output) > 3 else f"{node.name}_sum"
        biased = f"{node.name}_biased" if bias else x
        return [
            *([_node("Add", [x, *bias], [biased], f"{node.name}_bias", "")] if bias else []),
            _node("Add", [biased, skip], [total], f"{node.name}_skip", ""),
            _layer_norm(node, total, scale, shift),
        ]

    def _embeddings(self, node: NodeProto) -> Iterable[NodeProto]:
        """`_rows` of the word embeddings + places, normalised."""
        ids, segment_ids, words, places, segments, scale, shift, *rest = node.input
        name = node.name
        position_ids = rest[1] if len(rest) > 1 else ""
        if words not in self.weights:
            return [node]
        if position_ids:
            located = [_node("Gather", [places, position_ids], [f"{name}_places"], f"{name}_place", "")]  # (B, T, H)
        else:
            start = self._constant("embeddings_start", np.array([0], np.int64))
            located = [
                _node("Shape", [ids], [f"{name}_length"], f"{name}_shape", "", start=1, end=2),
                _node("Slice", [places, start, f"{name}_length"], [f"{name}_places"], f"{name}_slice", ""),  # (T, H)
            ]
        if segment_ids:
            located += [
                _node("Gather", [segments, segment_ids], [f"{name}_segments"], f"{name}_segment", ""),  # (B, T, H)
                _node("Add", [f"{name}_places", f"{name}_segments"], [f"{name}_located"], f"{name}_locate", ""),
            ]
        place = f"{name}_located" if segment_ids else f"{name}_places"
        return [
            *self._rows(name, words, ids, f"{name}_words"),
            *located,
            _node("Add", [f"{name}_words", place], [f"{name}_sum"], f"{name}_sum", ""),
            _layer_norm(node, f"{name}_sum", scale, shift),
        ]

    def _gather(self, node: NodeProto) -> Iterable[NodeProto]:
        """Word embeddings that stand alone, of encoders whose positions are elsewhere."""
        words, ids = node.input
        if ids not in self.token_ids or words not in self.weights or len(self.weights[words].dims) != 2:
            return [node]
        return self._rows(node.name, words, ids, node.output[0])

    def _rows(self, name: str, words: str, ids: str, output: str) -> list[NodeProto]:
        """Rows (B, T, H) of the int8 word embeddings (V, H), scaled."""
        values, scales = self._int8(words, 1)
        scales = self._column(scales)
        return [
            _node("Gather", [values, ids], [f"{name}_rows"], f"{name}_rows", ""),  # (B, T, H) int8
            _node("Cast", [f"{name}_rows"], [f"{name}_wide"], f"{name}_cast", "", to=TensorProto.FLOAT),
            _node("Gather", [scales, ids], [f"{name}_scales"], f"{name}_scales", ""),  # (B, T, 1)
            _node("Mul", [f"{name}_wide", f"{name}_scales"], [output], f"{name}_words", ""),
        ]

    def _column(self, name: str) -> str:
        """The scales ``name`` (V,) as (V, 1), so that rows can be looked up."""
        value = numpy_helper.to_array(self.added[name])
        self.added[name] = numpy_helper.from_array(value.reshape(-1, 1), name)
        return name


def _unchanged(node: NodeProto) -> Iterable[NodeProto]:
    return [node]


def _layer_norm(node: NodeProto, total: str, scale: str, shift: str) -> NodeProto:
    eps = next(entry.f for entry in node.attribute if entry.name == "epsilon")
    return _node("LayerNormalization", [total, scale, shift], [node.output[0]], node.name, "", axis=-1, epsilon=eps)


def _node(
    op_type: str, inputs: Iterable[str], outputs: Iterable[str], name: str, domain: str = MICROSOFT, **attributes
) -> NodeProto:
    return helper.make_node(op_type, list(inputs), list(outputs), name=name, domain=domain, **attributes)
