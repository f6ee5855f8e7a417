"""Write a task model as one fused ONNX graph, adapters merged."""

import json
from collections.abc import Mapping
from pathlib import Path

from lora_core.export.graph import BIASED_ACTIVATIONS, OPSET, Graph
from lora_core.export.image_graph import image_graph
from lora_core.export.onnx_file import fused_counts
from lora_core.export.parameters import Parameters, merged_parameters, sha256_of
from lora_core.export.text_graph import NO_GRAPH, text_graph
from lora_core.export.write import OWN, versions, write_model
from lora_core.models.build import ENCODERS
from lora_core.models.heads import HEADS, TASK_MODELS
from lora_core.models.recurrent import LSTMModel
from lora_core.models.task_model import TaskModel


def export_onnx(model: TaskModel, path: str | Path, *, metadata: Mapping[str, str] | None = None) -> Path:
    """Write ``model`` as it acts now, in fp32 with its adapters merged, and return the path.

    Inputs are `input_ids` and `attention_mask`, (B, T) int64 of any B and T up to max_tokens, or `pixel_values`
    (B, C, height, width) float32; the output is `logits`, as the model's. Dropout is left out, the model stays as it
    is, and the file is replaced in one step.

    ``metadata`` (text by name, such as the tokenizer's JSON) is stored in the file beside its own: labels (a JSON
    list), task, model_type, precision, layers, opset, for text max_tokens, vocab_size and pad_token_id, for images
    image_shape (channels, height, width), versions, and the sha256 of the model's weights and of the graph.

    Raises ValueError for a model of another kind, NaN or infinity after merging, or metadata of a reserved name.
    """
    check_model(model)
    parameters = merged_parameters(model)
    facts = {**describe(model), "weights_sha256": sha256_of(parameters.tensors)}
    graph, logits = build_graph(model, parameters)
    return write_graph(model, graph, logits, Path(path), facts, metadata)


def check_model(model: object) -> None:
    """ValueError unless ``model`` is one that can be exported."""
    if not isinstance(model, (*TASK_MODELS.values(), *HEADS.values())):
        raise ValueError(
            f"cannot export a {type(model).__name__}; expected a task model of lora_core.models.load_pretrained, not "
            "a bare encoder, a wrapper such as DDP or a compiled model"
        )
    if isinstance(model.base_model, LSTMModel) or model.head in NO_GRAPH:
        what = f"the head {model.head!r}" if model.head in NO_GRAPH else f"{model.config.model_type} models"
        raise ValueError(f"{what} cannot be exported as ONNX; serve the run's folder with PyTorch, or train a "
                         "transformer with another head")  # fmt: skip


def describe(model: TaskModel) -> dict[str, str]:
    """What the file says of the model."""
    model_type = next(name for name, encoder in ENCODERS.items() if type(model.base_model) is encoder)
    facts = {
        "labels": json.dumps(model.labels, ensure_ascii=False),
        "task": model.task,
        "model_type": model_type,
        "precision": "fp32",
        "layers": str(model.config.num_hidden_layers),
        "opset": str(OPSET),
    }
    if model.task == "image-classification":
        facts["image_shape"] = json.dumps([model.config.num_channels, *model.config.image_shape])
    else:
        for name in ("max_tokens", "vocab_size", "pad_token_id"):
            facts[name] = str(getattr(model.config, name))
    return facts | versions()


def build_graph(model: TaskModel, parameters: Parameters) -> tuple[Graph, str]:
    """The graph of the model with other parameters, and its logits."""
    graph = Graph(parameters)
    return graph, (image_graph if model.task == "image-classification" else text_graph)(graph, model)


def write_graph(
    model: TaskModel,
    graph: Graph,
    logits: str,
    path: Path,
    facts: Mapping[str, str],
    metadata: Mapping[str, str] | None,
) -> Path:
    """Write the graph and check that every layer is fused."""
    metadata = metadata or {}
    reserved = sorted(set(metadata) & {*facts, *OWN})
    if reserved:
        raise ValueError(f"the metadata {reserved} is the file's own; use other names")
    count = "labels" if graph.settable else len(model.labels)
    dims = ["batch", "length", count] if model.task == "token-classification" else ["batch", count]
    write_model(graph.finish(logits, dims), path, {**facts, **metadata})
    found = fused_counts(path)
    layers = model.config.num_hidden_layers
    gelu = getattr(model.config, model.config.activation_field) in BIASED_ACTIVATIONS
    fused = {"attention": layers, "skip_layer_norm": 2 * layers, "bias_gelu": layers if gelu else 0}
    assert found.items() >= fused.items(), (found, fused)
    return path
