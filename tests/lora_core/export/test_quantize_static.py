"""Static int8: a text or an image has the same bits alone as among any neighbours."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from lora_core.export import OnnxModel, export_onnx, fused_counts, quantize_onnx, read_metadata
from lora_core.export.quantize import scale_and_zero_point
from lora_core.export.write import read_model, write_model

TOKEN, TEXT, IMAGE = "token-classification", "text-classification", "image-classification"
CASES = [
    *((family, TOKEN, "default") for family in ("bert", "roberta", "distilbert", "electra", "mpnet", "modernbert")),
    *((family, TEXT, "default") for family in ("bert", "distilbert", "albert", "deberta-v2", "modernbert")),
    ("bert", TOKEN, "crf"),
    ("roberta", TEXT, "lstm"),
    ("deberta-v2", TEXT, "mlp"),
    *((family, IMAGE, "default") for family in ("vit", "deit", "dinov2")),
]
LENGTHS = (*range(1, 17), 3, 7, 9, 12)


def examples(model, seed):
    """20 texts, of every length that the model takes, or images."""
    generator = torch.Generator().manual_seed(seed)
    if model.base_model.reads == "images":
        return list(torch.randn(len(LENGTHS), 3, *model.config.image_shape, generator=generator))
    return [torch.randint(3, model.config.vocab_size, (length,), generator=generator) for length in LENGTHS]


def together(model, rows):
    """The batch of these examples, the model's keyword arguments."""
    if model.base_model.reads == "images":
        return {"pixel_values": torch.stack(rows)}
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=model.config.pad_token_id)
    lengths = torch.tensor([len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}


def logits(onnx_model, model, rows):
    """Of each example of a batch; of tokens, those of the real ones."""
    found = onnx_model(**together(model, rows))
    return [each[: len(row)] if model.task == TOKEN else each for each, row in zip(found, rows, strict=True)]


def static(model, folder, **options):
    """The model in static int8, with ranges of other examples."""
    seen = examples(model, seed=0)
    batches = [together(model, seen[:7]), together(model, seen[7:])]
    return OnnxModel(quantize_onnx(export_onnx(model, folder / "model.onnx"), folder / "int8.onnx", batches), **options)


@torch.no_grad()
@pytest.mark.parametrize(("family", "task", "head"), CASES)
def test_the_same_bits_alone_and_among_neighbours(make, tmp_path, family, task, head):
    model = make(family, task, head=head)
    onnx_model = static(model, tmp_path)
    counts, products = (
        fused_counts(tmp_path / "int8.onnx"),
        fused_counts(quantize_onnx(tmp_path / "model.onnx", tmp_path / "dynamic.onnx"))["int8"],
    )
    assert counts["int8"] == products > 0
    rows = examples(model, seed=1)
    alone = [logits(onnx_model, model, [row])[0] for row in rows]
    generator = torch.Generator().manual_seed(2)
    for size in (2, 3, 7, 20):
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            for row, found in zip(chosen, logits(onnx_model, model, [rows[row] for row in chosen]), strict=True):
                assert torch.equal(found, alone[row]), (size, len(rows[row]))
    expected = torch.cat([logits(model, model, [row])[0].flatten() for row in rows])
    found = torch.cat([each.flatten() for each in alone])
    assert 0 < (found - expected).norm() < 0.05 * expected.norm()


@torch.no_grad()
@pytest.mark.parametrize("head", ["attention", "textcnn"])
def test_heads_that_sum_over_tokens_in_fp32_do_so_to_rounding(make, tmp_path, head):
    model = make("bert", TEXT, head=head)
    onnx_model = static(model, tmp_path)
    rows = examples(model, seed=1)
    for row, found in zip(rows, logits(onnx_model, model, rows), strict=True):
        torch.testing.assert_close(found, logits(onnx_model, model, [row])[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_dynamic_scales_depend_on_the_batch(make, tmp_path):
    """What the tests above would find, did they compare nothing."""
    model = make("bert", TOKEN)
    onnx_model = OnnxModel(quantize_onnx(export_onnx(model, tmp_path / "model.onnx"), tmp_path / "int8.onnx"))
    rows = examples(model, seed=1)
    alone = [logits(onnx_model, model, [row])[0] for row in rows]
    assert not all(map(torch.equal, logits(onnx_model, model, rows), alone))
    assert onnx_model.activations == "dynamic"


@torch.no_grad()
def test_threads_change_nothing(make, tmp_path):
    model = make("bert", TOKEN)
    one, two = static(model, tmp_path, threads=1), OnnxModel(tmp_path / "int8.onnx", threads=2)
    rows = examples(model, seed=1)
    expected = [logits(one, model, [row])[0] for row in rows]
    assert all(map(torch.equal, logits(two, model, rows), expected))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: logits(one, model, [row])[0], rows * 3))
    assert all(map(torch.equal, found, expected * 3))


@torch.no_grad()
def test_values_beyond_the_range_are_cut_off(make, tmp_path):
    """Ranges of one short text alone; others go beyond them, and their logits stay finite."""
    model = make("bert", TOKEN)
    seen, *rows = examples(model, seed=0)
    path = quantize_onnx(export_onnx(model, tmp_path / "model.onnx"), tmp_path / "int8.onnx", [together(model, [seen])])
    narrow, wide = OnnxModel(path), static(model, tmp_path / "wide")
    expected = torch.cat(logits(model, model, rows))
    errors = [(torch.cat(logits(each, model, rows)) - expected).norm() / expected.norm() for each in (narrow, wide)]
    assert 2 * errors[1] < errors[0] < 1


@pytest.mark.parametrize(("lowest", "highest"), [(-3.0, 5.0), (2.0, 5.0), (-5.0, -2.0), (0.0, 0.0), (-1e-30, 1e30)])
def test_a_scale_holds_the_range_and_zero(lowest, highest):
    scale, zero = scale_and_zero_point(lowest, highest)
    assert (scale.dtype, zero.dtype) == (np.float32, np.uint8)
    values = (np.arange(256) - int(zero)) * scale
    assert 0 in values
    assert scale > 0
    assert values[0] <= lowest + scale / 2
    assert values[255] >= highest - scale / 2


def test_the_file_says_so_and_one_of_before_is_dynamic(make, batch, tmp_path):
    model = make("bert", TOKEN)
    onnx_model = static(model, tmp_path)
    facts = read_metadata(tmp_path / "int8.onnx")
    assert (facts["activations"], facts["calibration_inputs"]) == ("static", "20")
    assert onnx_model.activations == "static"
    assert "precision='int8 static'" in repr(onnx_model)
    assert OnnxModel(tmp_path / "model.onnx").activations == ""
    new = quantize_onnx(tmp_path / "model.onnx", tmp_path / "dynamic.onnx")
    facts = {name: text for name, text in read_metadata(new).items() if name != "activations"}
    old = write_model(read_model(new), tmp_path / "old.onnx", facts)
    assert OnnxModel(old).activations == "dynamic"
    assert torch.equal(OnnxModel(old)(**batch(model)), OnnxModel(new)(**batch(model)))
