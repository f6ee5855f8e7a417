"""ONNX files of this library: what they say of themselves, and the checks before one is run.

A file is the bytes of the model, then its metadata. The metadata holds a digest of those bytes and of the file with
external weights, and one of itself, so damage and changes are found before anything is computed, at the cost of
reading them once.

The file is read without taking the weights into memory, in protobuf's wire format, a field at a time (`fields`). A
message is a row of fields: a key (field number and wire type as a varint), then a varint, 4 or 8 bytes, or a length and
that many bytes (https://protobuf.dev/programming-guides/encoding/). Numbers of fields are those of onnx.proto.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lora_core.files import BLOCK, file_inside, json_object, regular_file, sha256_of_file
from lora_core.models.labels import check_labels, problem_type_of_config
from lora_core.patterns import shown

FORMAT = "1"
"""Version of the layout of these files and of their metadata."""
OPSETS = {"": 18, "com.microsoft": 1}
EXTERNAL_SUFFIX = ".data"
"""Weights beyond what one protobuf file can hold lie in the model's file name + this."""
METADATA_DIGEST = "metadata_sha256"
AGAIN = "export the model again"

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

MODEL_GRAPH, MODEL_OPSET, MODEL_METADATA = 7, 8, 14
OPSET_DOMAIN, OPSET_VERSION = 1, 2
ENTRY_KEY, ENTRY_VALUE = 1, 2
GRAPH_NODE, GRAPH_INITIALIZER = 1, 5
NODE_OP_TYPE = 4
TENSOR_EXTERNAL = 13


@dataclass(frozen=True)
class OnnxFile:
    """A checked file."""

    path: Path
    metadata: dict[str, str]
    op_types: Counter[str]
    """How often each operator stands in the graph."""


@dataclass(frozen=True)
class Field:
    """One field of a message in a file."""

    number: int
    start: int
    """Where its key begins."""
    content: int
    """Where its value begins."""
    end: int
    value: int | None
    """The value of a varint; None for other wire types."""


def read_metadata(path: str | Path) -> dict[str, str]:
    """What the file says of itself, text by name; it is checked as before a run.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: one is damaged, tampered with, from elsewhere or of another version.
    """
    return read_file(path).metadata


def fused_counts(path: str | Path) -> dict[str, int]:
    """How often each kind of fused operator stands in the file, next to the number of layers and of all nodes.

    In fp32 every layer has one attention and, normalised after or before each half, two skip_layer_norm; one
    bias_gelu if its activation is a GELU. In int8 (see quantize.py) attention is written in parts, of which two are
    FusedMatMul, skip_layer_norm as layer_norm, and bias_gelu as gelu, for the product before it adds the bias.
    """
    file = read_file(path)
    count = file.op_types
    whole = sum(count[name] for name in ("Attention", "QAttention", "MultiHeadAttention"))
    return {
        "layers": int(file.metadata["layers"]),
        "attention": whole or count["FusedMatMul"] // 2,
        "skip_layer_norm": count["SkipLayerNormalization"],
        "layer_norm": count["LayerNormalization"],
        "bias_gelu": count["BiasGelu"] + count["FastGelu"],
        "gelu": count["Gelu"] + count["FastGelu"],
        "embedding": count["EmbedLayerNormalization"],
        "int8": count["QAttention"] + count["DynamicQuantizeMatMul"] + count["MatMulIntegerToFloat"],
        "nodes": count.total(),
    }


