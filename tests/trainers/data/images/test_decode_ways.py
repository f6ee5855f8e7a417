"""One picture handed over in every way: a path, bytes, an open file, Pillow, an array, a tensor."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from lora_core.models import build_model, config_from_dict, save_pretrained
from trainers.data.images.batches import ImageBatches, ImageDataset
from trainers.data.images.decode import decode, is_picture
from trainers.data.images.processing import ImageProcessing
from trainers.serve import pipeline

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (20, 30, 3), dtype=np.uint8)
PROCESSING = ImageProcessing(size=(16, 16), resize_to=(16, 16))


def of_mode(mode):
    """A picture of noise in one of Pillow's modes, some of it transparent where the mode knows that."""
    if mode == "P transparent":
        image = Image.fromarray(COLOUR).quantize(8)
        image.info["transparency"] = 3
        return image
    if mode == "I;16":
        return Image.fromarray(COLOUR[:, :, 0].astype(np.uint16) * 257)
    if mode == "I":
        return Image.fromarray(COLOUR[:, :, 0].astype(np.int32) * 257)
    if mode == "F":
        return Image.fromarray(COLOUR[:, :, 0].astype(np.float32) / 255)
    image = Image.fromarray(COLOUR)
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(COLOUR[:, :, 1]))
    return image.convert(mode)


MODES = {"1": "png", "L": "png", "LA": "png", "P": "png", "P transparent": "png", "RGB": "png", "RGBA": "png",
         "CMYK": "tif", "I;16": "png", "I": "tif", "F": "tif"}  # fmt: skip


def ways(image, path):
    """The picture in every form but arrays."""
    image.save(path)
    content = path.read_bytes()
    return [path, str(path), content, io.BytesIO(content), Image.open(io.BytesIO(content)), image, image.copy()]


@pytest.mark.parametrize("mode", MODES)
def test_path_bytes_file_and_pillow_of_every_mode(tmp_path, mode):
    found = [np.asarray(decode(way)) for way in ways(of_mode(mode), tmp_path / f"a.{MODES[mode]}")]
    with (tmp_path / f"a.{MODES[mode]}").open("rb") as file:
        found.append(np.asarray(decode(file)))
    assert all(np.array_equal(each, found[0]) for each in found)
    assert found[0].dtype == np.uint8
    assert found[0].std() > 10


def test_arrays_and_tensors_are_the_picture_that_they_were_made_of():
    for mode in ("L", "RGB", "RGBA"):
        image = of_mode(mode)
        pixels, expected = np.asarray(image), np.asarray(decode(image))
        tensor = torch.from_numpy(pixels.copy())
        first = tensor.permute(2, 0, 1) if tensor.ndim == 3 else tensor
        for way in (pixels, pixels / 255, pixels.astype(np.uint16) * 257, tensor, first, first.float() / 255):
            assert np.array_equal(np.asarray(decode(way)), expected), (mode, way.shape, way.dtype)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_orientation_is_obeyed_in_every_way(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    content = (tmp_path / "a.png").read_bytes()
    expected = np.asarray(decode(tmp_path / "a.png"))
    opened = Image.open(io.BytesIO(content))
    for way in (content, io.BytesIO(content), opened, opened.convert("RGB")):
        assert np.array_equal(np.asarray(decode(way)), expected)


def test_transparent_parts_are_white_in_every_way(tmp_path):
    clear = Image.new("RGBA", (6, 5), (10, 20, 30, 0))
    for way in (*ways(clear, tmp_path / "a.png"), np.asarray(clear), np.asarray(clear).transpose(2, 0, 1) / 255):
        assert (np.asarray(decode(way)) == 255).all()


def test_training_and_pipeline_see_what_transformers_sees(tmp_path):
    """A batch of training, bit by bit in all ways, against the processor; and the scores of the pipeline."""
    config = config_from_dict({"model_type": "vit", "image_size": 16, "patch_size": 4, "hidden_size": 16,
                               "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32})  # fmt: skip
    save_pretrained(build_model(config, "image-classification", ["a", "b"]), tmp_path / "model")
    PROCESSING.save(tmp_path / "model")
    image = Image.fromarray(COLOUR)
    pixels = torch.from_numpy(COLOUR)
    inputs = [*ways(image, tmp_path / "a.png"), COLOUR, COLOUR / 255, pixels.permute(2, 0, 1), pixels / 255]
    dataset = ImageDataset.from_lists(inputs, [0] * 11)
    batch, _ = ImageBatches(dataset, PROCESSING).collate(np.arange(11))
    theirs = ViTImageProcessorPil(size={"height": 16, "width": 16})(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"], batch["pixel_values"][:1].expand(11, -1, -1, -1))
    assert (batch["pixel_values"][:1] - theirs).abs().max() < 1e-6
    classify = pipeline(None, tmp_path / "model")
    fresh = ways(image, tmp_path / "a.png") + inputs[7:]
    assert all(classify(way) == classify(COLOUR) for way in fresh)
    assert classify(np.stack([COLOUR, COLOUR])) == classify(torch.stack([pixels, pixels])) == [classify(COLOUR)[0]] * 2


def test_what_is_no_picture_is_named(tmp_path):
    assert not is_picture([COLOUR])
    with pytest.raises(ValueError, match="a picture: int is no picture: expected a path, bytes"):
        decode(3)
    with pytest.raises(ValueError, match="shelf: the file is empty"):
        decode(b"", "shelf")
    with pytest.raises(ValueError, match="a picture: not a picture in one of"):
        decode(b"text")
    with pytest.raises(ValueError, match="opened as text"):
        decode(io.StringIO("text"))
    with pytest.raises(ValueError, match=r"shelf: its pixels are int64"):
        decode(np.zeros((4, 4), np.int64), "shelf")
