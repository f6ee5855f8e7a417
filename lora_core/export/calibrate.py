"""The ranges of activations on real inputs, by which static int8 sets its scales.

Shapes: B texts or images, T tokens (padded).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data
from onnxruntime import OrtValue
from torch import Tensor

from lora_core.export.onnx_file import read_file

Range = tuple[float, float]
"""The smallest and the largest value."""
INTEGERS = ("input_ids", "attention_mask", "token_type_ids")


def activation_ranges(
    path: Path, activations: Sequence[str], batches: Iterable[Mapping[str, Tensor]]
) -> tuple[dict[str, Range], int]:
    """Run the fp32 file over the batches and return the range of each named activation, and how many inputs there were.

    Padding is left out: texts run without it, those of one length together. Only the ranges leave the session, for
    the operators that find them are added to the graph, in memory.

    Raises:
        ValueError: a batch is not this model's, or pads otherwise than behind its texts; there is no input at all; or
            the graph gives NaN or infinity.
    """
    session, _weights = _session(path, activations)
    names = [value.name for value in session.get_inputs()]
    outputs = [name for activation in activations for name in _ends(activation)]
    ranges = np.tile([np.inf, -np.inf], (len(activations), 1))
    inputs = 0
    for batch in batches:
        if set(names) - {*batch, "attention_mask"} or set(batch) - set(names):
            raise ValueError(f"calibration gives {', '.join(batch) or 'nothing'}; {path} takes {', '.join(names)}")
        for part in _without_padding({name: _array(name, tensor) for name, tensor in batch.items()}):
            try:
                logits, *found = map(np.asarray, session.run(["logits", *outputs], part))
            except Exception as error:  # onnxruntime's errors have no common class but this
                raise ValueError(f"calibration: {path} cannot run on one of the batches ({error})") from error
            ends = np.reshape(found, (-1, 2))
            if not (np.isfinite(logits).all() and np.isfinite(ends).all()):
                raise ValueError(f"calibration: {path} gives NaN or infinity; export a model whose logits are finite")
            ranges = np.stack([np.minimum(ranges[:, 0], ends[:, 0]), np.maximum(ranges[:, 1], ends[:, 1])], axis=1)
            inputs += len(part[names[0]])
    if not inputs:
        raise ValueError("calibration holds no input; give batches of texts or images like those that will be served")
    return {name: (float(low), float(high)) for name, (low, high) in zip(activations, ranges, strict=True)}, inputs


def _ends(activation: str) -> tuple[str, str]:
    """The names of the outputs that are its smallest and its largest value."""
    return f"{activation}_lowest", f"{activation}_highest"


def _session(path: Path, activations: Sequence[str]) -> tuple[onnxruntime.InferenceSession, list[OrtValue]]:
    """The file's graph with the ends of the activations as further outputs; and what it borrows, to be kept with it."""
    read_file(path)
    model = onnx.load(str(path), load_external_data=False)
    for name in activations:
        for kind, end in zip(("ReduceMin", "ReduceMax"), _ends(name), strict=True):
            model.graph.node.append(helper.make_node(kind, [name], [end], name=end, keepdims=0))
            model.graph.output.append(helper.make_tensor_value_info(end, TensorProto.FLOAT, []))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    outside = [tensor for tensor in model.graph.initializer if uses_external_data(tensor)]
    weights = [OrtValue.ortvalue_from_numpy(_external(tensor, path.parent)) for tensor in outside]
    options.add_external_initializers([tensor.name for tensor in outside], weights)
    content = model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]), weights


def _external(tensor: TensorProto, folder: Path) -> np.ndarray:
    """A weight from the file beside the graph; the tensor itself keeps pointing there."""
    whole = TensorProto()
    whole.CopyFrom(tensor)
    return numpy_helper.to_array(whole, str(folder))


def _array(name: str, tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy().astype(np.int64 if name in INTEGERS else np.float32)


def _without_padding(batch: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """The real tokens of a batch of texts, those of one length together; images as they are."""
    if "input_ids" not in batch:
        yield dict(batch)
        return
    mask = batch.get("attention_mask", np.ones_like(batch["input_ids"])) != 0  # (B, T)
    if (mask[:, 1:] > mask[:, :-1]).any():
        raise ValueError("calibration pads before or between the tokens of a text; pad behind them")
    lengths = mask.sum(1)
    for length in np.unique(lengths[lengths > 0]):
        rows = lengths == length
        part = {name: array[rows, :length] for name, array in batch.items()}
        yield {**part, "attention_mask": np.ones_like(part["input_ids"])}