def read_file(path: str | Path) -> OnnxFile:
    """Check the file and the one with its external weights.

    Raises:
        FileNotFoundError: as `read_metadata`.
        ValueError: as `read_metadata`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; {AGAIN}, or correct the path")
    with regular_file(path).open("rb") as file:
        try:
            size = path.stat().st_size
            parts = list(fields(file, 0, size))
            metadata = dict(entry(file, part) for part in parts if part.number == MODEL_METADATA)
            opsets = dict(_opset(file, part) for part in parts if part.number == MODEL_OPSET)
            graphs = [part for part in parts if part.number == MODEL_GRAPH]
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a whole ONNX file ({error}); copy it again, or {AGAIN}") from error
        if len(graphs) != 1 or not opsets:
            raise ValueError(f"{path} is not an ONNX file; {AGAIN}")
        if "lora_core_format" not in metadata:
            raise ValueError(f"{path} was not written by lora_core: its metadata has no lora_core_format; {AGAIN} here")
        if metadata["lora_core_format"] != FORMAT:
            raise ValueError(
                f"{path} has lora_core_format {metadata['lora_core_format']!r}, this version reads {FORMAT!r}; "
                f"{AGAIN} with this version"
            )
        if opsets != OPSETS:
            raise ValueError(f"{path} uses the operator sets {opsets}, expected {OPSETS}; {AGAIN}")
        body = next(part.start for part in parts if part.number == MODEL_METADATA)
        if _sha256(file, body) != metadata.get("graph_sha256"):
            raise ValueError(
                f"{path} was changed after it was written: graph or weights do not have the sha256 in its metadata; "
                f"copy it again, or {AGAIN}"
            )
        if metadata_sha256(metadata) != metadata.get(METADATA_DIGEST):
            raise ValueError(
                f"{path} was changed after it was written: its metadata (labels, tokenizer, ...) does not have the "
                f"sha256 that it names; copy it again, or {AGAIN}"
            )
        try:
            nodes, external = _graph(file, graphs[0])
        except ValueError as error:
            raise ValueError(f"{path} holds a graph that is none ({error}); copy it again, or {AGAIN}") from error
    try:
        _check_facts(metadata)
    except ValueError as error:
        raise ValueError(f"{path}: in its metadata {error}; {AGAIN}") from error
    _check_external(path, metadata, external)
    return OnnxFile(path, metadata, nodes)


def _check_facts(metadata: Mapping[str, str]) -> None:
    """Check what every file says of its model, for a digest only shows that nobody changed it since.

    Raises:
        ValueError: something is missing or malformed.
    """
    numbers = {"layers": 0, "segments": 1, "max_tokens": 1, "vocab_size": 1, "pad_token_id": 0}
    images = "image_shape" in metadata
    needed = ["task", "model_type", "precision", "labels", "layers"]
    needed += [] if images else ["max_tokens", "vocab_size", "pad_token_id"]
    for name in needed:
        if not metadata.get(name):
            raise ValueError(f"{name} is missing")
    for name, least in numbers.items():
        value = metadata.get(name, str(least))
        if not (value.isascii() and value.isdecimal() and len(value) < 10 and int(value) >= least):
            raise ValueError(f"{name} is {shown(value)}, expected a whole number of at least {least}")
    check_labels(_json_list(metadata, "labels"))
    shape = _json_list(metadata, "image_shape") if images else [1, 1, 1]
    if len(shape) != 3 or not all(type(size) is int and 0 < size < 1 << 20 for size in shape):
        raise ValueError(f"image_shape is {shown(shape)}, expected channels, height and width")
    problem_type_of_config(metadata)


def _json_list(metadata: Mapping[str, str], name: str) -> list[Any]:
    try:
        value = json.loads(metadata[name])
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, list):
        raise ValueError(f"{name} is {shown(metadata[name])}, expected a list in JSON")
    return value


def metadata_sha256(metadata: Mapping[str, str]) -> str:
    """Digest of all that a file says of itself, but for this digest."""
    entries = sorted((name, text) for name, text in metadata.items() if name != METADATA_DIGEST)
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _opset(file: BinaryIO, part: Field) -> tuple[str, int]:
    domain, version = "", 0
    for field in fields(file, part.content, part.end):
        if field.number == OPSET_DOMAIN:
            domain = text(file, field)
        elif field.number == OPSET_VERSION:
            version = field.value or 0
    return domain, version


def _graph(file: BinaryIO, graph: Field) -> tuple[Counter[str], set[str]]:
    """Operators of the graph's nodes, and the files that its weights name."""
    nodes: Counter[str] = Counter()
    locations = set()
    for part in fields(file, graph.content, graph.end):
        if part.number == GRAPH_NODE:
            nodes.update(
                text(file, field) for field in fields(file, part.content, part.end) if field.number == NODE_OP_TYPE
            )
        elif part.number == GRAPH_INITIALIZER:
            entries = (
                entry(file, field) for field in fields(file, part.content, part.end) if field.number == TENSOR_EXTERNAL
            )
            locations.update(value for key, value in entries if key == "location")
    return nodes, locations


