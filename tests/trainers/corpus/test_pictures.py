"""check-data on pictures: every number is one that was put there."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from trainers.cli import main
from trainers.corpus.pictures import count_pictures, pictures_table
from trainers.data.images.batches import ImageDataset
from trainers.data.rows import BadRows

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)


def save(path, shape=(40, 30, 3), pixels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RANDOM.integers(0, 256, shape, dtype=np.uint8) if pixels is None else pixels
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def data(tmp_path):
    """20 cats and 2 dogs to train on; a test split with a leak, a picture twice, one of another class, a grey one."""
    root = tmp_path / "data"
    cats = [save(root / "train" / "cat" / f"{number}.png") for number in range(20)]
    dogs = [save(root / "train" / "dog" / f"{number}.png") for number in range(2)]
    save(root / "test" / "cat" / "leak.bmp", pixels=cats[3])
    fresh = save(root / "test" / "cat" / "a.png")
    save(root / "test" / "cat" / "a_copy.tif", pixels=fresh)
    save(root / "test" / "cat" / "dog_in_train.png", pixels=dogs[0])
    save(root / "test" / "cat" / "grey.png", (50, 12))
    return root


def check(capsys, *arguments):
    main(["check-data", *map(str, arguments), "--task", "image-classification"])
    return re.sub(" +", " ", capsys.readouterr().out)


def test_what_is_counted(data, tmp_path, capsys):
    out = check(capsys, data, "--output-dir", tmp_path / "out")
    for line in (
        "| pictures | 22 | 5 |",
        "| cat | 20 (90.9%) | 5 (100.0%) |",
        "1 pictures stand there with more than one class.",
        "2 of 5 test pictures (40.0%) also stand in the training split.",
        "1 pictures of the test split stand there before.",
        "In the train split cat has 20 pictures and dog 2: look at F1",
        "1 test pictures have a side below 16 pixels.",
        "cat is the only class of the test split",
        "The test split lacks dog.",
        "The test split has fewer than 20 pictures of cat",
    ):
        assert line in out
    found = json.loads((tmp_path / "out" / "statistics.json").read_text())
    test = found["splits"]["test"]
    assert (test["pictures"], test["repeated"], test["seen_in_train"], test["tiny"]) == (5, 1, 2, 1)
    assert (test["labels"], test["modes"]) == ({"cat": 5, "dog": 0}, {"RGB": 4, "L": 1})
    assert (test["width"], test["height"]) == (
        {"min": 12, "median": 30.0, "max": 30},
        {"min": 40, "median": 40.0, "max": 50},
    )
    first = found["same"][0]
    assert first == [
        f"train: {data / 'train' / 'dog' / '0.png'} (dog)",
        f"test: {data / 'test' / 'cat' / 'dog_in_train.png'} (cat)",
    ]
    assert len(found["same"]) == 3
    assert re.sub(" +", " ", (tmp_path / "out" / "statistics.md").read_text()) in out
    with Image.open(tmp_path / "out" / "statistics.png") as drawn:
        assert drawn.width > 500
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"statistics.{end}" for end in ("json", "md", "png")
    ]


def test_damaged_pictures_stop_it_or_are_counted(data, tmp_path, capsys):
    path = data / "train" / "dog" / "0.png"
    cut = path.read_bytes()[:500]
    path.write_bytes(cut)
    (data / "train" / "dog" / "2.png").touch()
    with pytest.raises(SystemExit):
        check(capsys, data, "--output-dir", tmp_path / "out")
    assert f"{path}: damaged or cut short" in capsys.readouterr().err
    out = check(capsys, data, "--output-dir", tmp_path / "out", "--on-bad-row", "skip")
    assert "2 pictures or rows cannot be used and were left out." in out
    path.unlink()
    with pytest.raises(SystemExit):
        check(capsys, data, "--output-dir", tmp_path / "out")
    assert "2.png: the file is empty" in capsys.readouterr().err
    (data / "train" / "dog" / "2.png").unlink()
    path.write_bytes(cut)
    out = check(capsys, data, "--output-dir", tmp_path / "out", "--on-bad-row", "skip")
    assert "1 pictures or rows cannot be used and were left out." in out


def test_tables_and_the_splits_as_they_lie_there(data, tmp_path, capsys):
    lines = [f"train/cat/{number}.png,{'xy'[number % 2]},{'ab'[number < 3]}" for number in range(20)]
    (data / "all.csv").write_text("\n".join(["image,label,kind", *lines]))
    out = check(capsys, data / "all.csv", "--label-column", "kind", "--output-dir", tmp_path / "out")
    assert "| a | 17 (85.0%) |" in out
    assert "| pictures | 20 |" in out  # nothing was cut off for validation


def test_pictures_in_memory_and_a_leak_between_validation_and_test():
    pixels = RANDOM.integers(0, 256, (4, 20, 20), dtype=np.uint8)
    splits = {
        name: ImageDataset(pixels[chosen], np.zeros(2, dtype=np.int64), ("a",), name)
        for name, chosen in {"train": [0, 1], "validation": [2, 3], "test": [3, 3]}.items()
    }
    counted = count_pictures(splits, BadRows("error"))
    assert "1 pictures stand in the validation and in the test split." in counted.warnings
    assert [
        "validation: validation, picture 2 (a)",
        "test: test, picture 1 (a)",
        "test: test, picture 2 (a)",
    ] in counted.same
    assert "| modes " in pictures_table(counted)


def test_a_folder_of_pictures_without_the_task(data, capsys):
    with pytest.raises(SystemExit):
        main(["check-data", str(data)])
    assert "holds pictures: did you forget --task image-classification?" in capsys.readouterr().err
