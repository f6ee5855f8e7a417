import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import ViTImageProcessorPil

from trainers.data.images.decode import decode
from trainers.data.images.processing import BICUBIC, BILINEAR, PREPROCESSOR_FILE, ImageProcessing

RANDOM = np.random.default_rng(0)
IMAGES = {
    "grey": RANDOM.integers(0, 256, (28, 28), dtype=np.uint8),
    "colour": RANDOM.integers(0, 256, (50, 37, 3), dtype=np.uint8),
    "large": RANDOM.integers(0, 256, (300, 260, 3), dtype=np.uint8),
}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def theirs(values, image):
    """Pixel values of transformers' processor for one picture, which it wants in colour."""
    colour = np.repeat(image[:, :, None], 3, 2) if image.ndim == 2 else image
    return ViTImageProcessorPil(**values)(Image.fromarray(colour), return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize(
    "values",
    [
        {"size": {"height": 224, "width": 224}},
        {"size": {"height": 128, "width": 128}, "resample": BICUBIC},
        {"size": {"height": 28, "width": 28}, "resample": 0, **IMAGENET},
        {"size": {"height": 40, "width": 24}, "resample": 1},
        {"size": {"height": 32, "width": 32}, "do_center_crop": True, "crop_size": {"height": 27, "width": 28}},
        {"size": {"height": 32, "width": 32}, "do_normalize": False},
        {"size": {"height": 32, "width": 32}, "do_rescale": False, **IMAGENET},
        {
            "size": {"height": 32, "width": 32},
            "rescale_factor": 1 / 127.5,
            "image_mean": [1.0] * 3,
            "image_std": [1.0] * 3,
        },
    ],
)
def test_the_numbers_are_those_of_transformers(values, name):
    ours = ImageProcessing.from_dict(values)([IMAGES[name]])
    assert ours.dtype == torch.float32
    assert ours.is_contiguous()
    tolerance = 1e-5 * (255 if values.get("do_rescale") is False else 1)
    assert (ours - theirs(values, IMAGES[name])).abs().max() <= tolerance


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("crop", [{"height": 27, "width": 28}, {"height": 32, "width": 32}])
def test_the_shorter_side_is_brought_to_a_length(tmp_path, name, crop):
    """As DINOv2's preprocessor_config.json has it."""
    values = {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": crop, "resample": BICUBIC, **IMAGENET}
    processing = ImageProcessing.from_dict(values)
    image = IMAGES[name]
    colour = np.repeat(image[:, :, None], 3, 2) if image.ndim == 2 else image
    expected = transformers.BitImageProcessorPil(**values)(Image.fromarray(colour), return_tensors="pt")["pixel_values"]
    assert (processing([image]) - expected).abs().max() <= 1e-5
    processing.save(tmp_path)
    assert ImageProcessing.read(tmp_path) == processing
    assert transformers.AutoImageProcessor.from_pretrained(tmp_path).size["shortest_edge"] == 32


@pytest.mark.parametrize("name", ["grey", "colour"])
def test_pictures_that_are_not_resized(name):
    values = {"do_resize": False}
    processing = ImageProcessing.from_dict(values).with_size(*IMAGES[name].shape[:2])
    assert torch.allclose(processing([IMAGES[name]]), theirs(values, IMAGES[name]), atol=1e-6)
    with pytest.raises(ValueError, match=r"^a picture: .* the model takes 16 x 16 .*do_resize"):
        processing.with_size(16, 16)([IMAGES[name]])


def test_a_batch_of_files_and_arrays_in_grey_and_colour(tmp_path):
    Image.fromarray(IMAGES["colour"]).save(tmp_path / "a.png")
    processing = ImageProcessing()
    batch = processing([tmp_path / "a.png", IMAGES["grey"]])
    assert batch.shape == (2, 3, 224, 224)
    assert torch.equal(batch[:1], processing([IMAGES["colour"]]))
    assert torch.equal(batch[1:], processing([IMAGES["grey"]]))
    (tmp_path / "b.png").touch()
    with pytest.raises(ValueError, match=r"b\.png: the file is empty"):
        processing([tmp_path / "b.png"])


def test_a_model_of_grey_pictures():
    processing = ImageProcessing.from_dict({"size": 16, "image_mean": [0.2], "image_std": 0.5})
    grey, colour = processing([IMAGES["grey"]]), processing([IMAGES["colour"]])
    assert grey.shape == colour.shape == (1, 1, 16, 16)
    resized = np.asarray(Image.fromarray(IMAGES["grey"]).resize((16, 16), BILINEAR)) / 255
    assert np.abs(grey[0, 0].numpy() - (resized - 0.2) / 0.5).max() < 1e-6
    luma = np.asarray(Image.fromarray(IMAGES["colour"]).resize((16, 16), BILINEAR).convert("L"))
    assert torch.allclose(colour, torch.from_numpy(processing.normalised(luma[None, :, :, None].copy())))


def test_defaults_are_those_of_vit():
    assert ImageProcessing.from_dict({}) == ImageProcessing()
    old = {
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 2,
        "size": 224,
    }
    assert ImageProcessing.from_dict(old) == ImageProcessing()  # as google/vit-base-patch16-224 has it
    assert ImageProcessing.from_dict({**old, "do_rescale": None}) == ImageProcessing()


@pytest.mark.parametrize(
    "processing",
    [
        ImageProcessing(),
        ImageProcessing(size=(30, 20), resize_to=(30, 20), resample=BICUBIC, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0)),
        ImageProcessing(size=(30, 20), resize_to=(34, 24)),
        ImageProcessing(size=(50, 37), resize_to=None, rescale_factor=1.0),
    ],
)
def test_what_is_saved_is_read_by_us_and_by_transformers(tmp_path, processing):
    processing.save(tmp_path)
    assert ImageProcessing.read(tmp_path) == processing
    found = ViTImageProcessorPil.from_pretrained(tmp_path)(Image.fromarray(IMAGES["colour"]), return_tensors="pt")
    assert torch.allclose(processing([IMAGES["colour"]]), found["pixel_values"], atol=1e-4, rtol=1e-5)


def test_another_size_keeps_the_proportion_that_is_cut_off():
    cropped = ImageProcessing(size=(224, 224), resize_to=(256, 256))
    assert cropped.with_size(112, 112) == ImageProcessing(size=(112, 112), resize_to=(128, 128))
    assert ImageProcessing().with_size(128, 96) == ImageProcessing(size=(128, 96), resize_to=(128, 96))


def test_no_file_and_damaged_files(tmp_path):
    assert ImageProcessing.read(tmp_path) is None
    path = tmp_path / PREPROCESSOR_FILE
    for text, problem in {
        "{": "is not JSON",
        "[]": "holds list",
        '{"size": {"shortest_edge": 224}}': "size is .* without do_center_crop",
        '{"size": {"shortest_edge": "a"}, "do_center_crop": true}': "expected a number of pixels as its shortest_edge",
        '{"size": 0}': "size is 0",
        '{"resample": 9}': "resample is 9",
        '{"image_mean": [0.5, 0.5], "image_std": [1, 1]}': "image_mean is",
        '{"image_std": [0, 1, 1]}': "std above 0",
        '{"image_std": ["a", 1, 1]}': "image_std is .*expected numbers",
        '{"do_resize": "yes"}': "do_resize is 'yes', expected true or false",
        '{"do_center_crop": true, "crop_size": 256}': "crop_size .* larger than size",
        '{"rescale_factor": true}': "rescale_factor is True",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=problem) as error:
            ImageProcessing.read(tmp_path)
        assert str(path) in str(error.value)


def test_pictures_of_the_right_size_are_not_interpolated():
    processing = ImageProcessing(size=(28, 28), resize_to=(28, 28), resample=BICUBIC)
    assert np.array_equal(np.asarray(processing.fitted(decode(IMAGES["grey"]))), IMAGES["grey"])
    assert json.dumps(processing.to_dict())
