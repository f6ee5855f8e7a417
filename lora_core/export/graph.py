"""An ONNX graph under construction, written with the fused operators of onnxruntime (domain com.microsoft).

Shapes: B batch, T tokens, H hidden size, F intermediate size, R rank of all updates beside one layer.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from lora_core.export.parameters import Parameters
from lora_core.models.layers import ACTIVATIONS, MASKED

OPSET = 18
MICROSOFT = "com.microsoft"
IR_VERSION = 9
"""Of ONNX 1.14, so that older runtimes read the file too."""

BIASED_ACTIVATIONS = {
    "gelu": "BiasGelu",
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "FastGelu"),
}
"""Activations that one operator computes together with the bias; FastGelu is the tanh form."""

Layers = str | Sequence[str]
"""Path of a linear layer, or of several with one input that are computed as one."""


class Graph:
    """Nodes in order, weights and inputs. Values are known by their names, as in ONNX."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.model = helper.make_model(
            onnx.GraphProto(name="lora_core"),
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
            ir_version=IR_VERSION,
            producer_name="lora_core",
        )
        self.graph = self.model.graph  # filled in place: putting finished parts together would copy the weights
        self.weights: set[str] = set()
        self.settable: dict[str, np.ndarray] = {}
        """Weights that are inputs too, with the values that act when none are given."""

    def input(self, name: str, element_type: int, shape: Sequence[str | int]) -> str:
        """Declare an input."""
        self.graph.input.append(helper.make_tensor_value_info(name, element_type, shape))
        return name

    def op(self, op_type: str, *inputs: str, domain: str = "", outputs: Sequence[str] = (), **attributes: Any) -> str:
        """Add a node and return its first output; ``outputs`` names them where there are several."""
        number = f"{op_type}_{len(self.graph.node)}"
        names = list(outputs) or [f"{number}_output"]
        self.graph.node.append(helper.make_node(op_type, inputs, names, name=number, domain=domain, **attributes))
        return names[0]

    def constant(self, value: np.ndarray) -> str:
        """A small constant; equal ones are one."""
        name = f"constant_{value.dtype}_{'x'.join(map(str, value.shape))}_{value.tobytes().hex()}"
        return self.weight(name, value)

    def weight(self, name: str, value: np.ndarray, settable: bool = False, dims: Sequence[str | int] = ()) -> str:
        """A weight; a settable one is an input as well, of the shape ``dims`` (default: that of ``value``)."""
        if name not in self.weights:
            self.weights.add(name)
            data_type = helper.np_dtype_to_tensor_dtype(value.dtype)
            tensor = self.graph.initializer.add(name=name, data_type=data_type, dims=value.shape)
            tensor.raw_data = value.tobytes()
            if settable:
                self.settable[name] = np.asarray(value, order="C")
                self.input(name, data_type, dims or value.shape)
        return name

    def parameter(self, path: str) -> str:
        """A parameter of the model as it stands."""
        return self.weight(path, self.parameters.tensors[path], path in self.parameters.settable)

    def matrix(self, layers: Layers, dims: Sequence[str | int] = ()) -> str:
        """The weights of ``layers`` side by side, (in, out of all)."""
        paths = [f"{layer}.weight" for layer in _each(layers)]
        value = np.concatenate([self.parameters.tensors[path] for path in paths]).T
        settable = not self.parameters.settable.isdisjoint(paths)
        return self.weight(f"{_name(layers)}.weight", value, settable, dims)

    def bias(self, layers: Layers, dims: Sequence[str | int] = ()) -> str:
        """The biases of ``layers``, (out of all,); zero for a layer that has none."""
        tensors = self.parameters.tensors
        paths = [f"{layer}.bias" for layer in _each(layers)]
        parts = [
            tensors[path] if path in tensors else np.zeros(len(tensors[f"{layer}.weight"]), np.float32)
            for layer, path in zip(_each(layers), paths, strict=True)
        ]
        settable = not self.parameters.settable.isdisjoint(paths)
        return self.weight(f"{_name(layers)}.bias", np.concatenate(parts), settable, dims)

    def linear(self, x: str, layers: Layers) -> str:
        """``layers`` applied to x (..., in), without their biases, with the updates that are kept beside them."""
        y = self.op("MatMul", x, self.matrix(layers))
        update = self._update(layers)
        if update is None:
            return y
        return self.op("Add", y, self.op("MatMul", self.op("MatMul", x, update[0]), update[1]))

    def dense(self, x: str, layer: str) -> str:
        """A linear layer with its bias."""
        return self.op("Add", self.linear(x, layer), self.bias(layer))

    def label_layer(self, x: str, layer: str) -> str:
        """A linear layer whose outputs are the labels; where adapters replace it, each may have a number of its own."""
        tensor = self.parameters.tensors[f"{layer}.weight"]
        count = "labels" if f"{layer}.weight" in self.parameters.settable else tensor.shape[0]
        y = self.op("MatMul", x, self.matrix(layer, [tensor.shape[1], count]))
        return self.op("Add", y, self.bias(layer, [count]))

    def attention(self, x: str, layers: Sequence[str], heads: int, mask: str = "") -> str:
        """Self-attention without its output projection: ``layers`` are query, key, value; ``mask`` is (B, T) int32."""
        options = {"domain": MICROSOFT, "num_heads": heads, **({"mask_filter_value": MASKED} if mask else {})}
        if not any(layer in self.parameters.factors for layer in layers):
            return self.op("Attention", x, self.matrix(layers), self.bias(layers), *([mask] if mask else []), **options)
        parts = [f"{_name(layers)}.{part}" for part in ("query", "key", "value")]
        self.op("Split", self.linear(x, layers), outputs=parts, axis=-1, num_outputs=3)
        return self.op("MultiHeadAttention", *parts, self.bias(layers), *([mask] if mask else []), **options)

    def activated(self, x: str, layer: str, activation: str) -> str:
        """A linear layer with its bias and activation."""
        y, bias = self.linear(x, layer), self.bias(layer)
        if activation in BIASED_ACTIVATIONS:
            return self.op(BIASED_ACTIVATIONS[activation], y, bias, domain=MICROSOFT)
        y = self.op("Add", y, bias)
        kind = ACTIVATIONS[activation][0].__name__
        if kind == "ReLU":
            return self.op("Relu", y)
        assert kind == "SiLU", activation
        return self.op("Mul", y, self.op("Sigmoid", y))

    def add_and_normalise(self, x: str, layer: str, residual: str, norm: str, eps: float, total: str = "") -> str:
        """LayerNorm of ``residual`` + a linear layer of x; ``total`` names that sum where it is needed too."""
        scale, shift = self.parameter(f"{norm}.weight"), self.parameter(f"{norm}.bias")
        outputs = [f"{norm}.output", "", "", total] if total else [f"{norm}.output"]
        return self.op("SkipLayerNormalization", self.linear(x, layer), residual, scale, shift, self.bias(layer),
                       domain=MICROSOFT, outputs=outputs, epsilon=eps)  # fmt: skip

    def normalise(self, x: str, norm: str, eps: float) -> str:
        """LayerNorm alone."""
        scale, shift = self.parameter(f"{norm}.weight"), self.parameter(f"{norm}.bias")
        return self.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=eps)

    def tokens(self, x: str, token: int | Sequence[int]) -> str:
        """One token (B, T, H) -> (B, H), or several -> (B, n, H)."""
        return self.op("Gather", x, self.constant(np.array(token, np.int64)), axis=1)

    def finish(self, output: str, shape: Sequence[str | int]) -> onnx.ModelProto:
        """The model whose output `logits` is the value ``output``."""
        self.op("Identity", output, outputs=["logits"])
        self.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape))
        return self.model

    def _update(self, layers: Layers) -> tuple[str, str] | None:
        """A (in, R) and B (R, out of all) of the updates beside ``layers``, each on its own part of R and of out."""
        factors = [self.parameters.factors.get(layer) for layer in _each(layers)]
        widths = [len(self.parameters.tensors[f"{layer}.weight"]) for layer in _each(layers)]
        found = [pair for pair in factors if pair is not None]
        if not found:
            return None
        a = np.concatenate([pair[0] for pair in found], axis=1)
        b = np.zeros((a.shape[1], sum(widths)), np.float32)
        row = column = 0
        for pair, width in zip(factors, widths, strict=True):
            if pair is not None:
                b[row : row + len(pair[1]), column : column + width] = pair[1]
                row += len(pair[1])
            column += width
        rank = f"rank of {_name(layers)}"
        return (self.weight(f"{_name(layers)}.lora_A", a, True, [a.shape[0], rank]),
                self.weight(f"{_name(layers)}.lora_B", b, True, [rank, b.shape[1]]))  # fmt: skip


def _each(layers: Layers) -> Sequence[str]:
    return [layers] if isinstance(layers, str) else layers


def _name(layers: Layers) -> str:
    """The layer's path; that of the parent with `qkv` for query, key and value."""
    return layers if isinstance(layers, str) else f"{layers[0].rpartition('.')[0]}.qkv"
