"""Tables of pictures as people publish them: which file, which columns, which splits; and the bad rows."""

import io
import json
import logging

import numpy as np
import pytest
from PIL import Image

from trainers.data.images.decode import decode
from trainers.data.images.reader import load_image_datasets, read_image_splits
from trainers.data.reading import Reading
from trainers.data.rows import BadRows


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)


def pictures(root, names):
    for index, name in enumerate(names.split()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), index).save(root / name)
    return root


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(source, on_bad_row="error", **reading):
    """{split: {path below the source's folder: label}}, without the splits that are cut off."""
    datasets = load_image_datasets(source, on_bad_row=on_bad_row, reading=Reading(**reading))
    root = source if source.is_dir() else source.parent
    return {
        split: {str(path.relative_to(root)): dataset.labels[target] for path, target in zip(*rows, strict=True)}
        for split, dataset in datasets.items()
        for rows in [(dataset.images, dataset.targets)]
    }


def merged(found):
    """All splits together."""
    return {path: label for rows in found.values() for path, label in rows.items()}


TWENTY = [f"p/{number}.png" for number in range(20)]
LABELS = ["cat", "dog"] * 10
EXPECTED = dict(zip(TWENTY, LABELS, strict=True))


@pytest.fixture
def data(tmp_path):
    return pictures(tmp_path, " ".join(TWENTY))


@pytest.mark.parametrize(
    "column", ["image", "File", "filename", "file_name", "path", "filepath", "image_path", "Image Index"]
)
@pytest.mark.parametrize("label", ["label", "Class", "category", "breed"])
def test_columns_by_usual_names(data, column, label):
    write(data / "a.csv", f"age,{column},{label}", *(f"7,{path},{name}" for path, name in EXPECTED.items()))
    assert merged(read(data)) == EXPECTED


def test_columns_by_what_they_hold(data):
    """Names that nobody knows: one column has pictures, and only one other is left."""
    write(data / "a.csv", "scan,finding", *(f"{path},{name}" for path, name in EXPECTED.items()))
    assert merged(read(data)) == EXPECTED
    write(data / "a.csv", *(f"{path},{name}" for path, name in EXPECTED.items()))  # no header at all
    assert merged(read(data)) == EXPECTED


@pytest.mark.parametrize("form", ["csv", "tsv", "semicolons", "jsonl", "json", "utf-16", "cp1252", "gz"])
def test_forms(data, form):
    import gzip

    labels = ["Kätzchen", "Hündin"] * 10
    rows = list(zip(TWENTY, labels, strict=True))
    delimiter = {"tsv": "\t", "semicolons": ";"}.get(form, ",")
    text = "\n".join(delimiter.join(row) for row in [("image", "label"), *rows])
    records = [{"image": path, "label": label} for path, label in rows]
    name, content = {
        "tsv": ("a.tsv", text.encode()),
        "jsonl": ("a.jsonl", "\n".join(map(json.dumps, records)).encode()),
        "json": ("a.json", json.dumps(records, indent=1).encode()),
        "utf-16": ("a.csv", text.encode("utf-16")),
        "cp1252": ("a.csv", text.encode("cp1252")),
        "gz": ("a.csv.gz", gzip.compress(text.encode())),
    }.get(form, ("a.csv", text.encode()))
    (data / name).write_bytes(content)
    assert merged(read(data)) == merged(read(data / name)) == dict(rows)


def test_what_the_user_says_about_the_file(data):
    lines = [f"{path}:{name}:{'xy'[number % 2]}" for number, (path, name) in enumerate(EXPECTED.items())]
    write(data / "a.csv", "image:label:kind", *lines)
    said = {"delimiter": ":", "label_column": "kind", "encoding": "latin-1"}
    assert merged(read(data, **said)) == {path: "xy"[number % 2] for number, path in enumerate(TWENTY)}
    with pytest.raises(ValueError, match=r"no column 'colour' \(--label-column\); it has \['image', 'label', 'kind'\]"):
        read(data, delimiter=":", label_column="colour")


def test_numeric_labels_are_names_of_classes(data):
    write(data / "a.csv", "image,label", *(f"{path},{number % 3}.0" for number, path in enumerate(TWENTY)))
    assert merged(read(data)) == {path: str(number % 3) for number, path in enumerate(TWENTY)}


def test_unused_columns_are_named(data, caplog):
    write(data / "a.csv", ",image,label,age,sex", *(f"1,{path},{name},7,f" for path, name in EXPECTED.items()))
    with caplog.at_level(logging.INFO):
        read(data)
    assert f"{data / 'a.csv'}: pictures from image, labels from label; not used: age, sex" in caplog.text


