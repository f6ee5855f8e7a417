"""An ONNX graph under construction, written with the fused operators of onnxruntime (domain com.microsoft).

Shapes: B batch, T tokens, H hidden size, F intermediate size, R rank of all updates beside one layer.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.nn import functional as F

from lora_core.export.parameters import Parameters
from lora_core.models.layers import MASKED, MICROSOFT

OPSET = 18
IR_VERSION = 9
"""Of ONNX 1.14, so that older runtimes read the file too."""

Layers = nn.Module | Sequence[nn.Module]
"""A linear layer, or several with one input that are computed as one."""


class Graph:
    """Nodes in order, weights and inputs. Values are known by their names, as in ONNX; what is computed, by modules.

    It is the `GraphBuilder` that encoders and heads write themselves with.

    Args:
        model: what the graph is to compute.
        parameters: the weights that it is to have.
    """

    def __init__(self, model: nn.Module, parameters: Parameters) -> None:
        self.paths = {module: path for path, module in model.named_modules()}
        self.parameters = parameters
        self.model = helper.make_model(
            onnx.GraphProto(name="lora_core"),
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
            ir_version=IR_VERSION,
            producer_name="lora_core",
        )
        self.graph = self.model.graph  # filled in place: putting finished parts together would copy the weights
        self.weights: set[str] = set()
        self.outputs: set[str] = set()
        """Names that were given to outputs of nodes."""
        self.known: dict[str, np.ndarray] = {}
        """Constants that are written only where the graph itself has to compute with them."""
        self.settable: dict[str, np.ndarray] = {}
        """Weights that are inputs too, with the values that act when none are given."""

    def input(self, name: str, element_type: int, shape: Sequence[str | int]) -> str:
        """Declare an input."""
        self.graph.input.append(helper.make_tensor_value_info(name, element_type, shape))
        return name

    def path(self, module: nn.Module) -> str:
        """Where in the model a module is."""
        return self.paths[module]

    def array(self, module: nn.Module, name: str = "weight") -> np.ndarray:
        """A parameter or buffer of a module, in float32."""
        return self.parameters.tensors[f"{self.path(module)}.{name}"]

    def op(self, op_type: str, *inputs: str, domain: str = "", outputs: Sequence[str] = (), **attributes: Any) -> str:
        """Add a node and return its first output; ``outputs`` names them where there are several."""
        number = f"{op_type}_{len(self.graph.node)}"
        names = list(outputs) or [f"{number}_output"]
        self.graph.node.append(helper.make_node(op_type, inputs, names, name=number, domain=domain, **attributes))
        return names[0]

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """A small constant; equal ones are one."""
        array = np.array(value, dtype)
        name = f"constant_{array.dtype}_{'x'.join(map(str, array.shape))}_{array.tobytes().hex()}"
        return self.weight(name, array)

    def cast(self, x: str, dtype: Any) -> str:
        """x as another of numpy's types."""
        return self.op("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

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

    def parameter(self, module: nn.Module, name: str = "weight", dims: Sequence[str | int] = ()) -> str:
        """A parameter or buffer of a module as it stands; of the shape ``dims`` where adapters replace it."""
        return self.derived(f"{self.path(module)}.{name}", self.array(module, name), [(module, name)], dims)

    def derived(
        self, name: str, value: np.ndarray, sources: Sequence[tuple[nn.Module, str]], dims: Sequence[str | int] = ()
    ) -> str:
        """A weight computed from parameters of modules; settable if one of those is."""
        settable = self._settable(f"{self.path(module)}.{part}" for module, part in sources)
        return self.weight(name, value, settable, dims)

    def matrix(self, layers: Layers, dims: Sequence[str | int] = ()) -> str:
        """The weights of ``layers`` side by side, (in, out of all)."""
        each = _each(layers)
        value = np.concatenate([self.array(layer) for layer in each]).T
        settable = self._settable(f"{self.path(layer)}.weight" for layer in each)
        return self.weight(f"{self._name(layers)}.weight", value, settable, dims)

    def bias(self, layers: Layers, dims: Sequence[str | int] = ()) -> str:
        """The biases of ``layers``, (out of all,); zero for a layer that has none."""
        each = _each(layers)
        parts = [self._bias_or_zero(layer) for layer in each]
        settable = self._settable(f"{self.path(layer)}.bias" for layer in each)
        return self.weight(f"{self._name(layers)}.bias", np.concatenate(parts), settable, dims)

    def linear(self, x: str, layers: Layers) -> str:
        """``layers`` applied to x (..., in), without their biases, with the updates that are kept beside them."""
        y = self.op("MatMul", x, self.matrix(layers))
        update = self._update(layers)
        if update is None:
            return y
        return self.op("Add", y, self.op("MatMul", self.op("MatMul", x, update[0]), update[1]))

    def dense(self, x: str, layers: Layers) -> str:
        """``layers`` with the biases they have."""
        y = self.linear(x, layers)
        return self.op("Add", y, self.bias(layers)) if any(map(self._has_bias, _each(layers))) else y

    def table(self, table: nn.Module, norm: Any = None) -> str:
        """All rows (R, H) of an embedding table, normalised, for `projected_table`."""
        if self._replaceable([table] if norm is None else [table, norm]):
            rows = self.parameter(table)
            return rows if norm is None else self.normalise(rows, norm)
        name = f"{self.path(table)}.rows"
        self.known[name] = self.array(table)
        if norm is not None:
            tensors = [torch.from_numpy(array) for array in (self.array(table), self.array(norm))]
            bias = torch.from_numpy(self._bias_or_zero(norm))
            self.known[name] = F.layer_norm(tensors[0], tensors[1].shape, tensors[1], bias, norm.eps).numpy()
        return name

    def projected_table(self, table: str, layer: nn.Module, heads: int) -> str:
        """The rows (R, H) of a `table` through a linear layer, by head: (N, R, D). A constant, unless adapters may
        change it."""
        if table in self.known:
            if not self._replaceable(layer):
                rows = self.known[table] @ self.array(layer).T + self._bias_or_zero(layer)
                by_head = rows.reshape(len(rows), heads, -1).transpose(1, 0, 2)
                return self.weight(f"{table} by {self.path(layer)}", by_head)
            self.weight(table, self.known[table])
        split = self.op("Reshape", self.dense(table, layer), self.constant([0, heads, -1]))
        return self.op("Transpose", split, perm=[1, 0, 2])

    def label_layer(self, x: str, layer: nn.Module) -> str:
        """A linear layer whose outputs are the labels; where adapters replace it, each may have a number of its own."""
        labels, width = self.array(layer).shape
        count = "labels" if self._settable([f"{self.path(layer)}.weight"]) else labels
        y = self.op("MatMul", x, self.matrix(layer, [width, count]))
        return self.op("Add", y, self.bias(layer, [count]))

    def attention(
        self, x: str, query_key_value: Sequence[nn.Module], heads: int, mask: str = "", added: str = ""
    ) -> str:
        """Self-attention with its projections, three or one, but for that of its output.

        Args:
            mask: (B, T) int32.
            added: to the scores, (1, N, T, T) or (B, N, T, T).
        """
        layers, masks = query_key_value, [mask] if mask else []
        options = {"domain": MICROSOFT, "num_heads": heads, **({"mask_filter_value": MASKED} if mask else {})}
        if not added and not any(self.path(layer) in self.parameters.factors for layer in layers):
            return self.op("Attention", x, self.matrix(layers), self.bias(layers), *masks, **options)
        parts = [self._fresh(f"{self._name(layers)}.{part}") for part in ("query", "key", "value")]
        self.op("Split", self.linear(x, layers), outputs=parts, axis=-1, num_outputs=3)
        biases = [mask, added] if added else masks
        return self.op("MultiHeadAttention", *parts, self.bias(layers), *biases, **options)

    def activated(self, x: str, layer: nn.Module, activation: nn.Module) -> str:
        """A linear layer with its bias and activation; for a GELU the two are one operator."""
        if type(activation) is nn.GELU:
            inputs = self.linear(x, layer), self.bias(layer)
            return self.op("FastGelu" if activation.approximate == "tanh" else "BiasGelu", *inputs, domain=MICROSOFT)
        return self.activate(self.dense(x, layer), activation)

    def activate(self, x: str, activation: Any) -> str:
        """An activation of lora_core.models.layers, or a module with a method `onnx(graph, x)`."""
        if type(activation) is nn.GELU:
            return self.op("FastGelu" if activation.approximate == "tanh" else "Gelu", x, domain=MICROSOFT)
        if type(activation) is nn.ReLU:
            return self.op("Relu", x)
        if type(activation) is nn.SiLU:
            return self.op("Mul", x, self.op("Sigmoid", x))
        return activation.onnx(self, x)

    def add_and_normalise(
        self,
        x: str,
        layer: nn.Module,
        residual: str,
        norm: nn.Module,
        total: str = "",
        output_scale: nn.Module | None = None,
    ) -> str:
        """LayerNorm of ``residual`` + a linear layer of x.

        Args:
            total: names that sum, where it is needed too.
            output_scale: a module with a method `onnx(graph, x)` that scales what the layer gives.
        """
        scale, shift = self._scale_and_shift(norm)
        if output_scale is not None:
            scaling: Any = output_scale
            inputs = [scaling.onnx(self, self.dense(x, layer)), residual, scale, shift]
        else:
            inputs = [self.linear(x, layer), residual, scale, shift]
            inputs += [self.bias(layer)] if self._has_bias(layer) else []
        output = self._fresh(f"{self.path(norm)}.output")
        names = [output, "", "", total] if total else [output]
        return self.op("SkipLayerNormalization", *inputs, domain=MICROSOFT, outputs=names, epsilon=norm.eps)

    def normalise(self, x: str, norm: nn.Module) -> str:
        """LayerNorm alone; an nn.Identity in its place does nothing."""
        if isinstance(norm, nn.Identity):
            return x
        return self.op("LayerNormalization", x, *self._scale_and_shift(norm), axis=-1, epsilon=norm.eps)

    def embed(
        self,
        ids: str,
        words: nn.Module,
        places: Sequence[nn.Module],
        norm: nn.Module,
        position_ids: str = "",
        segment_ids: str = "",
    ) -> str:
        """The sum of embeddings, normalised, as one operator: (B, T) int32 -> (B, T, H).

        Args:
            words: their table.
            places: the tables of positions and, if there is one, of segments.
            position_ids: (B, T) int32; "" for 0 to T - 1.
            segment_ids: (B, T) int32; "": every token has the first segment.
        """
        if segment_ids:
            positions, segments = places
            inputs = [ids, segment_ids, *map(self.parameter, (words, positions, segments))]
            return self._embedded([*inputs, *self._scale_and_shift(norm)], position_ids, norm)
        value = self.array(places[0]) + sum(self.array(table)[0] for table in places[1:])
        name = f"{self.path(places[0]).rpartition('.')[0]}.places"
        table = self.derived(name, value, [(table, "weight") for table in places])
        inputs = [ids, "", self.parameter(words), table, "", *self._scale_and_shift(norm)]
        return self._embedded(inputs, position_ids, norm)

    def _embedded(self, inputs: list[str], position_ids: str, norm: nn.Module) -> str:
        if position_ids:
            inputs = [*inputs, "", position_ids]
        names = ["embeddings", "unused_mask_index"]
        return self.op("EmbedLayerNormalization", *inputs, domain=MICROSOFT, outputs=names, epsilon=norm.eps)

    def tokens(self, x: str, token: int | Sequence[int]) -> str:
        """One token (B, T, H) -> (B, H), or several -> (B, n, H)."""
        return self.op("Gather", x, self.constant(token), axis=1)

    def finish(self, output: str, shape: Sequence[str | int]) -> onnx.ModelProto:
        """The model whose output `logits` is the value ``output``."""
        self.op("Identity", output, outputs=["logits"])
        self.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape))
        return self.model

    def _update(self, layers: Layers) -> tuple[str, str] | None:
        """A (in, R) and B (R, out of all) of the updates beside ``layers``, each on its own part of R and of out."""
        factors = [self.parameters.factors.get(self.path(layer)) for layer in _each(layers)]
        widths = [len(self.array(layer)) for layer in _each(layers)]
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
        name, rank = self._name(layers), f"rank of {self._name(layers)}"
        return (
            self.weight(f"{name}.lora_A", a, True, [a.shape[0], rank]),
            self.weight(f"{name}.lora_B", b, True, [rank, b.shape[1]]),
        )

    def _scale_and_shift(self, norm: nn.Module) -> tuple[str, str]:
        """Weight and bias of a LayerNorm; the bias is zero for one that has none."""
        scale = self.parameter(norm)
        return scale, self.derived(f"{self.path(norm)}.bias", self._bias_or_zero(norm), [(norm, "bias")])

    def _bias_or_zero(self, layer: nn.Module) -> np.ndarray:
        """A layer's bias (out,)."""
        bias = self.parameters.tensors.get(f"{self.path(layer)}.bias")
        return np.zeros(len(self.array(layer)), np.float32) if bias is None else bias

    def _replaceable(self, modules: Layers) -> bool:
        """Whether adapters may change what one of these modules computes."""
        paths = [self.path(module) for module in _each(modules)]
        own = (f"{path}.{part}" for path in paths for part in ("weight", "bias"))
        return self._settable(own) or any(path in self.parameters.factors for path in paths)

    def _has_bias(self, layer: nn.Module) -> bool:
        """Whether a layer has a bias, or adapters may give it one."""
        path = f"{self.path(layer)}.bias"
        return path in self.parameters.tensors or self._settable([path])

    def _settable(self, paths: Iterable[str]) -> bool:
        """Whether adapters may replace one of these tensors."""
        return not self.parameters.settable.isdisjoint(paths)

    def _fresh(self, name: str) -> str:
        """A name for an output that no other has: a layer that runs several times gives several."""
        if name in self.outputs:
            name = f"{name}_{len(self.graph.node)}"
        self.outputs.add(name)
        return name

    def _name(self, layers: Layers) -> str:
        """The layer's path; that of the parent with `qkv` for query, key and value."""
        each = _each(layers)
        return self.path(each[0]) if len(each) == 1 else f"{self.path(each[0]).rpartition('.')[0]}.qkv"


def _each(layers: Layers) -> Sequence[nn.Module]:
    return [layers] if isinstance(layers, nn.Module) else layers