def _check_external(path: Path, metadata: dict[str, str], locations: set[str]) -> None:
    """The one file that may hold weights lies beside the model, whole and unchanged."""
    try:
        recorded = json_object(metadata.get("external_data", "{}"))
        sizes = {name: (int(size), str(sha256)) for name, (size, sha256) in recorded.items()}
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}: external_data in its metadata is malformed ({error}); {AGAIN}") from error
    if not locations <= set(recorded) or len(recorded) > 1:
        raise ValueError(f"{path} names weights in {sorted(locations)}, its metadata in {sorted(recorded)}; {AGAIN}")
    for name, (size, sha256) in sizes.items():
        try:
            data = file_inside(path.parent, name)
        except FileNotFoundError as error:
            needed = path.parent / name
            raise FileNotFoundError(
                f"{path} needs {needed}, which does not exist; copy both files into one folder"
            ) from error
        except ValueError as error:
            raise ValueError(
                f"{path} names weights in {shown(name)}, which is not a file of its own folder ({error}); {AGAIN}"
            ) from error
        if data.stat().st_size != size:
            raise ValueError(f"{data} has {data.stat().st_size} bytes, expected {size}; copy it again, or {AGAIN}")
        if sha256_of_file(data) != sha256:
            raise ValueError(f"{data} was changed after it was written; copy it again, or {AGAIN}")


def _sha256(file: BinaryIO, end: int) -> str:
    """Digest of the first ``end`` bytes."""
    file.seek(0)
    digest = hashlib.sha256()
    while end and (block := file.read(min(end, BLOCK))):
        end -= len(block)
        digest.update(block)
    return digest.hexdigest()


def fields(file: BinaryIO, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in bytes ``start`` to ``end``.

    Raises:
        ValueError: they are not a message.
    """
    at = start
    while at < end:
        file.seek(at)
        head = file.read(min(20, end - at))
        key, used = _varint(head, 0)
        number, wire_type = key >> 3, key & 7
        if wire_type == VARINT:
            value, used = _varint(head, used)
            field = Field(number, at, at + used, at + used, value)
        elif wire_type == LENGTH:
            length, used = _varint(head, used)
            field = Field(number, at, at + used, at + used + length, None)
        elif wire_type in (FIXED32, FIXED64):
            field = Field(number, at, at + used, at + used + (4 if wire_type == FIXED32 else 8), None)
        else:
            raise ValueError(f"wire type {wire_type} at byte {at}")
        if number == 0 or field.end > end:
            raise ValueError(f"field {number} at byte {at} ends at byte {field.end} of {end}")
        yield field
        at = field.end


def text(file: BinaryIO, field: Field) -> str:
    """The string that a field holds."""
    file.seek(field.content)
    return file.read(field.end - field.content).decode("utf-8")


def entry(file: BinaryIO, field: Field) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto."""
    found = {part.number: text(file, part) for part in fields(file, field.content, field.end)}
    return found.get(ENTRY_KEY, ""), found.get(ENTRY_VALUE, "")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at ``at``, and where it ends."""
    value = 0
    for count, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, at + count + 1
    raise ValueError("a number does not end")


def sha256_of(tensors: Mapping[str, np.ndarray]) -> str:
    """Digest of names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape} ".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()
