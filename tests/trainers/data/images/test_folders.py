"""Folders as people pack them: the splits and classes that are meant, what is left out, what is refused."""

import logging

import pytest
from PIL import Image

from trainers.data.images.folders import class_folders, outer_folder, split_folders
from trainers.data.images.reader import load_image_datasets


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)


def tree(root, text, count=3):
    """Folders of pictures, each on a line, with its number of pictures if it is another."""
    for line in text.split():
        name, _, number = line.partition(":")
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(int(number or count)):
            Image.new("L", (4, 4), index).save(root / name / f"{index}.png")
    return root


def found(root):
    """Of each split how many pictures each class has."""
    datasets = load_image_datasets(root)
    return {
        split: {label: dataset.targets.tolist().count(index) for index, label in enumerate(dataset.labels)}
        for split, dataset in datasets.items()
    }


THREE = {"train": {"cat": 3, "dog": 3}, "validation": {"cat": 3, "dog": 3}, "test": {"cat": 3, "dog": 3}}


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("Training", "Validation", "Testing"),
        ("TRAIN", "VALID", "TEST"),
        ("training_set", "dev_set", "test_set"),
        ("seg_train/seg_train", "seg_val/seg_val", "seg_test/seg_test"),
        ("train_images", "valid_images", "test_images"),
        ("trainset", "devset", "testset"),
        ("train2017", "val2017", "test2017"),
        ("pets_train", "pets_dev", "pets_test"),
        ("train/animals", "val/animals", "test/animals"),
        ("archive/pets/train", "archive/pets/val", "archive/pets/test"),
        ("data/Training/Training", "data/Validation/Validation", "data/Testing/Testing"),
    ],
    ids=lambda names: names[0],
)
def test_splits_in_every_wording_and_in_outer_folders(tmp_path, names):
    for name in names:
        tree(tmp_path, f"{name}/cat {name}/dog")
    tree(tmp_path, "__MACOSX/train/._cat .git/x")
    assert found(tmp_path) == THREE


def test_split_folders_with_a_capital_and_no_validation(tmp_path):
    assert found(tree(tmp_path, "Training/healthy:10 Training/ill:10 Testing/healthy:5 Testing/ill:5")) == {
        "train": {"healthy": 9, "ill": 9},
        "validation": {"healthy": 1, "ill": 1},
        "test": {"healthy": 5, "ill": 5},
    }


def test_an_outer_folder_is_no_class(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        sizes = found(tree(tmp_path, "xray/train/healthy:10 xray/train/ill:10 xray/test/healthy xray/test/ill"))
    assert sizes["train"] == {"healthy": 9, "ill": 9}
    assert f"{tmp_path}: the data set lies in xray" in caplog.text
    assert outer_folder(tmp_path) == tmp_path / "xray"


def test_classes_in_an_outer_folder_and_folders_in_classes(tmp_path, caplog):
    tree(tmp_path / "one", "pets/cat:20 pets/dog:20")
    assert found(tmp_path / "one")["train"] == {"cat": 16, "dog": 16}
    tree(tmp_path / "two", "cat/young:10 cat/old:10 dog:20")
    assert found(tmp_path / "two")["train"] == {"cat": 16, "dog": 16}
    assert "folders lie inside the classes cat; their pictures count for these" in caplog.text


def test_a_split_is_read_at_the_depth_of_the_training_split(tmp_path):
    tree(tmp_path, "train/cat/a train/cat/b train/dog val/cat/a val/cat/b test/cat/a test/dog")
    assert found(tmp_path) == {
        "train": {"cat": 6, "dog": 3},
        "validation": {"cat": 6, "dog": 0},
        "test": {"cat": 3, "dog": 3},
    }


def test_a_single_class_is_refused(tmp_path):
    for text in ("xray:9", "xray/train/xray:9 xray/test/xray:9", "train/xray:9", "outer/xray:9"):
        root = tree(tmp_path / text.replace("/", "_"), text)
        with pytest.raises(ValueError, match=r"xray is the only class: there is nothing to tell apart\. Expected"):
            load_image_datasets(root)


def test_splits_without_labels_are_left_out(tmp_path, caplog):
    tree(tmp_path, "train/cat train/dog val/cat val/dog test:7 predict:2")
    assert found(tmp_path).keys() == {"train", "validation"}
    assert f"{tmp_path / 'test'}: its 7 pictures have no folders of classes" in caplog.text
    assert f"`lora-core predict RUN {tmp_path / 'test'}` reads them" in caplog.text
    assert f"{tmp_path / 'predict'}: its 2 pictures" in caplog.text


@pytest.mark.parametrize("name", ["test/unknown", "test/test", "test/0"])
def test_a_test_split_of_other_classes_has_no_labels(tmp_path, caplog, name):
    assert found(tree(tmp_path, f"train/cat train/dog val/cat val/dog {name}")).keys() == {"train", "validation"}
    assert f"its folders ({name[5:]}) are no classes of the training split (cat, dog)" in caplog.text


def test_classes_that_training_lacks_are_said(tmp_path, caplog):
    tree(tmp_path, "train/cat train/dog val/cat val/dog test/cat test/eel")
    assert found(tmp_path)["test"] == {"cat": 3, "dog": 0, "eel": 3}
    assert "the test split has labels that the training split lacks: eel" in caplog.text


def test_what_is_left_out_of_a_split_is_said(tmp_path, caplog):
    tree(tmp_path, "train:2 train/cat train/dog train/eel:0 val/cat val/dog")
    assert found(tmp_path)["train"] == {"cat": 3, "dog": 3}
    assert f"{tmp_path / 'train'}: 2 pictures lie in no class folder: they are left out" in caplog.text
    assert f"{tmp_path / 'train' / 'eel'} holds no picture: it is left out" in caplog.text


def test_a_class_called_train(tmp_path, caplog):
    assert found(tree(tmp_path, "bus:20 car:20 train:20"))["train"] == {"bus": 16, "car": 16, "train": 16}
    assert f"{tmp_path / 'train'} is read as a class, not as a split" in caplog.text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("test:5 cat dog", "holds test beside cat, dog: a split or a class"),
        ("test/cat test/dog cat dog", "holds test for a split beside cat, dog. Put these into a folder train"),
        ("train:5 test:5", "train, test in .* hold pictures, but no folders of classes"),
        ("cat/train cat/test dog/train dog/test", "cat, dog in .* hold folders of splits of their own"),
        ("a/train/cat a/train/dog b/train/cat b/train/dog", "a, b in .* hold folders of splits of their own. Name one"),
        ("train/cat train/dog training/cat", "holds train, training for the train split. Keep one of them"),
        ("train1/cat train2/cat train2/dog", "holds train1, train2 for the train split. Keep one of them"),
        ("train/cat train/dog val:0", "val holds no usable picture. Fill it or remove it"),
        (".:5", "holds 5 pictures without labels: expected folders"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path, text, problem):
    with pytest.raises(ValueError, match=problem):
        load_image_datasets(tree(tmp_path, text))


def test_class_folders_may_be_links_and_hidden_ones_are_none(tmp_path):
    tree(tmp_path, "elsewhere data/.hidden")
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere")
    assert [path.name for path in class_folders(tmp_path / "data")] == ["cat"]


def test_names_that_are_no_splits(tmp_path):
    tree(tmp_path, "test_tube train_station devil valley training_shoes")
    assert split_folders(tmp_path) == {}
