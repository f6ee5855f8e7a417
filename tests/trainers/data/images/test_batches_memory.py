"""Tables in memory: the same data set from every library's table."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.data.images.batches import ImageDataset
from trainers.data.images.decode import decode

pandas = pytest.importorskip("pandas")
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
LABELS = ["cat", "dog", "cat", "eel"]


@pytest.fixture
def paths(tmp_path):
    for number, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return [str(tmp_path / f"{number}.png") for number in range(4)]


def same(dataset):
    assert dataset.labels == ("cat", "dog", "eel")
    assert dataset.targets.tolist() == [0, 1, 0, 2]
    assert all(np.array_equal(np.asarray(decode(image)), PIXELS[number]) for number, image in enumerate(dataset.images))


def test_frames_columns_and_rows(paths, tmp_path):
    columns = {"picture": paths, "kind": LABELS, "age": [1, 2, 3, 4]}
    frame = pandas.DataFrame(columns)
    rows = frame.to_dict("records")
    for table in (frame, columns, rows, iter(rows), frame.iloc[::-1].iloc[::-1]):
        same(ImageDataset.from_table(table, image_column="picture", label_column="kind"))
    frame["picture"] = [f"{number}.png" for number in range(4)]
    same(ImageDataset.from_table(frame, image_column="picture", label_column="kind", folder=tmp_path))
    frame["picture"] = list(map(Image.fromarray, PIXELS))
    same(ImageDataset.from_table(frame, image_column="picture", label_column="kind"))


def test_a_data_set_of_the_hubs_library_stays_files(paths):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "eel"])})
    table = datasets.Dataset.from_dict({"image": paths, "label": [0, 1, 0, 2]}, features=features)
    dataset = ImageDataset.from_table(table)
    same(dataset)
    assert not any(isinstance(image, np.ndarray) for image in dataset.images)


def test_lists_of_bytes_pillow_images_and_arrays(paths):
    content = [Path(path).read_bytes() for path in paths]
    for images in (paths, content, [io.BytesIO(each) for each in content], list(PIXELS), PIXELS, PIXELS / 255,
                   [Image.fromarray(each) for each in PIXELS], PIXELS.transpose(0, 3, 1, 2)):  # fmt: skip
        same(ImageDataset.from_lists(images, LABELS))


def test_labels_as_libraries_write_them(paths):
    frame = pandas.DataFrame({"image": paths, "label": [10, 2, 2, 10]})
    assert ImageDataset.from_table(frame).labels == ("2", "10")
    frame["label"] = frame["label"].astype(float)
    assert ImageDataset.from_table(frame).labels == ("2", "10")
    frame.loc[1, "label"] = None
    with pytest.raises(ValueError, match="a table in memory, example 1: the label is nan"):
        ImageDataset.from_table(frame)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ([{"photo": "a.png", "age": 1}], r"a table in memory has the columns \['photo', 'age'\]: expected one of"),
        ([["a.png", "cat"]], "row 0, is .*expected a dict"),
        (7, "is 7, expected a data set, a DataFrame"),
        ({"image": ["nowhere.png"], "label": ["a"]}, "example 0: nowhere.png: no such file"),
    ],
)
def test_what_is_no_table(table, problem):
    with pytest.raises(ValueError, match=problem):
        ImageDataset.from_table(table)
