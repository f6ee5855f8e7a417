"""Write a task model as one fused ONNX graph, adapters merged."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from lora_core.export.graph import OPSET, Graph
from lora_core.export.model_graph import model_graph
from lora_core.export.onnx_file import fused_counts, sha256_of
from lora_core.export.parameters import Parameters, merged_parameters
from lora_core.export.write import OWN, versions, write_model
from lora_core.models.layers import MultiHeadAttention
from lora_core.models.task_model import TaskModel


def export_onnx(
    model: TaskModel, path: str | Path, *, metadata: Mapping[str, str] | None = None, segments: bool = False
) -> Path:
    """Write ``model`` as it acts now, in fp32 with its adapters merged, and return the path.

    Inputs are `input_ids` and `attention_mask`, (B, T) int64 of any B and T up to max_tokens, or `pixel_values`
    (B, C, height, width) float32; the output is `logits`, as the model's. Dropout is left out, the model stays as it
    is, and the file is replaced in one step.

    Args:
        segments: `token_type_ids` (B, T) int64 are an input too, for models of pairs of texts.
        metadata: text by name, such as the tokenizer's JSON, stored in the file beside its own: labels (a JSON list),
            task, problem_type if the model has one, model_type, precision, layers, opset, for text max_tokens,
            vocab_size and pad_token_id, for images image_shape (channels, height, width), versions, and the sha256 of
            the model's weights and of the graph.

    Raises:
        ValueError: the model is of another kind, or its encoder or head has no graph; there is NaN or infinity after
            merging; or metadata has a reserved name.
    """
    check_model(model)
    parameters = merged_parameters(model)
    facts = {**describe(model), "weights_sha256": sha256_of(parameters.tensors)}
    if segments:
        facts["segments"] = str(model.base_model.segments)
    graph, logits = build_graph(model, parameters, segments)
    return write_graph(model, graph, logits, Path(path), facts, metadata)


def check_model(model: object) -> None:
    """Refuse what cannot be exported.

    Raises:
        ValueError: ``model`` is not a task model of this library.
    """
    if not isinstance(model, TaskModel):
        raise ValueError(
            f"cannot export a {type(model).__name__}; expected a task model of lora_core.models.load_pretrained, not "
            "a bare encoder, a wrapper such as DDP or a compiled model"
        )


def describe(model: TaskModel) -> dict[str, str]:
    """What the file says of the model."""
    stack = model.base_model.layer_stack()
    facts = {
        "labels": json.dumps(model.labels, ensure_ascii=False),
        "task": model.task,
        "model_type": model.config.model_type,
        "precision": "fp32",
        "layers": str(0 if stack is None else len(stack.sequence())),
        "opset": str(OPSET),
    }
    if model.head_kind != "default":
        facts["head"] = model.head_kind
    if model.problem_type is not None:
        facts["problem_type"] = model.problem_type
    if model.base_model.reads == "images":
        facts["image_shape"] = json.dumps([model.config.num_channels, *model.config.image_shape])
    else:
        for name in ("max_tokens", "vocab_size", "pad_token_id"):
            facts[name] = str(getattr(model.config, name))
    return facts | versions()


def build_graph(model: TaskModel, parameters: Parameters, segments: bool = False) -> tuple[Graph, str]:
    """The graph of the model with these parameters, and its logits."""
    graph = Graph(model, parameters)
    return graph, model_graph(graph, model, segments)


def write_graph(
    model: TaskModel,
    graph: Graph,
    logits: str,
    path: Path,
    facts: Mapping[str, str],
    metadata: Mapping[str, str] | None,
) -> Path:
    """Write the graph and check that every layer is fused, but for attention that is the encoder's own."""
    metadata = metadata or {}
    reserved = sorted(set(metadata) & {*facts, *OWN})
    if reserved:
        raise ValueError(f"the metadata {reserved} is the file's own; use other names")
    count = "labels" if graph.settable else len(model.labels)
    rows = "length" if model.head_kind != "crf" else "length and transitions"
    dims = ["batch", rows, count] if model.task == "token-classification" else ["batch", count]
    write_model(graph.finish(logits, dims), path, {**facts, **metadata})
    found = fused_counts(path)
    stack = model.base_model.layer_stack()
    assert stack is not None
    parts = [layer.parts() for layer in stack.sequence()]
    fused = {
        "attention": sum(type(each.attention).onnx is MultiHeadAttention.onnx for each in parts),
        "skip_layer_norm": 2 * len(parts),
        "bias_gelu": sum(type(each.activation) is nn.GELU for each in parts),
    }
    assert all(found[name] >= count for name, count in fused.items()), (found, fused)
    return path