@pytest.mark.parametrize(
    ("header", "row", "problem"),
    [
        ("image,label,class", "{},a,b", "the label can be in label, class. Say which: --label-column label"),
        ("image,age,sex", "{},7,f", r"columns \['image', 'age', 'sex'\]: none is called .* --label-column age"),
        ("image,wind,rain", "{},1,1", "in some rows not exactly one of them is 1: several labels for a picture"),
        ("image,image,label", "{0},{0},a", "has the column 'image' twice"),
        ("number,label", "7,a", "none is called one of image, img"),
        ("image,path,label", "p/0.png,p/1.png,a", "each of the columns image, path could name the picture"),
        ("image", "{}", "none is left for the label"),
    ],
)
def test_what_is_ambiguous_lists_the_columns(tmp_path, header, row, problem):
    pictures(tmp_path, "p/0.png p/1.png")
    write(tmp_path / "a.csv", header, row.format("p/0.png"), row.format("p/1.png"))
    with pytest.raises(ValueError, match=problem):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize("one", ["1", "1.0"])
def test_a_column_for_each_class(data, one):
    zero = one.replace("1", "0")
    rows = [
        f"{path[2:-4]},{one if name == 'cat' else zero},{one if name == 'dog' else zero},{zero}"
        for path, name in EXPECTED.items()
    ]
    write(data / "a.csv", "image,cat,dog,UNK", *rows)
    assert merged(read(data)) == EXPECTED
    write(data / "a.csv", "image,cat,dog,UNK", *rows * 11, f"0,{one},{one},{zero}")
    with pytest.raises(ValueError, match=r"a\.csv:222: of the columns .* exactly one must be 1, but it is cat, dog"):
        read(data)


def test_skin_lesions_of_ham10000(tmp_path):
    """Names without endings in two folders, tables of pixels beside, labels in dx."""
    names = [f"ISIC_{number:04}" for number in range(40)]
    pictures(
        tmp_path, " ".join(f"HAM10000_images_part_{1 + number % 2}/{name}.jpg" for number, name in enumerate(names))
    )
    rows = [
        f"HAM_{number},{name},{('nv', 'mel')[number % 2]},histo,50.0,male,back" for number, name in enumerate(names)
    ]
    write(tmp_path / "HAM10000_metadata.csv", "lesion_id,image_id,dx,dx_type,age,sex,localization", *rows)
    write(tmp_path / "hmnist_2_2_L.csv", "pixel0000,pixel0001,label", "3,7,0", "2,1,1")
    found = merged(read(tmp_path))
    assert len(found) == 40
    assert found["HAM10000_images_part_2/ISIC_0001.jpg"] == "mel"


def test_a_competitions_tables(tmp_path, caplog):
    """train.csv of ids and labels, pictures of both splits under the same names, test.csv without labels."""
    names = [str(number) for number in range(20)]
    pictures(tmp_path, " ".join(f"{split}/{name}.jpg" for split in ("train", "test") for name in names))
    write(tmp_path / "train.csv", "id,breed", *(f"{name},{'xy'[int(name) % 2]}" for name in names))
    write(tmp_path / "test.csv", "id", *names)
    write(tmp_path / "sample_submission.csv", "id,breed", *(f"{name},x" for name in names))
    found = read(tmp_path)
    assert found.keys() == {"train", "validation"}
    assert merged(found) == {f"train/{name}.jpg": "xy"[int(name) % 2] for name in names}
    assert "not read: " in caplog.text
    assert "test.csv has no column 'breed'" in caplog.text
    write(tmp_path / "test.csv", "id,breed", *(f"{name}," for name in names))
    assert read(tmp_path) == found
    assert "test.csv: breed is empty: it has no labels" in caplog.text


def test_metadata_beside_the_pictures_of_each_split(tmp_path):
    for split in ("train", "validation", "test"):
        pictures(tmp_path / split, "0.png 1.png")
        rows = [{"file_name": f"{number}.png", "label": number, "text": "two cats"} for number in (0, 1)]
        write(tmp_path / split / "metadata.jsonl", *map(json.dumps, rows))
    expected = {split: {f"{split}/0.png": "0", f"{split}/1.png": "1"} for split in ("train", "validation", "test")}
    assert read(tmp_path) == expected
    rows = [f"{split}/{number}.png,{number}" for split in expected for number in (0, 1)]
    for split in expected:
        (tmp_path / split / "metadata.jsonl").unlink()
    write(tmp_path / "metadata.csv", "file_name,label", *rows)  # one for all: the folders tell the splits
    assert read(tmp_path) == expected
    pictures(tmp_path, "other/2.png")
    write(tmp_path / "metadata.csv", "file_name,label", *rows, "other/2.png,1")
    with pytest.raises(ValueError, match="1 of 7 pictures lie outside of the folders of splits"):
        read(tmp_path)


