import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from lora_core.export import OnnxModel, export_onnx, fused_counts, quantize_onnx, read_metadata
from lora_core.export.quantize import quantised


def largest_term(values, axis):
    """The largest of the values along an axis, and of the sums of neighbours, which CPUs before VNNI form."""
    values = values.astype(int)
    even = values.shape[axis] // 2 * 2
    pairs = values.take(range(0, even, 2), axis) + values.take(range(1, even, 2), axis)
    return np.maximum(np.abs(values).max(axis), np.abs(pairs).max(axis, initial=0))


CASES = [
    ("bert", "token-classification"),
    ("bert", "text-classification"),
    ("roberta", "token-classification"),
    ("distilbert", "text-classification"),
    ("vit", "image-classification"),
]


@pytest.mark.parametrize(("family", "task"), CASES)
def test_int8_is_close_and_every_layer_is_int8(make, batch, tmp_path, family, task):
    model = make(family, task)
    source = export_onnx(model, tmp_path / "model.onnx", metadata={"tokenizer.json": "{}"})
    path = quantize_onnx(source, tmp_path / "model.int8.onnx")
    counts = fused_counts(path)
    assert (counts["attention"], counts["gelu"], counts["int8"]) == (2, 2, 8)
    assert (counts["skip_layer_norm"], counts["bias_gelu"], counts["embedding"]) == (0, 0, 0)
    assert counts["layer_norm"] == 5
    onnx_model = OnnxModel(path)
    errors, scale = [], []
    for lengths in ((9, 4, 1), (1,), (16,), (16, 1, 8, 3, 3)):
        inputs = batch(model, lengths)
        with torch.no_grad():
            logits = model(**inputs)
        errors.append((onnx_model(**inputs) - logits).flatten())
        scale.append(logits.flatten())
    assert torch.cat(errors).square().mean().sqrt() < 0.06 * torch.cat(scale).std()
    fp32, int8 = read_metadata(source), read_metadata(path)
    assert int8["precision"] == "int8"
    assert int8["fp32_sha256"] == fp32["graph_sha256"] != int8["graph_sha256"]
    same = ("labels", "task", "model_type", "weights_sha256", "tokenizer.json")
    assert {name: int8[name] for name in same} == {name: fp32[name] for name in same}


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert", "dinov2"])
def test_products_add_their_biases(make, tmp_path, family):
    """Nothing but a product adds the bias of an encoder's layer; one without a bias adds none."""
    model = make(family, "image-classification" if family == "dinov2" else "text-classification")
    path = quantize_onnx(export_onnx(model, tmp_path / "model.onnx"), tmp_path / "int8.onnx")
    nodes = onnx.load(str(path)).graph.node
    products = {node.input[1]: node for node in nodes if node.op_type == "DynamicQuantizeMatMul"}
    for weight, node in products.items():
        bias = f"{weight.removesuffix('.weight.int8')}.bias"
        added = [each.op_type for each in nodes if bias in each.input]
        assert added in ([], ["DynamicQuantizeMatMul"])
        assert (bias in node.input) == bool(added)
    assert any(len(node.input) > 4 for node in products.values()) == (family != "modernbert")


def test_size_of_a_model_whose_embeddings_are_half_of_it(make, tmp_path):
    model = make("bert", "token-classification", vocab_size=3000, hidden_size=192, intermediate_size=768)
    source = export_onnx(model, tmp_path / "model.onnx")
    path = quantize_onnx(source, tmp_path / "model.int8.onnx")
    assert path.stat().st_size < 0.27 * source.stat().st_size


def test_word_embeddings_that_stand_alone_are_int8(make, batch, tmp_path):
    """DeBERTa's are followed by no positions, and in its published models are most of the file."""
    model = make("deberta-v2", "token-classification", vocab_size=3000, hidden_size=192, intermediate_size=768)
    source = export_onnx(model, tmp_path / "model.onnx")
    path = quantize_onnx(source, tmp_path / "model.int8.onnx")
    assert path.stat().st_size < 0.27 * source.stat().st_size
    inputs = batch(model, (16, 1, 8))
    with torch.no_grad():
        logits = model(**inputs)
    real = inputs["attention_mask"].bool()
    errors = OnnxModel(path)(**inputs)[real] - logits[real]
    assert errors.square().mean().sqrt() < 0.05 * logits[real].std()


