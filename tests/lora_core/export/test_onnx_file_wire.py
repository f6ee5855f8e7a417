import io
from collections import Counter

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_core.export import export_onnx
from lora_core.export import onnx_file as wire
from lora_core.export.onnx_file import read_file


def test_it_reads_what_onnx_reads(make, tmp_path):
    path = export_onnx(make("roberta", "text-classification"), tmp_path / "model.onnx", metadata={"größe": "é" * 300})
    model = onnx.load(str(path))
    file = read_file(path)
    assert file.metadata == {entry.key: entry.value for entry in model.metadata_props}
    assert file.op_types == Counter(node.op_type for node in model.graph.node)


@given(st.dictionaries(st.text(max_size=200), st.text(max_size=200)), st.integers(0, 2**63 - 1), st.booleans())
def test_fields_of_any_message(entries, number, graph):
    model = onnx.ModelProto(ir_version=number, graph=onnx.GraphProto(name="g") if graph else None)
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=value)
    data = model.SerializeToString()
    file = io.BytesIO(data)
    parts = list(wire.fields(file, 0, len(data)))
    assert [part.value for part in parts if part.number == 1] == [number]
    assert dict(wire.entry(file, part) for part in parts if part.number == wire.MODEL_METADATA) == entries
    assert [part.end for part in parts[:-1]] == [part.start for part in parts[1:]]


@given(st.binary(max_size=40))
def test_anything_else_is_an_error_or_a_row_of_fields(data):
    try:
        parts = list(wire.fields(io.BytesIO(data), 0, len(data)))
    except ValueError:
        return
    assert sum(part.end - part.start for part in parts) == len(data)


def test_a_message_cut_anywhere_between_its_fields_ends(make):
    data = onnx.ModelProto(producer_name="x" * 30).SerializeToString()
    for end in range(1, len(data)):
        with pytest.raises(ValueError, match=r"ends at byte|does not end"):
            list(wire.fields(io.BytesIO(data), 0, end))