def test_the_split_column_in_every_wording(data):
    for column, words in {"split": ("Training", "VAL", "testing "), "set": ("train", "dev", "test")}.items():
        lines = [f"{path},{name},{words[number // 7]}" for number, (path, name) in enumerate(EXPECTED.items())]
        write(data / "a.csv", f"image,label,{column}", *lines)
        assert [len(rows) for rows in read(data).values()] == [7, 7, 6]
    write(data / "a.csv", "image,label,split", "p/0.png,x,train", "p/1.png,x,tset")
    with pytest.raises(ValueError, match=r"a\.csv:3: split is 'tset', expected one of train, training"):
        read(data)


def test_a_table_and_folders_of_classes(tmp_path, caplog):
    pictures(tmp_path, " ".join(f"{name}/{number}.png" for name in "ab" for number in range(20)))
    lines = [f"{name}/{number}.png,{'xy'[number % 2]}" for name in "ab" for number in range(20)]
    write(tmp_path / "labels.csv", "image,label", *lines)
    with caplog.at_level(logging.INFO):
        assert set(merged(read(tmp_path)).values()) == {"x", "y"}
    assert "a table is read; the names of folders do not count as classes" in caplog.text
    write(tmp_path / "labels.csv", "name,remark", "Ann,good")
    assert set(merged(read(tmp_path)).values()) == {"a", "b"}
    assert "the folders of classes are read, and not labels.csv (" in caplog.text


def test_a_table_beside_folders_of_splits(tmp_path, caplog):
    pictures(tmp_path, " ".join(f"{split}/{name}/1.png" for split in ("train", "val", "test") for name in "ab"))
    write(tmp_path / "labels.csv", "image,label", "train/a/1.png,x", "val/b/1.png,y")
    assert set(merged(read(tmp_path)).values()) == {"a", "b"}
    assert (
        f"the folders of classes are read, and not this table. To read it: --data {tmp_path / 'labels.csv'}"
        in caplog.text
    )


def test_several_tables(data):
    for name in ("a.csv", "b.csv"):
        write(data / name, "image,label", "p/0.png,x", "p/1.png,y")
    with pytest.raises(ValueError, match=r"holds several \.csv files: a\.csv, b\.csv\. Name one"):
        read(data)


@pytest.mark.parametrize("stored", ["bytes", "path"])
def test_parquet_as_the_hub_stores_pictures(data, stored):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def cell(path):
        return (
            {"bytes": (data / path).read_bytes(), "path": path[2:]}
            if stored == "bytes"
            else {"bytes": None, "path": path}
        )

    table = pyarrow.table({"image": [cell(path) for path in TWENTY], "label": [number % 2 for number in range(20)]})
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    folder = data / "hub" / "data" if stored == "bytes" else data
    folder.mkdir(parents=True, exist_ok=True)
    names = ["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"]
    for name, start in zip(names, (0, 7, 14), strict=True):
        parquet.write_table(table.slice(start, 7), folder / f"{name}.parquet")
    datasets = load_image_datasets(data / "hub" if stored == "bytes" else data)
    assert len(datasets["train"]) + len(datasets["validation"]) == 14
    assert datasets["test"].labels == ("cat", "dog")
    assert datasets["test"].targets.tolist() == [number % 2 for number in range(14, 20)]
    assert [int(np.asarray(decode(image))[0, 0]) for image in datasets["test"].images] == list(range(14, 20))


