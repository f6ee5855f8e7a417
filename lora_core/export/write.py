"""Write ONNX files of this library, each in one step: a reader sees the old file or the new one, never a part."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx.external_data_helper import load_external_data_for_model

import lora_core
from lora_core.export.onnx_file import (
    EXTERNAL_SUFFIX,
    FORMAT,
    METADATA_DIGEST,
    MODEL_METADATA,
    fields,
    metadata_sha256,
    read_file,
)
from lora_core.files import replacing

EXTERNAL_OVER = 2_000_000_000
"""Bytes of weights from which they go to a file of their own; a protobuf file ends at 2 GiB."""
SMALL = 1024
"""Bytes up to which a weight stays in the graph all the same."""

OWN = ("lora_core_format", "graph_sha256", "external_data", METADATA_DIGEST)
"""Names in the metadata that the file's own checks need."""


def write_model(model: onnx.ModelProto, path: Path, metadata: Mapping[str, str]) -> Path:
    """Write ``model`` with ``metadata`` to ``path``, the weights beside it if they are many. ``model`` is used up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = path.with_name(path.name + EXTERNAL_SUFFIX)
    external = {}
    total = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if total > EXTERNAL_OVER:
        external = {data.name: _write_weights(model, data)}
    body = model.SerializeToString(deterministic=True)
    facts = {**metadata, "lora_core_format": FORMAT, "graph_sha256": hashlib.sha256(body).hexdigest()}
    if external:
        facts["external_data"] = json.dumps(external)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(body)
        file.write(_entries(facts))
    if not external:
        data.unlink(missing_ok=True)  # of an earlier, larger export
    return path


def read_model(path: Path) -> onnx.ModelProto:
    """The checked file with all its weights in memory."""
    read_file(path)
    model = onnx.load(str(path), load_external_data=False)
    load_external_data_for_model(model, str(path.parent))
    del model.metadata_props[:]
    return model


def update_metadata(path: str | Path, values: Mapping[str, str]) -> None:
    """Add ``values`` (text by name) to what the file says of itself, or replace them.

    Raises:
        FileNotFoundError: as `read_metadata`.
        ValueError: as `read_metadata`, or the file's own checks need one of the names.
    """
    path = Path(path)
    old = read_file(path).metadata
    own = sorted(set(values) & set(OWN))
    if own:
        raise ValueError(f"the metadata {own} belongs to the file's own checks; use other names")
    with path.open("rb") as source:
        parts = fields(source, 0, path.stat().st_size)
        body = next(part.start for part in parts if part.number == MODEL_METADATA)
        source.seek(0)
        with replacing(path) as temporary, temporary.open("wb") as file:
            while body:
                body -= file.write(source.read(min(body, 1 << 20)))
            file.write(_entries({**old, **values}))


def move(path: Path, folder: Path) -> Path:
    """Give the file and its external weights, under their names, to another folder of the same disk."""
    data = path.with_name(path.name + EXTERNAL_SUFFIX)
    if data.is_file():
        os.replace(data, folder / data.name)
    os.replace(path, folder / path.name)
    return folder / path.name


def remove(path: Path) -> None:
    """Delete the file and its external weights."""
    path.unlink(missing_ok=True)
    path.with_name(path.name + EXTERNAL_SUFFIX).unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Versions of what wrote the file."""
    import onnxruntime
    import torch

    return {
        "lora_core_version": lora_core.__version__,
        "torch_version": str(torch.__version__),
        "onnx_version": onnx.__version__,
        "onnxruntime_version": onnxruntime.__version__,
    }


def _write_weights(model: onnx.ModelProto, data: Path) -> tuple[int, str]:
    """Move the weights to the file ``data``, each at a multiple of 4096 bytes; returns its size and digest."""
    digest = hashlib.sha256()
    size = 0
    with replacing(data) as temporary, temporary.open("wb") as file:
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) <= SMALL:
                continue
            gap = bytes(-size % 4096)
            for part in (gap, tensor.raw_data):
                digest.update(part)
                file.write(part)
            size += len(gap)
            place = {"location": data.name, "offset": str(size), "length": str(len(tensor.raw_data))}
            size += len(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in place.items():
                tensor.external_data.add(key=key, value=value)
    return size, digest.hexdigest()


def _entries(metadata: Mapping[str, str]) -> bytes:
    """Metadata with its digest, as it stands in a model's file; it may follow the other fields' bytes."""
    model = onnx.ModelProto()
    for key, value in {**metadata, METADATA_DIGEST: metadata_sha256(metadata)}.items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()
