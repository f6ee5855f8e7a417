"""The exported files on OpenVINO (the extra openvino), which on some CPUs is faster than onnxruntime.

It reads the fp32 files as they stand. Of the int8 files' operators it lacks onnxruntime's own, so `without_fused_int8`
writes those, in memory, as DequantizeLinear before the plain operator, with the file's int8 weights and scales:
OpenVINO then computes the products in int8. Where the file's scales are dynamic it scales activations itself, a row's
in groups, which rounds less than the file's one scale for a tensor.

Whatever it reads, `check_agreement` compares it with onnxruntime before anything is served.

Shapes: B texts or images, T tokens (padded), L labels.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper

from lora_core.models.decoding import real_logits
from lora_core.models.layers import MICROSOFT

INSTALL = "pip install 'lora-core[openvino]'"
SAME_WITHIN = 1e-4
"""Largest difference of a logit between OpenVINO and onnxruntime in fp32, as between an fp32 file and its model."""
ROUNDED_WITHIN = 0.25
"""Where either rounds (int8, bf16): largest mean difference, in standard deviations of the logits. It tells a graph
that was read wrongly; what rounding costs is measured in points of a metric, on real data (`lora-core bench`)."""
PROBE_LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34)
LONGEST_PROBE = 128
SHAPES_KEPT = 32
"""Kernels that each operator keeps for shapes that it has met. OpenVINO's own limit of 5000 lets memory grow."""


class OpenVino:
    """A file of this library, compiled once by OpenVINO for any B and T; several threads may use it.

    Args:
        path: a checked file.
        metadata: what it says of itself.
        threads: of one operator; 0: one for each core.
        bf16: whether products are rounded to bfloat16, where they are not int8.

    Attributes:
        inputs: numpy's type of each, by name.
        outputs: the names of what it gives; a value that operators pass on unchanged has several.

    Raises:
        ValueError: OpenVINO is not installed, or cannot run the file, or the CPU has no bfloat16.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str], threads: int, bf16: bool) -> None:
        openvino = package()
        if "base_sha256" in metadata:
            raise ValueError(f"{path} is a base for adapters, which OpenVINO cannot exchange: use --backend onnx")
        if any(node.op_type == "LSTM" for node in onnx.load(str(path), load_external_data=False).graph.node):
            raise ValueError(
                f"{path} has an LSTM, of which OpenVINO reads the padding, too, so that results would depend on the "
                "batch: use --backend onnx"
            )
        if bf16 and not computes_bf16():
            raise ValueError("this CPU has no bfloat16 for OpenVINO: use --backend openvino, which computes in fp32")
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "CPU_RUNTIME_CACHE_CAPACITY": SHAPES_KEPT,
        }
        try:
            self._compiled = core().compile_model(core().read_model(_source(path, metadata)), "CPU", settings)
        except RuntimeError as error:
            raise ValueError(
                f"OpenVINO {openvino.__version__} cannot run {path} ({_reason(error)}); use --backend onnx"
            ) from error
        self.inputs = {each.any_name: each.element_type.to_dtype() for each in self._compiled.inputs}
        self.outputs = sorted(name for each in self._compiled.outputs for name in each.names)
        self._requests = threading.local()
        self._process = os.getpid()
        self._path = path

    def logits(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The logits for arrays of the right types.

        Raises:
            ValueError: this process was forked from the one that loaded the file, or OpenVINO cannot compute them.
        """
        if os.getpid() != self._process:
            raise ValueError(
                f"{self._path} was loaded by OpenVINO before this process was forked, and its threads are not here: "
                "load it in each process, or start them with the method spawn"
            )
        if not hasattr(self._requests, "own"):
            self._requests.own = self._compiled.create_infer_request()
        try:
            return self._requests.own.infer(dict(arrays))["logits"]
        except RuntimeError as error:
            raise ValueError(f"OpenVINO cannot run {self._path} ({_reason(error)}); use --backend onnx") from error


def package() -> ModuleType:
    """OpenVINO, where it is installed.

    Raises:
        ValueError: it is not.
    """
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise ValueError(f"OpenVINO is not installed: {INSTALL}") from error
    return openvino


@lru_cache
def core() -> Any:
    """OpenVINO's Core, one for as long as the process lives.

    Each Core gives the thread that makes it another stack for signals and takes it away at its end. Of two that do not
    end in the reverse order one leaves a stack behind that is gone, and the next signal ends the process.
    """
    return package().Core()