def test_projected_positions_are_int8_with_a_scale_for_each_row_of_a_head(make, tmp_path):
    source = export_onnx(make("deberta-v2", "token-classification"), tmp_path / "model.onnx")
    path = quantize_onnx(source, tmp_path / "int8.onnx")
    assert fused_counts(source)["attention"] == fused_counts(path)["attention"] == 2
    fp32, int8 = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(file)).graph.initializer}
        for file in (source, path)
    )
    tables = [name for name in fp32 if name.startswith("deberta.encoder.rel_embeddings")]
    assert len(tables) == 4  # of two layers, for queries and for keys
    for name in tables:
        assert name not in int8
        values, scale = int8[f"{name}.int8"], int8[f"{name}.scale"]
        assert (values.dtype, values.shape, scale.shape) == (np.int8, (3, 8, 8), (3, 1, 8))
        assert (largest_term(values, 2) == 127).all()
        scale = scale[:, 0, :, None] * np.float32((3 * 8) ** 0.5)  # it holds that of the scores too
        assert (np.abs(values * scale - fp32[name]) <= scale / 2 * 1.001).all()


def test_weights_are_signed_symmetric_and_per_column(make, tmp_path):
    model = make("distilbert", "token-classification")
    path = quantize_onnx(export_onnx(model, tmp_path / "model.onnx"), tmp_path / "int8.onnx")
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer}
    layer = "distilbert.transformer.layer.1.ffn.lin1"
    values, scale = weights[f"{layer}.weight.int8"], weights[f"{layer}.weight.scale"]
    original = model.get_submodule(layer).weight.detach().numpy().T
    assert (values.dtype, scale.shape) == (np.int8, (40,))
    assert (largest_term(values, 0) == 127).all()
    assert (np.abs(values * scale - original) <= scale / 2 * 1.001).all()
    embeddings = "distilbert.embeddings.word_embeddings.weight"
    assert weights[f"{embeddings}.scale"].shape == (50, 1)
    assert embeddings not in weights
    np.testing.assert_array_equal(weights["classifier.weight"], model.classifier.weight.detach().numpy().T)


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.floats(-1e4, 1e4, width=32)),
    st.integers(0, 1),
    st.booleans(),
)
def test_rounding(weight, axis, of_product):
    values, scale = quantised(weight, axis, of_product=of_product)
    restored = values * np.expand_dims(scale, axis)
    assert (np.abs(values.astype(int)) <= 127).all()
    assert (np.abs(restored - weight) <= np.expand_dims(scale, axis) * 0.501 + 1e-30).all()
    if of_product:
        assert (largest_term(values, axis) <= 128).all()


@given(st.integers(1, 70), st.sampled_from([1, 3, 40]), st.booleans(), st.randoms(use_true_random=False))
def test_products_are_exact_on_every_cpu(inner, rows, constant, random):
    """Of the largest activations and of weights all near the largest, which without room for pairs overflow in 16 bits
    on CPUs before VNNI."""
    generator = np.random.default_rng(random.getrandbits(32))
    values, _ = quantised(generator.choice([-1, 0.99, 1], (inner, 8)).astype(np.float32), 0)
    x = generator.choice([0, 128, 254, 255], (rows, inner)).astype(np.uint8)
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, (rows, inner))]
    weights = [numpy_helper.from_array(values, "w")] if constant else []
    inputs += [] if constant else [helper.make_tensor_value_info("w", TensorProto.INT8, values.shape)]
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w", "zero"], ["y"])], "product", inputs,
        [helper.make_tensor_value_info("y", TensorProto.INT32, (rows, 8))],
        [*weights, numpy_helper.from_array(np.uint8(128), "zero")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x} if constant else {"x": x, "w": values})
    np.testing.assert_array_equal(found, (x.astype(int) - 128) @ values.astype(int))


def test_refusals(make, tmp_path):
    source = export_onnx(make("bert", "token-classification"), tmp_path / "model.onnx")
    path = quantize_onnx(source, tmp_path / "int8.onnx")
    with pytest.raises(ValueError, match=r"int8\.onnx is int8; quantise the fp32 file"):
        quantize_onnx(path, tmp_path / "again.onnx")
    with pytest.raises(FileNotFoundError, match=r"none\.onnx does not exist"):
        quantize_onnx(tmp_path / "none.onnx", tmp_path / "again.onnx")
    assert json.loads(read_metadata(path)["labels"])
    assert not (tmp_path / "again.onnx").exists()
