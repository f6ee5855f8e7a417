"""Lists of names beside pictures, in the layouts in which well known data sets are published."""

import logging

import pytest
from PIL import Image

from trainers.data.images.reader import load_image_datasets

CLASSES = ("pizza", "sushi_roll")


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4)).save(path)


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def read(folder):
    """{Split: {name: class}}."""
    return {
        split: {path.name: data.labels[target] for path, target in zip(data.images, data.targets, strict=True)}
        for split, data in load_image_datasets(folder).items()
    }


def food(root):
    for name in CLASSES:
        for number in range(20):
            picture(root / "images" / name / f"{name}{number}.jpg")
    return root


def listed(numbers, end=""):
    return [f"{name}/{name}{number}{end}" for name in CLASSES for number in numbers]


def names(numbers):
    return {f"{name}{number}.jpg" for name in CLASSES for number in numbers}


@pytest.mark.parametrize(
    ("train", "test", "end"),
    [
        ("meta/train.txt", "meta/test.txt", ""),  # Food-101
        ("TrainImages.txt", "TestImages.txt", ".jpg"),  # MIT Indoor 67
        ("lists/train_val_list.txt", "lists/test_list.txt", ".jpg"),
        ("train.txt", "test.txt", ".jpg 0"),  # with the number of the class
    ],
)
def test_lists_tell_the_splits(tmp_path, caplog, train, test, end):
    food(tmp_path)
    write(tmp_path / train, *listed(range(15), end))
    write(tmp_path / test, *listed(range(15, 20), end))
    write(tmp_path / "meta" / "classes.txt", *CLASSES)
    with caplog.at_level(logging.INFO):
        found = read(tmp_path)
    assert found["test"] == {f"{name}{number}.jpg": name for name in CLASSES for number in range(15, 20)}
    assert found["train"].keys() | found["validation"].keys() == names(range(15))
    assert "the splits are those of" in caplog.text


def test_chest_xrays_with_their_table(tmp_path):
    rows = ["Image Index,Finding Labels,Patient ID"]
    for number in range(40):
        picture(tmp_path / "images_001" / "images" / f"{number:08}_000.png")
        rows.append(f"{number:08}_000.png,{['Mass', 'No Finding'][number % 2]},{number}")
    write(tmp_path / "Data_Entry_2017.csv", *rows)
    write(tmp_path / "train_val_list.txt", *(f"{number:08}_000.png" for number in range(30)))
    write(tmp_path / "test_list.txt", *(f"{number:08}_000.png" for number in range(30, 40)))
    found = read(tmp_path)
    assert found["test"] == {f"{n:08}_000.png": ["Mass", "No Finding"][n % 2] for n in range(30, 40)}
    assert len(found["train"]) + len(found["validation"]) == 30


def test_birds_of_cub(tmp_path):
    paths, splits = [], []
    for number in range(1, 41):
        bird = ["001.Albatross", "002.Auklet"][number % 2]
        picture(tmp_path / "images" / bird / f"{bird}_{number}.jpg")
        paths.append(f"{number} {bird}/{bird}_{number}.jpg")
        splits.append(f"{number} {int(number <= 24)}")
    write(tmp_path / "images.txt", *paths)
    write(tmp_path / "train_test_split.txt", *splits)
    write(tmp_path / "classes.txt", "1 001.Albatross", "2 002.Auklet")
    found = read(tmp_path)
    assert found["test"].keys() == {f"{['001.Albatross', '002.Auklet'][n % 2]}_{n}.jpg" for n in range(25, 41)}
    assert len(found["train"]) + len(found["validation"]) == 24


@pytest.mark.parametrize("inner", ["images", "."])
def test_tiny_imagenet(tmp_path, caplog, inner):
    lines = []
    for number in range(20):
        word = ["n01443537", "n01629819"][number % 2]
        picture(tmp_path / "train" / word / "images" / f"{word}_{number}.JPEG")
        write(tmp_path / "train" / word / f"{word}_boxes.txt", f"{word}_{number}.JPEG\t0\t10\t63\t58")
        picture(tmp_path / "val" / inner / f"val_{number}.JPEG")
        picture(tmp_path / "test" / "images" / f"test_{number}.JPEG")
        if number < 18:
            lines.append(f"val_{number}.JPEG\t{word}\t0\t32\t44\t62")
    write(tmp_path / "val" / "val_annotations.txt", *lines)
    write(tmp_path / "wnids.txt", "n01443537", "n01629819")
    found = read(tmp_path)
    assert found["validation"] == {f"val_{n}.JPEG": ["n01443537", "n01629819"][n % 2] for n in range(18)}
    assert found.keys() == {"train", "validation"}
    assert "val_annotations.txt names no class for 2 pictures: they are left out" in caplog.text


def test_what_lists_lack(tmp_path, caplog):
    """Pictures in no list, and names without pictures, are counted; without a training list the rest is for it."""
    food(tmp_path)
    write(tmp_path / "test.txt", *listed(range(5)), "pizza/gone")
    with caplog.at_level(logging.INFO):
        found = read(tmp_path)
    assert found["test"].keys() == names(range(5))
    assert "the 30 pictures that no list names are for training" in caplog.text
    assert "test.txt: 1 of the 11 pictures that it names are not in the data" in caplog.text
    write(tmp_path / "train.txt", *listed(range(5, 15)))
    assert len(read(tmp_path)["train"]) + len(read(tmp_path)["validation"]) == 20
    assert "10 pictures stand in no list, and are left out; the first:" in caplog.text
    write(tmp_path / "train.txt", *listed(range(15)))
    with pytest.raises(ValueError, match=r"test.txt: .*pizza0.jpg is listed for train and test|listed for test and"):
        read(tmp_path)


def test_several_lists_for_a_split_are_named_and_not_used(tmp_path, caplog):
    """As in DTD, which has ten."""
    food(tmp_path)
    for number in (1, 2):
        write(tmp_path / "labels" / f"train{number}.txt", *listed(range(10 * number - 10, 10 * number), ".jpg"))
        write(tmp_path / "labels" / f"test{number}.txt", *listed(range(20 - 10 * number, 30 - 10 * number), ".jpg"))
    assert sum(map(len, read(tmp_path).values())) == 40
    assert "NOT used are the lists of splits, of which there are several for one: test1.txt, test2.txt" in caplog.text
