"""Read ONNX files without taking the weights into memory: protobuf's wire format, a field at a time.

A message is a row of fields: a key (field number and wire type as a varint), then a varint, 4 or 8 bytes, or a length
and that many bytes (https://protobuf.dev/programming-guides/encoding/). Numbers of fields are those of onnx.proto.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

MODEL_GRAPH, MODEL_OPSET, MODEL_METADATA = 7, 8, 14
OPSET_DOMAIN, OPSET_VERSION = 1, 2
ENTRY_KEY, ENTRY_VALUE = 1, 2
GRAPH_NODE, GRAPH_INITIALIZER = 1, 5
NODE_OP_TYPE = 4
TENSOR_EXTERNAL = 13


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


def fields(file: BinaryIO, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in bytes ``start`` to ``end``; ValueError where it is not one."""
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
