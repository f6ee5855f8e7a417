import numpy as np
import pytest
import torch
from PIL import Image

from trainers.data.batches import load_batches
from trainers.data.images.batches import ImageBatches, ImageDataset
from trainers.data.images.processing import ImageProcessing

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (6, 10, 12, 3), dtype=np.uint8)
TARGETS = np.array([2, 0, 1, 1, 0, 2])
DATASET = ImageDataset(PIXELS, TARGETS, ("a", "b", "c"), "memory")
PROCESSING = ImageProcessing(size=(8, 8), resize_to=(8, 8))


def test_labels_by_name():
    other = DATASET.with_labels(("c", "x", "a", "b"))
    assert other.targets.tolist() == [0, 2, 3, 3, 2, 0]
    assert other.labels == ("c", "x", "a", "b")
    assert other.images is DATASET.images
    with pytest.raises(ValueError, match=r"memory has labels that are not among \['a', 'c'\]: \['b'\]"):
        DATASET.with_labels(("a", "c"))


def test_a_label_without_pictures_need_not_be_known():
    some = ImageDataset(PIXELS[:2], TARGETS[:2], DATASET.labels, "memory")
    assert some.with_labels(("a", "c")).targets.tolist() == [1, 0]
    assert len(some) == 2


def test_pictures_of_your_own(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    for images in (PIXELS[:2], [tmp_path / "a.png", str(tmp_path / "a.png")]):
        dataset = ImageDataset.from_lists(images, ["b", "a"])
        assert (dataset.targets.tolist(), dataset.labels, dataset.source) == ([1, 0], ("a", "b"), "pictures in memory")
        assert ImageDataset.from_lists(images, ["b", "a"], names=["b", "c", "a"]).targets.tolist() == [0, 2]
        inputs, _ = ImageBatches(dataset, PROCESSING).collate(np.array([0]))
        assert torch.equal(inputs["pixel_values"], PROCESSING(PIXELS[:1]))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (PIXELS.astype(float), ["a"] * 6, r"mine, example 0: its pixels are floating-point numbers from 0 to 255"),
        (PIXELS[:, :, :, :2], ["a"] * 6, r"mine, example 0: its shape is \(10, 12, 2\), expected"),
        (PIXELS[0, 0], ["a"], r"mine is \(12, 3\), expected pictures \(N, H, W\)"),
        (PIXELS[:0], [], "mine is empty"),
        (PIXELS, ["a"], "mine: 6 examples and 1 labels"),
        ([], [], "mine: 0 examples and 0 labels"),
        ("a.png", ["a"], "mine: the pictures are 'a.png', expected a list of pictures"),
        ([PIXELS[0], b"text"], ["a"] * 2, "mine, example 1: not a picture"),
        ([PIXELS[0], 7], ["a"] * 2, "mine, example 1: int is no picture"),
        (["nowhere.png"], ["a"], "mine, example 0: nowhere.png: no such file"),
        (PIXELS[:1], [None], "mine, example 0: the label is None"),
    ],
)
def test_lists_that_are_no_pictures(images, labels, message):
    with pytest.raises(ValueError, match=message):
        ImageDataset.from_lists(images, labels, source="mine")


@pytest.mark.parametrize("as_files", [False, True])
def test_a_batch_is_what_the_processing_makes_of_its_pictures(tmp_path, as_files):
    paths = [tmp_path / f"{number}.png" for number in range(len(PIXELS))]
    for path, pixels in zip(paths, PIXELS, strict=True):
        Image.fromarray(pixels).save(path)
    data = ImageBatches(ImageDataset(paths if as_files else PIXELS, TARGETS, DATASET.labels, ""), PROCESSING, "crop", 1)
    inputs, labels = data.collate(np.array([4, 1, 5]))
    assert list(inputs) == ["pixel_values"]
    assert torch.equal(inputs["pixel_values"], PROCESSING(PIXELS[[4, 1, 5]]))
    assert labels.tolist() == [0, 0, 2]
    assert labels.dtype == torch.int64
    assert data.lengths.tolist() == data.label_counts.tolist() == [1] * 6
    assert data.targets is TARGETS


def test_augmentation_depends_on_seed_epoch_and_example_not_on_the_batch():
    data = ImageBatches(DATASET, PROCESSING, "crop", seed=3)
    whole = data.collate(np.arange(6), epoch=1)[0]["pixel_values"]
    assert torch.equal(data.collate(np.array([5, 2]), epoch=1)[0]["pixel_values"], whole[[5, 2]])
    assert not torch.equal(data.collate(np.arange(6), epoch=2)[0]["pixel_values"], whole)
    assert not torch.equal(
        ImageBatches(DATASET, PROCESSING, "crop", 4).collate(np.arange(6), 1)[0]["pixel_values"], whole
    )
    assert not torch.equal(data.collate(np.arange(6))[0]["pixel_values"], whole)
    plain = ImageBatches(DATASET, PROCESSING, "none", 3)
    assert torch.equal(plain.collate(np.arange(6), epoch=1)[0]["pixel_values"], PROCESSING(PIXELS))


def test_workers_prepare_the_same_batches_and_name_a_damaged_file(tmp_path):
    data = ImageBatches(DATASET, PROCESSING, "flip", seed=3)
    batches = [np.array([0, 3]), np.array([1, 2, 4])]
    device = torch.device("cpu")
    alone, helped = (list(load_batches(data, batches, device, epoch=0, workers=count)) for count in (0, 1))
    for (inputs, labels), (inputs_too, labels_too) in zip(alone, helped, strict=True):
        assert torch.equal(inputs["pixel_values"], inputs_too["pixel_values"])
        assert torch.equal(labels, labels_too)
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    broken = ImageBatches(ImageDataset([tmp_path / "cut.png"], np.array([0]), ("a",), ""), PROCESSING)
    with pytest.raises(ValueError, match=r"cut\.png: "):
        list(load_batches(broken, [np.array([0])], device, workers=1))


def test_a_picture_of_the_wrong_size_is_named(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    dataset = ImageDataset([tmp_path / "a.png"], np.array([0]), ("a",), "")
    data = ImageBatches(dataset, ImageProcessing(size=(8, 8), resize_to=None))
    with pytest.raises(ValueError, match=r"a\.png: 12 x 10 pixels, but the model takes 8 x 8"):
        data.collate(np.array([0]))