def computes_bf16() -> bool:
    """Whether OpenVINO has bfloat16 on this CPU."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def without_fused_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """The int8 ``model``, changed in place, with plain operators on dequantised values instead of fused int8 ones."""
    nodes = list(_Plain({tensor.name for tensor in model.graph.initializer}).nodes(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


class _Plain:
    """One pass over the nodes of an int8 graph."""

    def __init__(self, weights: set[str]) -> None:
        self.weights = weights
        """Names of constants."""
        self.dynamic: dict[str, str] = {}
        """In fp32: what was quantised on the way, and what was moved about, by the name of its int8 values."""
        self.static: dict[str, list[str]] = {}
        """Scale and zero point of what is quantised with constant ones."""
        self.written: set[str] = set()

    def nodes(self, nodes: Sequence[NodeProto]) -> Iterator[NodeProto]:
        for node in nodes:
            inputs = list(node.input)
            if node.op_type == "DynamicQuantizeLinear":
                self.dynamic[node.output[0]] = node.input[0]
            elif node.op_type == "DynamicQuantizeMatMul":
                x, weight, scale, *rest = inputs
                yield from self._product(node, x, weight, scale, rest)
            elif node.op_type == "MatMulIntegerToFloat":
                x, weight, x_scale, scale, zero_point, *rest = inputs
                yield from self._activation(x, x_scale, zero_point)
                yield from self._product(node, self._name(x), weight, scale, rest)
            elif node.op_type == "QAttention":
                x, weight, bias, x_scale, scale, mask, zero_point = inputs
                yield from self._activation(x, x_scale, zero_point)
                yield from self._weight(weight, scale)
                inputs = [self._name(x), _wide(weight), bias, *([mask] if mask else [])]
                yield _node(node, "Attention", inputs, MICROSOFT, **_attributes(node))
            elif node.op_type == "FusedMatMul" and not {"transBatchA", "transBatchB"}.isdisjoint(_attributes(node)):
                yield from self._product_of_heads(node)
            elif node.op_type == "QuantizeLinear":
                self.static[node.output[0]] = inputs[1:]
                yield node
            elif inputs and (inputs[0] in self.dynamic or inputs[0] in self.static):  # moves int8 values about
                x = inputs[0]
                yield from self._activation(x, *self.static.get(x, ("", "")))
                node.input[0], self.dynamic[node.output[0]] = self._name(x), node.output[0]
                yield node
            else:
                yield node

    def _name(self, x: str) -> str:
        return self.dynamic.get(x, _wide(x))

    def _activation(self, x: str, scale: str, zero_point: str) -> Iterator[NodeProto]:
        if x not in self.dynamic:
            yield from self._dequantised(x, [x, scale, zero_point])

    def _product(self, node: NodeProto, x: str, weight: str, scale: str, rest: Sequence[str]) -> Iterator[NodeProto]:
        """x times a weight, and the bias that may follow the weight's zero point, of which there is none."""
        yield from self._weight(weight, scale)
        bias = rest[1] if len(rest) > 1 else ""
        if not bias:
            yield _node(node, "MatMul", [x, _wide(weight)])
            return
        product = f"{node.output[0]}_product"
        yield helper.make_node("MatMul", [x, _wide(weight)], [product], name=product)
        yield _node(node, "Add", [product, bias])

    def _product_of_heads(self, node: NodeProto) -> Iterator[NodeProto]:
        """A product of factors of which some come token by token, (T, B, N, D), turned to (B, N, T, D)."""
        attributes, factors = _attributes(node), []
        for number, (factor, side) in enumerate(zip(node.input, "AB", strict=True)):
            order = [1, 2, 0, 3] if attributes.get(f"transBatch{side}", 0) else [0, 1, 2, 3]
            if attributes.get(f"trans{side}", 0):
                order[2:] = reversed(order[2:])
            factors.append(f"{node.output[0]}_factor_{number}")
            yield helper.make_node("Transpose", [factor], factors[-1:], name=factors[-1], perm=order)
        product, scale = f"{node.output[0]}_unscaled", f"{node.output[0]}_alpha"
        yield helper.make_node("MatMul", factors, [product], name=product)
        yield helper.make_node("Constant", [], [scale], name=scale, value_float=attributes.get("alpha", 1.0))
        yield _node(node, "Mul", [product, scale])

    def _weight(self, weight: str, scale: str) -> Iterator[NodeProto]:
        """A matrix with a scale for each column; rows that were looked up in a table come with scales that fit them."""
        if weight in self.weights:
            yield from self._dequantised(weight, [weight, scale], axis=1)
        elif weight not in self.written:
            self.written.add(weight)
            numbers = f"{weight}_numbers"
            yield helper.make_node("Cast", [weight], [numbers], name=numbers, to=onnx.TensorProto.FLOAT)
            yield helper.make_node("Mul", [numbers, scale], [_wide(weight)], name=_wide(weight))

    def _dequantised(self, x: str, inputs: Sequence[str], **attributes: Any) -> Iterator[NodeProto]:
        if x not in self.written:
            self.written.add(x)
            yield helper.make_node("DequantizeLinear", inputs, [_wide(x)], name=_wide(x), **attributes)


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def _wide(x: str) -> str:
    """The name of int8 values in fp32."""
    return f"{x}_dequantised"


