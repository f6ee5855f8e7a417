import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import nn
from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

from lora_core.export.graph import Graph
from lora_core.export.parameters import Parameters
from lora_core.models.rotary import onnx_rotate, onnx_rotation, rotate, rotation


def by_transformers(x, tokens, size, theta):
    """Queries (B, T, H) turned by transformers' function and its formula of the angles."""
    angles = torch.arange(tokens)[:, None] / theta ** (torch.arange(0, size, 2) / size)
    twice = torch.cat((angles, angles), -1)[None]
    heads = x.unflatten(-1, (-1, size)).transpose(1, 2)
    turned, _ = apply_rotary_pos_emb(heads, heads, twice.cos(), twice.sin())
    return turned.transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("tokens", "heads", "size", "theta"), [(1, 1, 2, 10.0), (7, 3, 8, 10_000.0), (300, 2, 64, 1.6e5)]
)
def test_rotation_and_gradient_equal_transformers(tokens, heads, size, theta):
    torch.manual_seed(0)
    x, weights = torch.randn(2, 2, tokens, heads * size)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = rotate(ours, rotation(tokens, size, theta)), by_transformers(theirs, tokens, size, theta)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-4)


def test_products_depend_on_the_distance_alone():
    query, key = torch.randn(2, 1, 1, 8)
    by = rotation(40, 8, 100.0)
    queries, keys = rotate(query.expand(1, 40, 8), by)[0], rotate(key.expand(1, 40, 8), by)[0]
    scores = queries @ keys.T
    for distance in (0, 1, 17):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_turned_in_float32(dtype):
    x = torch.randn(1, 500, 8).to(dtype)
    by = rotation(500, 8, 10_000.0)
    found = rotate(x, by)
    assert found.dtype == dtype
    assert torch.equal(found, rotate(x.float(), by).to(dtype))


@pytest.mark.parametrize("tokens", [1, 2, 9, 700])
def test_the_graph_equals_the_rotation(tokens):
    graph = Graph(nn.Module(), Parameters({}))
    x = graph.input("x", TensorProto.FLOAT, ["batch", "length", 16])
    length = graph.op("Squeeze", graph.op("Shape", x, start=1, end=2), graph.constant([0]))
    by = onnx_rotation(graph, length, 8, 10_000.0)
    model = graph.finish(onnx_rotate(graph, x, by), ["batch", "length", 16])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = torch.randn(2, tokens, 16)
    found = session.run(None, {"x": values.numpy()})[0]
    assert np.abs(found - rotate(values, rotation(tokens, 8, 10_000.0)).numpy()).max() < 1e-5
