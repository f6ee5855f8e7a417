import logging
import os

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects
from PIL import Image

from trainers.data.images.batches import ImageDataset
from trainers.data.images.npz import write_npz
from trainers.data.images.reader import load_image_datasets

DATA_DIR = os.environ.get("LORA_DATA_DIR", "")


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)


def pictures(folder, **classes):
    """So many pictures in a folder for each class."""
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (4, 4), number).save(folder / name / f"{number:03}.png")
    return folder


def npz(path, **splits):
    write_npz(
        path,
        {
            split: ImageDataset(np.full((count, 8, 8), 9, np.uint8), np.arange(count) % 2, ("a", "b"), "")
            for split, count in splits.items()
        },
    )
    return path


def sizes(datasets):
    return {split: len(dataset) for split, dataset in datasets.items()}


def paths(datasets):
    return {split: set(dataset.images) for split, dataset in datasets.items()}


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "dev"])
def test_folders_for_splits(tmp_path, validation):
    for split, count in {"train": 4, validation: 2, "test": 3}.items():
        pictures(tmp_path / split, cat=count, dog=1)
    datasets = load_image_datasets(tmp_path)
    assert sizes(datasets) == {"train": 5, "validation": 3, "test": 4}
    assert datasets["validation"].labels == ("cat", "dog")


def test_splits_are_found_in_any_case_and_wording(tmp_path):
    counts = {"Training": 4, "Valid": 2, "TESTING": 3}
    pictures(tmp_path / "tables" / "files", cat=4)
    for name, count in counts.items():
        pictures(tmp_path / "folders" / name, cat=count - 1, dog=1)
        rows = [f"files/cat/{number:03}.png,{('cat', 'dog')[number == 0]}" for number in range(count)]
        (tmp_path / "tables" / f"{name}.csv").write_text("\n".join(["image,label", *rows]))
    for form in ("folders", "tables"):
        assert sizes(load_image_datasets(tmp_path / form)) == {"train": 4, "validation": 2, "test": 3}
    pictures(tmp_path / "folders" / "val", cat=1)
    with pytest.raises(ValueError, match=r"folders holds Valid, val for the validation split. Keep one of them"):
        load_image_datasets(tmp_path / "folders")


def test_one_tree_is_split_evenly_in_each_class_whatever_the_runs_seed(tmp_path):
    datasets = load_image_datasets(pictures(tmp_path, cat=50, dog=20))
    assert sizes(datasets) == {"train": 56, "validation": 7, "test": 7}
    for split, (cats, dogs) in {"train": (40, 16), "validation": (5, 2), "test": (5, 2)}.items():
        assert np.bincount(datasets[split].targets).tolist() == [cats, dogs]
    found = paths(datasets)
    assert len(set.union(*found.values())) == 70
    assert paths(load_image_datasets(tmp_path)) == found
    assert max(int(path.stem) for path in found["test"]) > 10  # not simply the first ones


def test_which_pictures_are_held_out_never_changes(tmp_path):
    """Scores of runs are on these pictures. 41 of them, because 0.1 * 41 / 41 is a little more than 0.1, and decides
    how many of 5 or 25 are taken."""
    for number in range(41):
        Image.new("L", (4, 4), number).save(tmp_path / f"{number}.png")
    rows = [f"{number}.png,{label}" for number, label in enumerate("a" * 25 + "b" * 11 + "c" * 5)]
    (tmp_path / "all.csv").write_text("\n".join(["image,label", *rows]))

    def chosen(split):
        return [int(path.stem) for path in load_image_datasets(tmp_path)[split].images]

    assert (chosen("validation"), chosen("test")) == ([12, 18, 22, 27], [4, 10, 19, 31, 36])
    (tmp_path / "all.csv").rename(tmp_path / "train.csv")
    assert chosen("validation") == [4, 10, 19, 31, 36]


def test_data_without_validation_gives_up_part_of_its_training_split(tmp_path, caplog):
    pictures(tmp_path / "train", cat=30, dog=10)
    pictures(tmp_path / "test", cat=5)
    datasets = load_image_datasets(tmp_path)
    assert sizes(datasets) == {"train": 36, "validation": 4, "test": 5}
    assert not paths(datasets)["train"] & paths(datasets)["validation"]
    assert "no validation split; 4 of 40 training pictures became one" in caplog.text


def test_a_test_split_alone_stays_as_it_is(tmp_path):
    pictures(tmp_path / "test", cat=5)
    assert sizes(load_image_datasets(tmp_path)) == {"test": 5}


def test_npz_by_path_by_folder_and_by_name(tmp_path, monkeypatch):
    path = npz(tmp_path / "data" / "set" / "a.npz", train=6, validation=4, test=4)
    monkeypatch.setenv("LORA_DATA_DIR", str(tmp_path / "data"))
    for source in (path, path.parent, "set", "set/a.npz"):
        datasets = load_image_datasets(source)
        assert sizes(datasets) == {"train": 6, "validation": 4, "test": 4}
        assert datasets["train"].labels == ("a", "b")


