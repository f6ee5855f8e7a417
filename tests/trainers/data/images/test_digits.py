import numpy as np
from sklearn.datasets import load_digits

from trainers.data.images.digits import BASE, NEW, write_digits
from trainers.data.images.reader import load_image_datasets


def test_both_halves_hold_every_picture_once_with_its_digit(tmp_path):
    paths = write_digits(tmp_path / "data")
    found = {}
    for name, labels in {BASE: "01234", NEW: "56789"}.items():
        datasets = load_image_datasets(paths[name])
        assert datasets["train"].labels == tuple(labels)
        sizes = [len(datasets[split]) for split in ("train", "validation", "test")]
        assert np.allclose(np.array(sizes) / sum(sizes), [0.6, 0.1, 0.3], atol=0.01)
        for dataset in datasets.values():
            assert np.bincount(dataset.targets).min() > 15
            for image, target in zip(dataset.images, dataset.targets, strict=True):
                found.setdefault(image.tobytes(), []).append(int(labels[target]))
    digits = load_digits()
    expected = {}
    for image, digit in zip(digits.images, digits.target, strict=True):
        expected.setdefault(np.rint(image * 255 / 16).astype(np.uint8).tobytes(), []).append(int(digit))
    assert found == expected


def test_writing_again_gives_the_same_data(tmp_path):
    first, again = (load_image_datasets(write_digits(tmp_path)[NEW])["test"] for _ in range(2))
    assert np.array_equal(first.images, again.images)
