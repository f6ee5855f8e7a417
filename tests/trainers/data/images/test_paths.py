from pathlib import Path

import pytest

from trainers.data.images.paths import Pictures, split_of_place


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)
    for name in ("train/1.jpg", "test/1.jpg", "train/a/2.PNG", "B.png", "b.png", "x.y.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("value", "split", "found"),
    [
        ("train/1.jpg", "", "train/1.jpg"),
        ("train\\a\\2.PNG", "", "train/a/2.PNG"),
        ("1", "train", "train/1.jpg"),
        ("1.jpg", "test", "test/1.jpg"),
        ("2", "", "train/a/2.PNG"),
        ("2.png", "", "train/a/2.PNG"),
        ("a/2", "", "train/a/2.PNG"),
        ("b", "", "b.png"),
        ("B.png", "", "B.png"),
        ("x.y", "", "x.y.jpg"),
        ("test/2", "", "test/2"),
        ("3", "", "3"),
    ],
)
def test_what_a_row_means(folder, value, split, found):
    assert Pictures(folder).find(value, split) == folder / found


@pytest.mark.parametrize("value", ["../1.jpg", "/etc/hostname", "train/../../1.jpg"])
def test_nothing_outside(folder, value):
    with pytest.raises(ValueError, match="outside of"):
        Pictures(folder).find(value)


def test_a_whole_path_in_a_folder_that_is_named_from_here(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert Pictures(Path(folder.name)).find(str(folder / "train/1.jpg")).samefile(folder / "train/1.jpg")
    with pytest.raises(ValueError, match="outside of"):
        Pictures(Path(folder.name)).find("/etc/hostname")


def test_several_fit(folder):
    with pytest.raises(ValueError, match=r"'1', which several pictures are called: test/1\.jpg, train/1\.jpg"):
        Pictures(folder).find("1")


def test_the_split_of_a_place():
    assert split_of_place(Path("data/Training/test/1.png")) == "train"
    assert split_of_place(Path("data/cat/test.png")) is None
