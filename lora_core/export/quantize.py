"""int8: weights in 8 bits, activations quantised by scales that are fixed (static) or found on the way (dynamic).

Weights are signed, symmetric, from -127 to 127, with a scale per output column (per row of the word embeddings).
Tables of projected positions, which are constants, have a scale for each row of each head.

Products of the integers are exact on every CPU. Before VNNI, x86 adds two neighbouring products in 16 bits, which
overflow where their weights add up to more than 128: 255 (w + w') <= 32767. So no two neighbours do, at the price of
steps that are up to twice, and in trained weights about a tenth to a third, larger.

Activations are unsigned, with one scale and zero point for each tensor. The file's metadata says which (`activations`):

- static: from the range that the tensor has on calibration inputs; values beyond it are cut off. A text's logits are
  then the same to the bit in every batch: products of integers are exact, and to the sums in fp32, which onnxruntime
  forms in the same order (seen with AVX-512 and with AVX2 alone), padding adds zeros. The heads `attention` and
  `textcnn` add up tokens in another order, so theirs are the same to rounding.
- dynamic: from the tensor at hand, so a text's logits depend a little on its batch; alone, it always gets the same.

A scale for each row would cost a tenth to a fifth of each product's time with onnxruntime 1.31, whose fast kernel takes
one scale for the whole matrix.

The head stays in fp32. With onnxruntime 1.31 on a CPU a SkipLayerNormalization, written as an addition and a
LayerNormalization, takes an eighth of its time, and a bias that the product before it adds, where the sums are still at
hand, saves a twentieth of a model's.

Shapes: B texts, T tokens, H hidden size, V vocabulary.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from lora_core.export.calibrate import Range, activation_ranges
from lora_core.export.onnx_file import fused_counts, read_file
from lora_core.export.write import read_model, write_model
from lora_core.models.layers import MICROSOFT

LAYER = re.compile(r"\.\d+\.")
"""In the name of every weight of an encoder's layers: its layer's number."""


def quantize_onnx(
    path: str | Path, target: str | Path, calibration: Iterable[Mapping[str, Tensor]] | None = None
) -> Path:
    """Write the fp32 file ``path`` as int8 to ``target``, with its metadata, and return ``target``.

    Args:
        calibration: batches of the model's inputs, as real as what will be served: token ids padded behind each text,
            with their mask, or {"pixel_values": (B, C, height, width)}. The fp32 file runs over them, and the range of
            each quantised activation sets its scale for good (static). Some hundred inputs are enough. None: scales
            are found on the way (dynamic).

    A base for adapters can be quantised too: what the adapters change stays in fp32. Its scales are dynamic, for each
    adapter gives activations ranges of its own, and those of one would cut off what another needs.

    Raises:
        FileNotFoundError: as `read_metadata`.
        ValueError: as `read_metadata`; the file is int8 already; or there is a calibration, of a base for adapters,
            without an input, or not of this model's inputs.
    """
    path, target = Path(path), Path(target)
    metadata = read_file(path).metadata
    if metadata["precision"] != "fp32":
        raise ValueError(f"{path} is {metadata['precision']}; quantise the fp32 file")
    if calibration is not None and "base_sha256" in metadata:
        raise ValueError(
            f"{path} is a base for adapters, and each gives activations other ranges: leave calibration out, or "
            "quantise a model that export_onnx has merged with its adapter"
        )
    model = read_model(path)
    quantiser = _Quantiser(model.graph)
    facts = {"precision": "int8", "activations": "dynamic", "fp32_sha256": metadata["graph_sha256"]}
    if calibration is not None:
        quantiser.ranges, inputs = activation_ranges(path, quantiser.activations(), calibration)
        facts |= {"activations": "static", "calibration_inputs": str(inputs)}
    quantiser.run()
    kept = {name: text for name, text in metadata.items() if name not in ("graph_sha256", "external_data")}
    write_model(model, target, {**kept, **facts})
    before, after = fused_counts(path), fused_counts(target)
    assert after["attention"] == before["attention"], (before, after)
    assert after["layer_norm"] >= before["skip_layer_norm"] == 2 * after["layers"], (before, after)
    return target


def quantised(weight: np.ndarray, axis: int, *, of_product: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """int8 values and fp32 scales of a matrix, one scale for all entries along ``axis``.

    Args:
        of_product: products sum along ``axis``, and are exact on every CPU: the values 2 i and 2 i + 1 add up to at
            most 128.
    """
    largest = np.abs(weight).max(axis, keepdims=True)
    if of_product:
        even = weight.shape[axis] // 2 * 2
        pairs = weight.take(range(0, even, 2), axis) + weight.take(range(1, even, 2), axis)
        largest = np.maximum(largest, np.abs(pairs).max(axis, keepdims=True, initial=0))
    scale = largest / np.float32(127)
    scale[scale == 0] = 1
    return np.rint(weight / scale).astype(np.int8), np.squeeze(scale, axis)


def scale_and_zero_point(lowest: float, highest: float) -> tuple[np.float32, np.uint8]:
    """Of unsigned int8 that holds these values and, exactly, 0."""
    lowest, highest = min(lowest, 0.0), max(highest, 0.0)
    scale = np.float32((highest - lowest) / 255)
    if scale == 0:
        return np.float32(1), np.uint8(0)
    return scale, np.uint8(np.clip(np.rint(-lowest / scale), 0, 255))


class _Quantiser:
    """One pass over the nodes of a graph of this library."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        settable = {value.name for value in graph.input}
        self.weights = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in settable}
        self.token_ids = {node.output[0] for node in graph.node if node.op_type == "Cast" and "input_ids" in node.input}
        self.position_rows = self._position_rows()
        """The nodes that look up rows of constant tables for products with queries and keys, by their outputs."""
        self.readers: dict[str, list[NodeProto]] = {}
        """The nodes that take a value."""
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.biased: set[str] = set()
        """Products that add the bias of the node behind them, which leaves it out."""
        self.added: dict[str, TensorProto] = {}
        self.ranges: Mapping[str, Range] | None = None
        """Of the activations, for static scales; None: dynamic ones."""
        self.masks: set[str] = set()
        """The masks that are there as numbers to add."""
        self.quantised: set[str] = set()
        """The int8 activations that there are."""
        self.rules: dict[str, Callable[[NodeProto], Iterable[NodeProto]]] = {
            "MatMul": self._mat_mul,
            "FusedMatMul": self._position_product,
            "Add": self._add,
            "BiasGelu": self._gelu,
            "FastGelu": self._gelu,
            "Attention": self._attention,
            "SkipLayerNormalization": self._skip_layer_norm,
            "EmbedLayerNormalization": self._embeddings,
            "Gather": self._gather,
        }

    def activations(self) -> list[str]:
        """Names of what is quantised on the way: the inputs of products with int8 weights."""
        nodes = [
            node
            for node in self.graph.node
            if node.op_type == "Attention" or self._is_layer_product(node) or self._is_position_product(node)
        ]
        return list(dict.fromkeys(node.input[0] for node in nodes))

    def run(self) -> None:
        nodes = [new for node in self.graph.node for new in self.rules.get(node.op_type, _unchanged)(node)]
        used = {name for node in nodes for name in node.input} | {value.name for value in self.graph.input}
        for number in reversed(range(len(self.graph.initializer))):
            if self.graph.initializer[number].name not in used:
                del self.graph.initializer[number]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(self.added.values())

    def _int8(self, name: str, axis: int, *, of_product: bool = True) -> tuple[str, str]:
        """Names of a weight's values and scales in int8."""
        values, scales = f"{name}.int8", f"{name}.scale"
        if values not in self.added:
            quantised_values, scale = quantised(numpy_helper.to_array(self.weights[name]), axis, of_product=of_product)
            self.added[values] = numpy_helper.from_array(quantised_values, values)
            self.added[scales] = numpy_helper.from_array(scale, scales)
        return values, scales

    def _constant(self, name: str, value: np.ndarray | np.generic) -> str:
        self.added[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _is_layer_product(self, node: NodeProto) -> bool:
        """Whether it multiplies by a weight of one of the encoder's layers."""
        return node.op_type == "MatMul" and node.input[1] in self.weights and bool(LAYER.search(node.input[1]))

    def _is_position_product(self, node: NodeProto) -> bool:
        """Whether it multiplies queries or keys by rows of a constant table of projected positions."""
        return node.op_type == "FusedMatMul" and node.input[1] in self.position_rows

    def _position_rows(self) -> dict[str, NodeProto]:
        used = {node.input[1] for node in self.graph.node if node.op_type == "FusedMatMul"}
        lookups = [node for node in self.graph.node if node.op_type == "Gather" and node.output[0] in used]
        return {node.output[0]: node for node in lookups if node.input[0] in self.weights}

    def _quantise(self, x: str) -> tuple[list[NodeProto], tuple[str, str, str]]:
        """Nodes that quantise an activation, and the names of its int8 values, scale and zero point."""
        values, _, _ = names = (f"{x}_int8", f"{x}_scale", f"{x}_zero_point")
        if values in self.quantised:
            return [], names
        self.quantised.add(values)
        if self.ranges is None:
            return [_node("DynamicQuantizeLinear", [x], names, f"{x}_quantise", "")], names
        return [_node("QuantizeLinear", [x, *self._scale(x)], [values], f"{x}_quantise", "")], names

    def _scale(self, x: str) -> tuple[str, str]:
        """Names of an activation's static scale and zero point."""
        assert self.ranges is not None
        step, zero = scale_and_zero_point(*self.ranges[x])
        return self._constant(f"{x}_scale", np.array(step)), self._constant(f"{x}_zero_point", np.array(zero))

    def _mat_mul(self, node: NodeProto) -> Iterable[NodeProto]:
        if not self._is_layer_product(node):
            return [node]
        weight = self._int8(node.input[1], 0)
        bias = self._bias_behind(node.output[0])
        rest = ["", bias] if bias else []
        if bias:
            self.biased.add(node.output[0])
        if self.ranges is None:  # one operator that quantises too
            return [_node("DynamicQuantizeMatMul", [node.input[0], *weight, *rest], node.output, node.name)]
        quantise, (x, scale, zero_point) = self._quantise(node.input[0])
        inputs = [x, weight[0], scale, weight[1], zero_point, *rest]
        return [*quantise, _node("MatMulIntegerToFloat", inputs, node.output, node.name)]

    def _position_product(self, node: NodeProto) -> Iterable[NodeProto]:
        """(B, N, T, D) times W rows of a table (N, R, D), each with a scale of its own in each head."""
        if not self._is_position_product(node):
            return [node]
        name, (table, index) = node.name, self.position_rows[node.input[1]].input
        value, scale = quantised(numpy_helper.to_array(self.weights[table]), 2)  # (N, R, D), (N, R)
        alpha = next(entry.f for entry in node.attribute if entry.name == "alpha")
        values = self._constant(f"{table}.int8", value)
        scales = self._constant(f"{table}.scale", scale[:, None] * np.float32(alpha))
        quantise, (x, x_scale, zero_point) = self._quantise(node.input[0])
        return [
            *quantise,
            _node("Gather", [values, index], [f"{name}_rows"], f"{name}_rows", "", axis=1),  # (N, W, D)
            _node("Transpose", [f"{name}_rows"], [f"{name}_columns"], f"{name}_columns", "", perm=[0, 2, 1]),
            _node("Gather", [scales, index], [f"{name}_scales"], f"{name}_scales", "", axis=2),  # (N, 1, W)
            _node(
                "MatMulIntegerToFloat",
                [x, f"{name}_columns", x_scale, f"{name}_scales", zero_point],
                node.output,
                name,
            ),
        ]

    def _bias_behind(self, product: str) -> str:
        """The bias that is added to a product next and to nothing else, so that the product can add it itself."""
        readers = self.readers.get(product, [])
        if len(readers) != 1 or readers[0].op_type not in _BIAS_INPUT or readers[0].input[0] != product:
            return ""
        place = _BIAS_INPUT[readers[0].op_type]
        bias = readers[0].input[place] if len(readers[0].input) > place else ""
        return bias if bias in self.weights and len(self.weights[bias].dims) == 1 else ""

    def _add(self, node: NodeProto) -> Iterable[NodeProto]:
        if node.input[0] not in self.biased:
            return [node]
        return [_node("Identity", node.input[:1], node.output, node.name, "")]

    def _gelu(self, node: NodeProto) -> Iterable[NodeProto]:
        if node.input[0] not in self.biased:
            return [node]
        kind = "Gelu" if node.op_type == "BiasGelu" else node.op_type
        return [_node(kind, node.input[:1], node.output, node.name)]

    def _attention(self, node: NodeProto) -> Iterable[NodeProto]:
        """Attention in its parts: one int8 product for queries, keys and values of all tokens, which come token by
        token, (T, B, ...), so that the products of the heads (N of them, of width D) read them where they are."""
        name, output = node.name, node.output[0]
        x, weight, bias, *mask = node.input
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        heads, hidden = attributes["num_heads"], self.weights[bias].dims[0] // 3
        width = hidden // heads
        quantise, (values, scale, zero_point) = self._quantise(x)
        weights, weight_scales = self._int8(weight, 0)
        inputs = [f"{name}_turned", weights, scale, weight_scales, zero_point, "", bias]
        by_head = self._constant(f"shape_{heads}_{width}", np.array([0, 0, heads, width], np.int64))
        flat, parts = ([f"{name}_{part}{end}" for part in ("query", "key", "value")] for end in ("", "_by_head"))
        nodes = [
            *quantise,
            _node("Transpose", [values], inputs[:1], inputs[0], "", perm=(1, 0, 2)),  # (T, B, H)
            _node("MatMulIntegerToFloat", inputs, [f"{name}_product"], f"{name}_product"),  # (T, B, 3 H)
            _node("Split", [f"{name}_product"], flat, f"{name}_split", "", axis=-1, num_outputs=3),
            *(_node("Reshape", [a, by_head], [b], b, "") for a, b in zip(flat, parts, strict=True)),  # (T, B, N, D)
        ]
        query, key, value = parts
        scores, attended = f"{name}_scores", f"{name}_attended"
        product = {"transBatchA": 1, "transBatchB": 1, "transB": 1, "alpha": width**-0.5}
        nodes.append(_node("FusedMatMul", [query, key], [scores], scores, **product))  # (B, N, T, T)
        if mask:
            nodes += self._added_mask(mask[0], attributes["mask_filter_value"])
            nodes.append(_node("Add", [scores, f"{mask[0]}_added"], [f"{scores}_masked"], f"{scores}_masked", ""))
            scores = f"{scores}_masked"
        nodes.append(_node("Softmax", [scores], [f"{name}_shares"], f"{name}_shares", "", axis=-1))
        inputs = [f"{name}_shares", value]
        nodes.append(_node("FusedMatMul", inputs, [attended], attended, transBatchB=1))  # (B, N, T, D)
        if self.ranges is not None and all(map(self._is_layer_product, self.readers[output])):
            inputs, attended = [attended, *self._scale(output)], f"{attended}_int8"
            nodes.append(_node("QuantizeLinear", inputs, [attended], attended, ""))  # a quarter of the bytes to turn
            output = f"{output}_int8"
            self.quantised.add(output)
        joined = self._constant(f"shape_{hidden}", np.array([0, 0, hidden], np.int64))
        return [
            *nodes,
            _node("Transpose", [attended], [f"{name}_tokens"], f"{name}_tokens", "", perm=(0, 2, 1, 3)),  # (B, T, N, D)
            _node("Reshape", [f"{name}_tokens", joined], [output], name, ""),  # (B, T, H)
        ]

    def _added_mask(self, mask: str, value: float) -> list[NodeProto]:
        """`{mask}_added`, (B, 1, 1, T): 0 at real tokens, ``value`` at padding; for all layers once."""
        added = f"{mask}_added"
        if added in self.masks:
            return []
        self.masks.add(added)
        one, axes = self._constant("mask_one", np.float32(1)), self._constant("mask_axes", np.array([1, 2], np.int64))
        factor = self._constant("mask_factor", np.float32(-value))
        return [
            _node("Cast", [mask], [f"{mask}_real"], f"{mask}_real", "", to=TensorProto.FLOAT),  # (B, T)
            _node("Sub", [f"{mask}_real", one], [f"{mask}_padding"], f"{mask}_padding", ""),
            _node("Mul", [f"{mask}_padding", factor], [f"{mask}_values"], f"{mask}_values", ""),
            _node("Unsqueeze", [f"{mask}_values", axes], [added], added, ""),
        ]

    def _skip_layer_norm(self, node: NodeProto) -> Iterable[NodeProto]:
        """LayerNorm(x + skip), or of x + bias + skip; the sum is the fourth output."""
        x, skip, scale, shift, *bias = node.input
        bias = [] if x in self.biased else bias
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
        """Word embeddings that stand alone, of encoders whose positions are elsewhere. Rows of positions are looked up
        in int8, beside their product."""
        if node.output[0] in self.position_rows:
            return []
        words, ids = node.input
        if ids not in self.token_ids or words not in self.weights or len(self.weights[words].dims) != 2:
            return [node]
        return self._rows(node.name, words, ids, node.output[0])

    def _rows(self, name: str, words: str, ids: str, output: str) -> list[NodeProto]:
        """Rows (B, T, H) of the int8 word embeddings (V, H), scaled."""
        values, scales = self._int8(words, 1, of_product=False)
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


_BIAS_INPUT = {"Add": 1, "BiasGelu": 1, "FastGelu": 1, "SkipLayerNormalization": 4}
"""Which input of an operator is a bias that it adds to its first."""


def _unchanged(node: NodeProto) -> Iterable[NodeProto]:
    return [node]


def _layer_norm(node: NodeProto, total: str, scale: str, shift: str) -> NodeProto:
    eps = next(entry.f for entry in node.attribute if entry.name == "epsilon")
    return _node("LayerNormalization", [total, scale, shift], [node.output[0]], node.name, "", axis=-1, epsilon=eps)


def _node(
    op_type: str, inputs: Iterable[str], outputs: Iterable[str], name: str, domain: str = MICROSOFT, **attributes
) -> NodeProto:
    return helper.make_node(op_type, list(inputs), list(outputs), name=name, domain=domain, **attributes)