def _node(like: NodeProto, op_type: str, inputs: Sequence[str], domain: str = "", **attributes: Any) -> NodeProto:
    return helper.make_node(op_type, inputs, like.output, name=like.name, domain=domain, **attributes)


def _source(path: Path, metadata: Mapping[str, str]) -> str | bytes:
    """What OpenVINO reads of a file: the file itself, or of int8 the content of one that it can read."""
    if metadata["precision"] == "fp32":
        return str(path)
    model = without_fused_int8(onnx.load(str(path)))
    del model.metadata_props[:]
    return model.SerializeToString()


def _reason(error: RuntimeError) -> str:
    """The line of OpenVINO's report that names an operator, or else its last one."""
    lines = [line.strip("- ") for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if line.startswith(("No conversion rule", "Conversion is failed"))]
    return (named or lines[-1:] or [type(error).__name__])[0][:300]


Run = Callable[..., np.ndarray]
"""From arrays by name to logits."""


def check_agreement(path: Path, run: Run, reference: Run, probes: Sequence[dict[str, np.ndarray]], exact: bool) -> None:
    """Compare what OpenVINO gives for the probes with what onnxruntime gives for the same file.

    Of padding it is only asked that its logits are finite.

    Args:
        exact: neither rounds, so `SAME_WITHIN` holds for each logit; else `ROUNDED_WITHIN` for their mean.

    Raises:
        ValueError: they differ by more.
    """
    differences, logits = [], []
    for probe in probes:
        found, expected = run(**probe), reference(**probe)
        if not np.isfinite(found).all():
            raise ValueError(f"{path}: OpenVINO gives NaN or infinity; use --backend onnx")
        ours, theirs = (real_logits(each, probe.get("attention_mask")) for each in (found, expected))
        differences.append(np.abs(ours - theirs).ravel())
        logits.append(theirs.ravel())
    difference = np.concatenate(differences)
    if exact:
        value, limit, kind = float(difference.max()), SAME_WITHIN, "by up to"
    else:
        value, limit = float(difference.mean()), ROUNDED_WITHIN * float(np.concatenate(logits).std())
        kind = "in the mean by"
    if not value <= limit:
        raise ValueError(
            f"{path}: logits of OpenVINO differ from onnxruntime's {kind} {value:.2g}, more than {limit:.2g}; use "
            "--backend onnx"
        )


def text_probes(longest: int, vocabulary: int) -> list[dict[str, np.ndarray]]:
    """Made-up texts: many lengths in one batch with a row of nothing but padding; a short and a long one alone."""
    random = np.random.default_rng(0)
    limit = min(longest, LONGEST_PROBE)
    lengths = np.minimum([*PROBE_LENGTHS, 0], limit)
    mask = np.arange(lengths.max()) < lengths[:, None]  # (B, T)
    masks = [mask, np.ones((1, min(3, limit)), bool), np.ones((1, limit), bool)]
    return [
        {"input_ids": random.integers(0, vocabulary, each.shape), "attention_mask": each.astype(np.int64)}
        for each in masks
    ]


def image_probes(shape: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Made-up images (B, C, height, width), several and one."""
    random = np.random.default_rng(0)
    return [{"pixel_values": random.standard_normal((count, *shape), np.float32)} for count in (4, 1)]