def test_of_a_hub_data_set_only_what_can_be_read_is_fetched(tmp_path, monkeypatch):
    pictures(tmp_path / "fetched" / "test", cat=1)
    asked, answers = {}, [tmp_path / "fetched", tmp_path / "nothing"]

    def snapshot_download(hub_id, **keywords):
        asked.update(keywords, hub_id=hub_id)
        return str(answers.pop(0))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert sizes(load_image_datasets("maker/pictures")) == {"test": 1}
    assert (asked["hub_id"], asked["repo_type"]) == ("maker/pictures", "dataset")
    needed = ["train/cat/1.jpg", "test/cat/2.PNG", "data/set.npz", "train.csv", "train-00000-of-00001.parquet",
              "train/metadata.jsonl"]  # fmt: skip
    left = ["README.md", "model.bin", "loader.py", "a.zip"]
    assert list(filter_repo_objects(needed + left, allow_patterns=asked["allow_patterns"])) == needed
    with pytest.raises(ValueError, match=r"'maker/pictures' on the hub has no file called \*.npz, \*.csv, .*\*.jpg"):
        load_image_datasets("maker/pictures")


def test_npz_without_validation(tmp_path):
    datasets = load_image_datasets(npz(tmp_path / "a.npz", train=40, test=4))
    assert sizes(datasets) == {"train": 36, "validation": 4, "test": 4}
    assert isinstance(datasets["validation"].images, np.ndarray)
    assert datasets["validation"].images.shape == (4, 8, 8)


def test_tables(tmp_path):
    pictures(tmp_path, one=10, two=10)
    rows = [f"{folder}/{number:03}.png,{folder}" for folder in ("one", "two") for number in range(10)]
    (tmp_path / "all.csv").write_text("\n".join(["image,label", *rows]))
    for source in (tmp_path, tmp_path / "all.csv"):  # a table goes before the folders that it points to
        assert sizes(load_image_datasets(source)) == {"train": 16, "validation": 2, "test": 2}
    words = (["train"] * 4 + ["valid"] * 3 + ["test"] * 3) * 2
    split = [f"{row},{word}" for row, word in zip(rows, words, strict=True)]
    (tmp_path / "all.csv").write_text("\n".join(["image,label,split", *split]))
    assert sizes(load_image_datasets(tmp_path)) == {"train": 8, "validation": 6, "test": 6}
    (tmp_path / "all.csv").unlink()
    for word, part in {"train": rows[4:16], "val": rows[:4], "test": rows[16:]}.items():
        (tmp_path / f"{word}.csv").write_text("\n".join(["image,label", *part]))
    assert sizes(load_image_datasets(tmp_path)) == {"train": 12, "validation": 4, "test": 4}


def test_labels_that_training_lacks_are_reported(tmp_path, caplog):
    for split, classes in {"train": {"cat": 2, "dog": 2}, "val": {"cat": 1}, "test": {"cat": 1, "eel": 1}}.items():
        pictures(tmp_path / split, **classes)
    load_image_datasets(tmp_path)
    assert "the test split has labels that the training split lacks: eel" in caplog.text


def test_pictures_left_out_are_reported_once(tmp_path, caplog):
    for split in ("train", "val"):
        (pictures(tmp_path / split, cat=2, dog=1) / "cat" / "bad.png").touch()
    with caplog.at_level(logging.WARNING):
        assert sizes(load_image_datasets(tmp_path, on_bad_row="skip")) == {"train": 3, "validation": 3}
    assert caplog.text.count("left out 2 bad rows") == 1


def test_errors_say_what_is_there_and_what_to_do(tmp_path):
    def refused(source, match, **options):
        with pytest.raises(ValueError, match=match):
            load_image_datasets(source, **options)

    refused(
        "nowhere",
        r"no data set 'nowhere': nothing there \(looked at .*nowhere\)\. Give a folder, an .npz file or a table",
    )
    refused(tmp_path, "holds no pictures: expected folders train, val and test")
    refused(tmp_path, "on_bad_row='ignore': expected", on_bad_row="ignore")
    (tmp_path / "a.txt").touch()
    refused(tmp_path / "a.txt", "is no folder, and neither .npz nor a table")
    for name in ("a.npz", "b.npz"):
        npz(tmp_path / "two" / name, train=2, test=2)
    refused(tmp_path / "two", "several .npz files: a.npz, b.npz. Name one")
    for split in ("val", "valid"):
        pictures(tmp_path / "both" / split, cat=1)
    refused(tmp_path / "both", "holds val, valid for the validation split. Keep one")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    refused(tmp_path / "empty", "holds no usable picture")
    refused(pictures(tmp_path / "few", cat=1, dog=1), "too few to set some aside")
    pictures(tmp_path / "half", cat=1)
    (tmp_path / "half" / "a.csv").write_text("image,label,split\ncat/000.png,x,train\ncat/000.png,x,\n")
    refused(tmp_path / "half", "a.csv:3: split is '', expected one of train")


@pytest.mark.skipif(not DATA_DIR, reason="needs the real data in LORA_DATA_DIR")
def test_pneumonia_mnist(monkeypatch):
    monkeypatch.setenv("LORA_DATA_DIR", DATA_DIR)
    datasets = load_image_datasets("pneumonia_mnist")
    assert sizes(datasets) == {"train": 2428, "validation": 270, "test": 468}
    assert datasets["train"].labels == ("normal", "pneumonia")


def test_several_labels_in_one_cell_are_no_classes(tmp_path):
    """As in NIH's table of chest X-rays."""
    labels = ["Effusion", "Cardiomegaly", "Cardiomegaly|Effusion", "Effusion|Mass"] * 10
    rows = []
    for number, label in enumerate(labels):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{label}")
    (tmp_path / "images.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    with pytest.raises(ValueError, match=r"'Cardiomegaly\|Effusion' is several labels in one.*--label-column"):
        load_image_datasets(tmp_path)
