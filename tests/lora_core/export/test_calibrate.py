"""torch's own activations, seen by hooks on texts without padding, are the oracle of the ranges."""

import pytest
import torch

import lora_core
from lora_core.export import export_onnx, export_onnx_base, quantize_onnx, read_metadata, write
from lora_core.export.calibrate import activation_ranges
from lora_core.export.quantize import _Quantiser
from lora_core.export.write import read_model

PARTS = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
LENGTHS = ((9, 4, 1), (16, 4, 12, 4), (3,))


@pytest.fixture
def model(make):
    """Its padding is loud, so that it would widen every range."""
    model = make("bert", "token-classification")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[0] *= 1000
    return model


def ranges(path, batches):
    return activation_ranges(path, _Quantiser(read_model(path).graph).activations(), batches)


@torch.no_grad()
def ranges_in_torch(model, batches):
    """Of the input of each quantised layer, in order."""
    layers = [f"bert.encoder.layer.{number}.{part}" for number in range(2) for part in PARTS]
    seen = {layer: [] for layer in layers}
    for layer in layers:
        model.get_submodule(layer).register_forward_hook(lambda _, args, __, layer=layer: seen[layer].append(args[0]))
    for batch in batches:
        for ids, mask in zip(*batch.values(), strict=True):
            model(ids[None, mask.bool()])
    return [(min(x.min().item() for x in seen[layer]), max(x.max().item() for x in seen[layer])) for layer in layers]


def test_ranges_are_those_of_torch_at_real_tokens(model, batch, tmp_path):
    batches = [batch(model, lengths) for lengths in LENGTHS]
    found, inputs = ranges(export_onnx(model, tmp_path / "model.onnx"), batches)
    assert inputs == 8
    expected = ranges_in_torch(model, batches)
    assert len(found) == len(expected) == 8
    for ours, theirs in zip(found.values(), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_each_run_of_a_shared_layer_has_ranges_of_its_own(make, batch, tmp_path):
    model = make("albert", "text-classification")
    found, _ = ranges(export_onnx(model, tmp_path / "model.onnx"), [batch(model)])
    assert len(set(found.values())) == len(found) == 4 * 3


def test_a_mask_may_be_left_out_and_rows_of_padding_do_not_count(model, batch, tmp_path):
    path = export_onnx(model, tmp_path / "model.onnx")
    ids = batch(model, (7,))["input_ids"]
    expected = ranges(path, [{"input_ids": ids}])
    padded = torch.cat([ids, torch.zeros_like(ids)])
    mask = torch.cat([torch.ones_like(ids), torch.zeros_like(ids)])
    assert ranges(path, [{"input_ids": padded, "attention_mask": mask}]) == expected
    assert expected[1] == 1


def test_images(make, batch, tmp_path):
    model = make("vit", "image-classification")
    path, images = export_onnx(model, tmp_path / "model.onnx"), batch(model, (1, 1, 1))
    together, alone = ranges(path, [images]), ranges(path, [{"pixel_values": x[None]} for x in images["pixel_values"]])
    assert together[1] == alone[1] == 3
    for one, other in zip(together[0].values(), alone[0].values(), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_weights_beside_the_file(model, batch, tmp_path, monkeypatch):
    expected = ranges(export_onnx(model, tmp_path / "small.onnx"), [batch(model)])
    monkeypatch.setattr(write, "EXTERNAL_OVER", 10_000)
    path = export_onnx(model, tmp_path / "large.onnx")
    assert path.with_name("large.onnx.data").is_file()
    assert ranges(path, [batch(model)]) == expected


def test_refusals(model, batch, tmp_path):
    path, target = export_onnx(model, tmp_path / "model.onnx"), tmp_path / "int8.onnx"
    ids, mask = batch(model).values()
    for batches, message in {
        "nothing": ([], "calibration holds no input; give batches of texts or images"),
        "padding alone": ([{"input_ids": ids, "attention_mask": mask * 0}], "calibration holds no input"),
        "pads on the left": ([{"input_ids": ids, "attention_mask": mask.flip(1)}], "pad behind them"),
        "images": ([{"pixel_values": ids.float()}], "gives pixel_values; .* takes input_ids, attention_mask"),
        "segments": ([{"input_ids": ids, "token_type_ids": ids}], "gives input_ids, token_type_ids; "),
        "another vocabulary": ([{"input_ids": ids + 50}], "cannot run on one of the batches"),
    }.values():
        with pytest.raises(ValueError, match=message):
            quantize_onnx(path, target, batches)
    lora_core.inject_lora(model, r=2)
    base = export_onnx_base(model, tmp_path / "base.onnx")
    with pytest.raises(ValueError, match=r"base\.onnx is a base for adapters, and each gives .*leave calibration out"):
        quantize_onnx(base, target, [batch(model)])
    assert not target.exists()
    assert read_metadata(quantize_onnx(base, target))["activations"] == "dynamic"


def test_values_that_are_not_finite(model, batch, tmp_path):
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight.fill_(3e38)
    path = export_onnx(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"model\.onnx gives NaN or infinity"):
        quantize_onnx(path, tmp_path / "int8.onnx", [batch(model)])
