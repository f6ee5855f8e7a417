import numpy as np
import pytest
from PIL import Image

from trainers.data.images.batches import CROP_AREA, CROP_ASPECT, augmented
from trainers.data.images.processing import ImageProcessing

PROCESSING = ImageProcessing(size=(24, 32), resize_to=(24, 32))
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def change(augment, seed=1, epoch=0, index=0):
    return np.asarray(augmented(IMAGE, PROCESSING, augment, seed, epoch, index))


@pytest.mark.parametrize("augment", ["flip", "crop"])
def test_the_change_depends_on_seed_epoch_and_example_alone(augment):
    places = [(seed, epoch, index) for seed in range(2) for epoch in range(3) for index in range(4)]
    first = [change(augment, *place) for place in places]
    np.random.default_rng(5).random(100)
    np.random.seed(0)  # noqa: NPY002 - the global generator must not matter
    again = [change(augment, *place) for place in reversed(places)]
    assert all(np.array_equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    assert len({image.tobytes() for image in first}) == (2 if augment == "flip" else len(places))


def test_a_flip_mirrors_about_one_picture_in_two():
    plain = change("none")
    assert np.array_equal(plain, np.asarray(PROCESSING.fitted(IMAGE)))
    flipped = [not np.array_equal(change("flip", epoch=epoch), plain) for epoch in range(100)]
    assert 35 < sum(flipped) < 65
    number = flipped.index(True)
    assert np.array_equal(change("flip", epoch=number), plain[:, ::-1])


def test_a_crop_stays_inside_and_keeps_its_share():
    # Pixels are their own coordinates, so the corners tell which part was taken.
    rows, columns = np.mgrid[0:200, 0:200]
    image = Image.fromarray(np.stack([rows, columns, np.full_like(rows, 9)], -1).astype(np.uint8))
    processing = ImageProcessing(size=(100, 100), resize_to=(100, 100))
    shares, aspects, lefts = [], [], []
    for index in range(200):
        part = np.asarray(augmented(image, processing, "crop", 0, 0, index)).astype(float)
        assert (part[:, :, 2] == 9).all()  # nothing from outside
        height, width = np.ptp(part[:, 50, 0]), np.ptp(part[50, :, 1])
        shares.append(height * width / 200**2)
        aspects.append(width / height)
        lefts.append(part[50, :, 1].min())
    assert CROP_AREA[0] - 0.05 < min(shares) < 0.5 < 0.85 < max(shares) <= 1
    assert CROP_ASPECT[0] - 0.1 < min(aspects) < 0.9 < 1.1 < max(aspects) < CROP_ASPECT[1] + 0.1
    assert min(lefts) < 10 < 40 < max(lefts)