def test_a_damaged_picture_in_parquet_is_a_bad_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    content = io.BytesIO()
    Image.new("L", (4, 4)).save(content, "PNG")
    cells = [{"bytes": content.getvalue(), "path": None}] * 4 + [{"bytes": b"?", "path": None}]
    parquet.write_table(pyarrow.table({"image": cells, "label": list("ababa")}), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=r"test\.parquet:5: not a picture"):
        load_image_datasets(tmp_path)
    assert len(load_image_datasets(tmp_path, on_bad_row="skip")["test"]) == 4


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("missing.png,x", "missing.png: no such file"),
        ("p/0.png,", "label is empty: a picture without a label"),
        (",x", "image is empty: a label without a picture"),
        ("p/0.png", "1 columns, expected 2"),
        ("p/0.png,x,more", "3 columns, expected 2"),
        ("../outside.png,x", "image is '../outside.png', outside of"),
        ("/etc/hostname,x", "image is '/etc/hostname', outside of"),
        ("text.png,x", "text.png: not a picture"),
        ("twin.png,x", "image is 'twin.png', which several pictures are called: q/twin.png, r/twin.png. Give their"),
    ],
)
def test_bad_rows_are_named_or_left_out(data, caplog, row, problem):
    pictures(data, "q/twin.png r/twin.png")
    pictures(data.parent, "outside.png")
    (data / "text.png").write_text("no picture")
    good = [f"{path},{name}" for path, name in EXPECTED.items()]
    write(data / "a.csv", "image,label", *good, row)
    with pytest.raises(ValueError, match=problem) as error:
        read(data)
    assert str(error.value).startswith(f"{data / 'a.csv'}:22: ")
    assert "--on-bad-row skip" in str(error.value)
    assert merged(read(data, "skip")) == EXPECTED
    assert f"left out 1 bad rows: {data / 'a.csv'}:22: " in caplog.text


def test_a_row_that_is_not_text_is_a_bad_row(data):
    write(data / "a.csv", "image,label", *(f"{path},{name}" for path, name in EXPECTED.items()))
    with (data / "a.csv").open("ab") as file:
        file.write(b"p/0.png,\xff\n")
    with pytest.raises(ValueError, match=r"a\.csv:22: not UTF-8"):
        read(data)
    assert merged(read(data, "skip")) == EXPECTED


def test_paths_elsewhere_are_read_from_the_data_folder_that_the_user_named(tmp_path, monkeypatch):
    pictures(tmp_path / "store", "a.png b.png")
    write(tmp_path / "tables" / "test.csv", "image,label", f"{tmp_path / 'store' / 'a.png'},x", "../store/b.png,y")
    with pytest.raises(ValueError, match=r"test\.csv:2: .*set LORA_DATA_DIR"):
        load_image_datasets(tmp_path / "tables")
    monkeypatch.setenv("LORA_DATA_DIR", str(tmp_path / "store"))
    assert len(load_image_datasets(tmp_path / "tables")["test"]) == 2


def test_links_inside_may_point_anywhere(tmp_path):
    pictures(tmp_path / "blobs", "a.png")
    write(tmp_path / "snapshot" / "test.csv", "image,label", "a.png,x")
    (tmp_path / "snapshot" / "a.png").symlink_to(tmp_path / "blobs" / "a.png")  # the layout of the hub's cache
    assert len(load_image_datasets(tmp_path / "snapshot")["test"]) == 1


@pytest.mark.parametrize("content", [b"", b"image,label\n"])
def test_empty_tables(tmp_path, content):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.csv (holds no usable picture|has the columns \[\])"):
        read(tmp_path / "a.csv")


def test_a_table_of_training_labels_names_the_pictures_of_its_folder(tmp_path):
    """Kaggle's CIFAR-10: trainLabels.csv, and pictures of the same names in train and test."""
    pictures(tmp_path, " ".join(f"{split}/{number}.png" for split in ("train", "test") for number in range(20)))
    write(tmp_path / "trainLabels.csv", "id,label", *(f"{number},{LABELS[number]}" for number in range(20)))
    write(tmp_path / "sampleSubmission.csv", "id,label", "1,cat")
    assert merged(read(tmp_path)) == {f"train/{number}.png": LABELS[number] for number in range(20)}


def test_tables_without_a_header_and_columns_by_number(data, caplog):
    write(data / "a.csv", *(f"7,{path},{name},f" for path, name in EXPECTED.items()))
    assert merged(read(data, label_column="3")) == merged(read(data, label_column="-2")) == EXPECTED
    write(data / "a.csv", *(f"{number},{name}" for number, name in enumerate(LABELS)))  # no endings
    assert merged(read(data)) == EXPECTED
    write(data / "a.csv", "image,kind,colour", *(f"{path},x,{name}" for path, name in EXPECTED.items()))
    assert merged(read(data, label_column="3")) == EXPECTED


