"""Every row of the table of forms in trainers/README.md is read, as it stands there."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.data.images.batches import ImageDataset
from trainers.data.images.npz import write_npz
from trainers.data.images.reader import load_image_datasets

README = Path(__file__).resolve().parents[4] / "trainers" / "README.md"


def rows():
    """{form: (files, a row)} of the README's table of images."""
    part = README.read_text(encoding="utf-8").split("**Images**")[1].split("\n\n")[1]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()[2:]]
    return {form: (files, row) for form, files, row in cells}


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def npz(root, files, row):
    labels = ("normal", "pneumonia")
    dataset = ImageDataset(np.zeros((4, 28, 28), np.uint8), np.array([0, 1, 1, 0]), labels, "")
    assert "train_images" in row
    write_npz(root / re.match(r"\w+\.npz", files)[0], {"test": dataset})
    return ["normal", "pneumonia", "pneumonia", "normal"]


def folders(root, files, row):
    (first, cat), (last, dog) = re.findall(r"(\w+)/(\w+)/\w+\.\w+", files)
    for split in (first, last):
        for number in range(20):
            picture(root / split / (cat, dog)[number % 2] / f"{number}.png")
    return [cat] * 10 + [dog] * 10


def table(root, files, row):
    """The README's header and line, of the test split, with the picture that the line names somewhere below."""
    header, line = re.findall(r"`([^`]+)`", row)
    (values,) = csv.DictReader(io.StringIO(f"{header}\n{line.replace('train', 'test')}"))
    name = values.get("image") or values["image_id"]
    picture(root / ("part_2" if "." not in name else "") / (name if "." in name else f"{name}.jpg"))
    (root / "test.csv").write_text(f"{header}\n{line.replace('train', 'test')}\n")
    return [values.get("label") or values.get("dx") or "NV"]


def json_lines(root, files, row):
    (line,) = re.findall(r"`([^`]+)`", row)
    picture(root / "test" / json.loads(line)["file_name"])
    (root / "test" / re.match(r"[\w.]+", files)[0]).write_text(line)
    return [json.loads(line)["label"]]


def parquet(root, files, row):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    picture(root / "1.png")
    cells = [{"bytes": (root / "1.png").read_bytes(), "path": "1.png"}]
    name, label = re.findall(r"`(image|label)`", row)
    parquet.write_table(pyarrow.table({name: cells, label: ["cat"]}), root / files.replace("train", "test"))
    return ["cat"]


def arrow(root, files, row):
    pyarrow = pytest.importorskip("pyarrow")
    picture(root / "1.png")
    cells = [{"bytes": (root / "1.png").read_bytes(), "path": "1.png"}]
    table = pyarrow.table({"image": cells, "label": ["cat"]})
    path = root / files.replace("train", "test")
    path.parent.mkdir()
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    (root / "test" / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    (root / "dataset_dict.json").write_text('{"splits": ["test"]}')
    return ["cat"]


FORMS = {
    "MedMNIST": npz,
    "a folder for each class": folders,
    "CSV": table,
    "names without endings": table,
    "a column for each class": table,
    "JSON lines": json_lines,
    "parquet": parquet,
    "Arrow, by save_to_disk": arrow,
}


def test_every_form_has_a_test():
    assert rows().keys() == FORMS.keys()


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_read_as_the_readme_says(tmp_path, monkeypatch, form):
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)
    expected = FORMS[form](tmp_path, *rows()[form])
    dataset = load_image_datasets(tmp_path)["test"]
    assert [dataset.labels[target] for target in dataset.targets] == expected
