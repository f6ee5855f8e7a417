import numpy as np
import pytest
from PIL import Image

from trainers.data.images.files import class_folders, read_class_folders, read_csv_files
from trainers.data.rows import BadRows


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)


def picture(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), shade).save(path)
    return path


def table(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"all": path}


def read(files, mode="error"):
    return read_csv_files(files, BadRows(mode))


def test_a_folder_for_each_class(tmp_path):
    for name in ("dog/2.JPG", "dog/deeper/1.png", "cat/b.png", "cat/a.webp", ".hidden/1.png", "empty/readme.txt"):
        if name.endswith("txt"):
            (tmp_path / "empty").mkdir()
            (tmp_path / name).write_text("no picture")
        else:
            picture(tmp_path / "train" / name)
    picture(tmp_path / "train" / "cat" / "._a.png").write_bytes(b"what macOS leaves")
    picture(tmp_path / "test" / "eel" / "1.png")
    folders = {split: tmp_path / split for split in ("train", "test")}
    datasets = read_class_folders(folders, BadRows("error"))
    assert datasets["train"].labels == datasets["test"].labels == (".hidden", "cat", "dog", "eel")
    assert [str(path.relative_to(tmp_path / "train")) for path in datasets["train"].images] == [
        ".hidden/1.png",
        "cat/a.webp",
        "cat/b.png",
        "dog/2.JPG",
        "dog/deeper/1.png",
    ]
    assert datasets["train"].targets.tolist() == [0, 1, 1, 2, 2]
    assert datasets["test"].targets.tolist() == [3]
    assert datasets["train"].source == str(tmp_path / "train")


def test_class_folders_may_be_links(tmp_path):
    picture(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere")
    assert [path.name for path in class_folders(tmp_path / "data")] == ["cat"]


def test_bad_pictures_are_named_or_left_out_and_counted(tmp_path):
    good = picture(tmp_path / "cat" / "1.png")
    (tmp_path / "cat" / "2.png").touch()
    cut = tmp_path / "cat" / "3.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cat/2\.png: the file is empty\. .*on_bad_row='skip'"):
        read_class_folders({"train": tmp_path}, BadRows("error"))
    bad_rows = BadRows("skip")
    assert list(read_class_folders({"train": tmp_path}, bad_rows)["train"].images) == [good]
    assert bad_rows.count == 2
    assert bad_rows.first[0] == f"{tmp_path / 'cat' / '2.png'}: the file is empty"
    assert bad_rows.first[1].startswith(f"{cut}: damaged or cut short")


@pytest.mark.parametrize("header", ["image,label", "path,class", "label,file_name", "filename,age,label"])
def test_a_table_of_paths(tmp_path, header):
    a, b = picture(tmp_path / "pictures" / "a.png"), picture(tmp_path / "b, c.png")
    values = {"image": "", "path": "", "file_name": "", "filename": "", "label": "", "class": "", "age": "7"}
    lines = [header]
    for path, label in ((a, "zebra"), (b, "1")):
        relative = f'"{path.relative_to(tmp_path)}"'
        row = (
            values
            | dict.fromkeys(("image", "path", "file_name", "filename"), relative)
            | dict.fromkeys(("label", "class"), label)
        )
        lines.append(",".join(row[column] for column in header.split(",")))
    dataset = read(table(tmp_path / "all.csv", *lines))["all"]
    assert list(dataset.images) == [a, b]
    assert dataset.labels == ("1", "zebra")
    assert dataset.targets.tolist() == [1, 0]


def test_the_split_column_and_a_file_for_each_split(tmp_path):
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    files = table(tmp_path / "all.csv", "image,label,split", "a.png,x,train", "b.png,y,val", "c.png,x,Training ")
    datasets = read(files)
    assert {split: len(dataset) for split, dataset in datasets.items()} == {"train": 2, "validation": 1}
    assert datasets["validation"].labels == ("x", "y")
    files = {
        split: table(tmp_path / f"{split}.csv", "image,label", row)["all"]
        for split, row in {"train": "a.png,x", "test": "b.png,y"}.items()
    }
    assert {split: dataset.targets.tolist() for split, dataset in read(files).items()} == {"train": [0], "test": [1]}
    assert read(files)["test"].source == str(files["test"])


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("missing.png,x", "missing.png: no such file"),
        ("a.png,", "expected 2 fields with image and label filled"),
        ("a.png", "expected 2 fields"),
        ("a.png,x,more", "expected 2 fields"),
        ("../a.png,x", "'../a.png', outside of"),
        ("/etc/hostname,x", "'/etc/hostname', outside of"),
        ("text.png,x", "text.png: not a picture"),
    ],
)
def test_bad_lines_are_named_or_left_out(tmp_path, row, problem):
    picture(tmp_path / "a.png")
    good = picture(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "text.png").write_text("no picture")
    files = table(tmp_path / "data" / "all.csv", "image,label", "a.png,x", row)
    with pytest.raises(ValueError, match=problem) as error:
        read(files)
    assert str(error.value).startswith(f"{files['all']}:3: ")
    assert list(read(files, "skip")["all"].images) == [good]


def test_an_unknown_split_is_a_bad_line(tmp_path):
    picture(tmp_path / "a.png")
    files = table(tmp_path / "all.csv", "image,label,split", "a.png,x,train", "a.png,x,tset")
    with pytest.raises(ValueError, match=r"all\.csv:3: split is 'tset', expected one of train, training, valid"):
        read(files)
    assert len(read(files, "skip")["train"]) == 1


def test_paths_elsewhere_are_read_from_the_data_folder_that_the_user_named(tmp_path, monkeypatch):
    a = picture(tmp_path / "store" / "a.png")
    files = table(tmp_path / "tables" / "all.csv", "image,label", f"{a},x", "../store/a.png,y")
    with pytest.raises(ValueError, match=r":2: .*set LORA_DATA_DIR"):
        read(files)
    monkeypatch.setenv("LORA_DATA_DIR", str(tmp_path / "store"))
    assert list(read(files)["all"].images) == [a, a]


def test_links_inside_may_point_anywhere(tmp_path):
    a = picture(tmp_path / "blobs" / "a.png")
    files = table(tmp_path / "snapshot" / "all.csv", "image,label", "a.png,x")
    (tmp_path / "snapshot" / "a.png").symlink_to(a)  # the layout of the hub's cache
    assert len(read(files)["all"]) == 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"picture,label\na.png,x\n", r"has the columns \['picture', 'label'\]: expected one of image, path"),
        (b"image,path,label\n", "has the columns"),
        (b"", "has the columns"),
        (b"image,label\n\xff.png,x\n", "not CSV in UTF-8"),
        (b'image,label\n"a.png,x\n', "not CSV in UTF-8"),
    ],
)
def test_files_that_are_no_table(tmp_path, content, problem):
    path = tmp_path / "all.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=problem) as error:
        read({"all": path})
    assert str(path) in str(error.value)
