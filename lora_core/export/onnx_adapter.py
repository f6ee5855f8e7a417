"""Many adapters on one ONNX base: one session in memory, an adapter chosen for each request.

The base is exported once; the updates of its adapted layers, the head, and whatever else an adapter owns are inputs
with defaults. An adapter's file holds values for those inputs in onnxruntime's own format, and in one of them, in
bytes, what it says of itself.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnxruntime import AdapterFormat, OrtValue

from lora_core.export.export import build_graph, check_model, describe, write_graph
from lora_core.export.onnx_file import FORMAT, sha256_of
from lora_core.export.parameters import adapter_parameters, base_parameters, base_sha256
from lora_core.export.session import ADAPTER_FACTS
from lora_core.files import replacing
from lora_core.models.task_model import TaskModel

ADAPTER_VERSION = 1


def export_onnx_base(model: TaskModel, path: str | Path, *, metadata: Mapping[str, str] | None = None) -> Path:
    """Write the base of ``model`` once for all its adapters, in fp32, and return the path.

    Inputs, output and metadata are those of `export_onnx`. Without an adapter the file computes the base model. Every
    layer that some adapter of ``model`` adapts, and every tensor that one owns (head, biases), can be set by adapters
    of any rank and any number of labels; `OnnxModel.load_adapter` refuses those that need more.

    Raises:
        ValueError: the model has no adapters, or one that is not a plain update of linear layers (DoRA, embeddings):
            export that one merged.
    """
    check_model(model)
    parameters = base_parameters(model)
    facts = {**describe(model), "base_sha256": base_sha256(model)}
    graph, logits = build_graph(model, parameters)
    graph.weight(ADAPTER_FACTS, np.zeros(1, np.uint8), settable=True, dims=["facts"])
    return write_graph(model, graph, logits, Path(path), facts, metadata)


def save_onnx_adapter(
    model: TaskModel, adapter_name: str, path: str | Path, *, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write one adapter of ``model`` for a base of `export_onnx_base`, and return the path.

    ``model`` may be another object than the base was exported from, if only its encoder's frozen weights are the same.
    Its labels become the adapter's.

    Raises:
        ValueError: as `export_onnx_base`, or the adapter is unknown.
    """
    check_model(model)
    parameters = adapter_parameters(model, adapter_name)
    graph, _ = build_graph(model, parameters)
    values = graph.settable
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise ValueError(f"the adapter was not saved: {name} holds NaN or infinity")
    facts = {
        "labels": list(model.labels),
        "task": model.task,
        "problem_type": model.problem_type,
        "base_sha256": base_sha256(model),
        "sha256": sha256_of(values),
        "metadata": dict(metadata or {}),
    }
    values = values | {ADAPTER_FACTS: np.frombuffer(json.dumps(facts).encode(), np.uint8)}
    file = AdapterFormat()
    file.set_adapter_version(ADAPTER_VERSION)
    file.set_model_version(int(FORMAT))
    file.set_parameters({name: OrtValue.ortvalue_from_numpy(value) for name, value in values.items()})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        file.export_adapter(str(temporary))  # pyright: ignore[reportArgumentType] (it takes no Path)
    return path
