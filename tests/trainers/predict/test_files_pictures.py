"""`lora-core predict` on pictures: folders, patterns, and a damaged one among others."""

import json

import numpy as np
import pytest
from PIL import Image

from trainers.cli import main
from trainers.serve import pipeline


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for name in ("10.png", "2.JPG", "sub/3.png", "sub/.hidden.png", "__MACOSX/2.JPG"):
        path = tmp_path / "new" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(path)
    (tmp_path / "new" / "notes.docx").write_bytes(b"?")
    return tmp_path / "new"


def predicted(capsys, model, *arguments):
    main(["predict", str(model), *map(str, arguments)])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_folder_gives_a_row_for_each_picture(finished_image, folder, capsys):
    paths = [str(folder / name) for name in ("10.png", "2.JPG", "sub/3.png")]
    lines = predicted(capsys, finished_image, folder)
    classify = pipeline(None, finished_image)
    assert [line["image"] for line in lines] == paths
    for line in lines:
        (found,), (alone,) = line["labels"], classify(line["image"])
        assert found == {"label": alone["label"], "score": pytest.approx(alone["score"], abs=1e-6)}
    assert len({line["labels"][0]["score"] for line in lines}) > 1


def test_patterns(finished_image, folder, capsys):
    (folder / "[1].png").write_bytes((folder / "10.png").read_bytes())
    assert [line["image"] for line in predicted(capsys, finished_image, folder / "1*.png", folder / "*")] == [
        str(folder / name) for name in ("10.png", "10.png", "2.JPG", "[1].png", "notes.docx", "sub/3.png")
    ]
    assert [line["image"] for line in predicted(capsys, finished_image, folder / "[1].png")] == [
        str(folder / "[1].png")
    ]


def test_a_damaged_picture_costs_one_row(finished_image, folder, capsys, caplog):
    before = predicted(capsys, finished_image, folder)
    whole = (folder / "10.png").read_bytes()
    (folder / "11.png").write_bytes(whole[: len(whole) // 2])
    (folder / "12.png").touch()
    lines = predicted(capsys, finished_image, folder)
    scores = [[line["labels"][0]["score"] for line in some if "labels" in line] for some in (lines, before)]
    assert scores[0] == pytest.approx(scores[1])
    names = ("10.png", "11.png", "12.png", "2.JPG", "sub/3.png")
    assert [line["image"] for line in lines] == [str(folder / name) for name in names]
    assert f"{folder / '11.png'}: damaged or cut short" in lines[1]["error"]
    assert f"{folder / '12.png'}: the file is empty" in lines[2]["error"]
    assert "2 inputs could not be used" in caplog.text


def test_what_is_no_folder_of_pictures(finished_image, finished_text, folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for model, place, problem in (
        (finished_image, tmp_path / "empty", "empty is a folder without pictures"),
        (finished_text, folder, "new is a folder. Name the files in it"),
        (finished_image, folder / "*.bmp", r"\*.bmp does not exist"),
    ):
        with pytest.raises(SystemExit):
            main(["predict", str(model), str(place)])
        assert problem.replace("\\", "") in capsys.readouterr().err


def test_a_table_of_pictures_beside_it(finished_image, folder, capsys):
    classify = pipeline(model=finished_image)
    expected = classify([str(folder / name) for name in ("10.png", "sub/3.png")])
    (folder / "metadata.csv").write_text("patient,file_name,label\n7,10.png,dark\n8,sub/3.png,\n9,gone.png,dark\n")
    lines = predicted(capsys, finished_image, folder / "metadata.csv")
    assert [line["file_name"] for line in lines] == ["10.png", "sub/3.png", "gone.png"]
    assert [line["labels"][0]["score"] for line in lines[:2]] == pytest.approx([one["score"] for one in expected])
    assert "gone.png" in lines[2]["error"]
    (folder / "ids.csv").write_text("image_id,dx\n10,nv\n3,nv\n")
    lines = predicted(capsys, finished_image, folder / "ids.csv")
    assert [line["labels"][0]["score"] for line in lines] == pytest.approx([one["score"] for one in expected])
    (folder / "no.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit):
        main(["predict", str(finished_image), str(folder / "no.csv")])
    assert "Call the column of the pictures' paths image" in capsys.readouterr().err