def test_labels_that_may_be_several_with_blanks_between_are_said(data, caplog):
    kinds = ["clear primary", "haze primary", "haze water", "clear water", "primary"]
    write(data / "a.csv", "image,label", *(f"{path},{kinds[number % 5]}" for number, path in enumerate(TWENTY * 3)))
    read(data)
    assert "the 5 classes are made of 4 words, such as 'clear primary'" in caplog.text
    caplog.clear()
    kinds = ["golden retriever", "labrador retriever", "beagle", "pug", "great dane"]
    write(data / "a.csv", "image,label", *(f"{path},{kinds[number % 5]}" for number, path in enumerate(TWENTY * 3)))
    read(data)
    assert "are made of" not in caplog.text


def test_labels_whose_words_are_classes_themselves_are_several(data):
    """As in the leaves of Plant Pathology 2021."""
    kinds = ["scab rust", "rust complex", "scab", "rust", "complex"]
    write(data / "a.csv", "image,labels", *(f"{path},{kinds[number % 5]}" for number, path in enumerate(TWENTY)))
    for source in (data, data / "a.csv"):
        with pytest.raises(ValueError, match=r"'rust complex' is several labels in one.*--label-column.*write _"):
            read_image_splits(source, BadRows("error"))


def test_lists_that_pandas_spelled_in_cells_are_several(data):
    kinds = ["['a']", "['a', 'b']"]
    write(data / "a.csv", "image,label", *(f'{path},"{kinds[number % 2]}"' for number, path in enumerate(TWENTY)))
    with pytest.raises(ValueError, match=r"\['a', 'b'\].* is several labels in one"):
        read(data)


def test_pictures_in_no_row_are_named_with_their_folder(tmp_path, caplog):
    """As in Kaggle's dog breeds: labels.csv, train/ and test/."""
    data = pictures(tmp_path, " ".join(f"train/a{n}.jpg test/b{n}.jpg" for n in range(20)))
    write(data / "labels.csv", "id,breed", *(f"a{n},{LABELS[n]}" for n in range(20)))
    assert merged(read(data)) == {f"train/a{n}.jpg": LABELS[n] for n in range(20)}
    assert f"{data / 'test'}: 20 of its pictures stand in no row of the table, and are left out" in caplog.text
    assert f"`lora-core predict RUN {data / 'test'}` reads such" in caplog.text


def test_the_table_of_each_split_among_its_loose_pictures(tmp_path):
    """Roboflow's _classes.csv, with blanks behind the commas."""
    for split, count in (("train", 20), ("valid", 6), ("test", 4)):
        pictures(tmp_path, " ".join(f"{split}/{split}{n}_jpg.rf.a{n}.jpg" for n in range(count)))
        rows = (f"{split}{n}_jpg.rf.a{n}.jpg, {1 - n % 2}, {n % 2}" for n in range(count))
        write(tmp_path / split / "_classes.csv", "filename, cat, dog", *rows)
    found = read(tmp_path)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 20, "validation": 6, "test": 4}
    assert found["test"] == {f"test/test{n}_jpg.rf.a{n}.jpg": LABELS[n] for n in range(4)}


def test_tables_with_a_split_that_folders_of_classes_lack(tmp_path, caplog):
    """German traffic signs: Train/0/..., Test/... with Train.csv and Test.csv."""
    pictures(tmp_path, " ".join(f"Train/{n % 2}/0000{n % 2}_{n:05}.png" for n in range(20)))
    pictures(tmp_path, " ".join(f"Test/{n:05}.png" for n in range(6)) + " Meta/0.png Meta/1.png")
    header = "Width,Height,Roi.X1,ClassId,Path"
    train = [f"27,26,5,{n % 2},Train/{n % 2}/0000{n % 2}_{n:05}.png" for n in range(20)]
    write(tmp_path / "Train.csv", header, *train)
    write(tmp_path / "Test.csv", header, *(f"27,26,5,{n % 2},Test/{n:05}.png" for n in range(6)))
    write(tmp_path / "Meta.csv", "Path,ClassId,ShapeId", "Meta/0.png,0,1", "Meta/1.png,1,1")
    found = read(tmp_path)
    assert found["test"] == {f"Test/{n:05}.png": str(n % 2) for n in range(6)}
    assert len(found["train"]) + len(found["validation"]) == 20
    assert "Meta.csv is not read beside the tables of splits" in caplog.text
    assert f"{tmp_path / 'Meta'}: 2 of its pictures stand in no row" in caplog.text


def test_an_excel_file_of_pictures(data):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in [("image", "label"), *EXPECTED.items()]:
        book.active.append(row)
    book.save(data / "labels.xlsx")
    assert merged(read(data)) == EXPECTED
