"""brat's pairs: in a folder, in folders of splits, in a zip, alone."""

import zipfile

import pytest

from trainers.data.spans.align import words_and_tags
from trainers.data.spans.brat import pair_names, read_pair, splits_of_pairs

TEXT = "Anna left\nNew York.\n"
ANN = "T1\tPER 0 4\tAnna\nT2\tLOC 10 18\tNew York\nR1\tlives Arg1:T1 Arg2:T2\n#1\tAnnotatorNotes T1\tsure\n"
TAGS = ["B-PER", "O", "B-LOC", "I-LOC", "O"]


def write(folder, name="a", text=TEXT, ann=ANN):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_bytes(text.encode())
    (folder / f"{name}.ann").write_bytes(ann.encode())


def read(path, name="a.ann"):
    noted = []

    def note(what, where):
        noted.append((what, where))

    return *words_and_tags(read_pair(path, name, note), note), noted


def test_a_pair(tmp_path):
    write(tmp_path)
    words, tags, noted = read(tmp_path)
    assert words == ["Anna", "left", "New", "York", "."]
    assert tags == TAGS
    assert [where for _, where in noted] == ["a.ann line 3", "a.ann line 4"]
    assert read(tmp_path / "a.ann")[1] == TAGS


def test_a_pair_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "brat.zip", "w") as archive:
        archive.writestr("train/a.txt", TEXT)
        archive.writestr("train/a.ann", ANN)
        archive.writestr("__MACOSX/train/._a.ann", "")
    assert pair_names(tmp_path / "brat.zip") == ["train/a.ann"]
    assert read(tmp_path / "brat.zip", "train/a.ann")[1] == TAGS


def test_spans_of_several_parts(tmp_path):
    write(tmp_path, text="left and right lung\n", ann="T1\tOrgan 0 4;15 19\tleft lung\n")
    _, tags, noted = read(tmp_path)
    assert tags == ["B-Organ", "I-Organ", "I-Organ", "I-Organ"]
    assert noted == [
        (
            "spans have several parts and were taken from the first to the last",
            "a.ann line 1: span 0-4;15-19 'Organ' 'left and right lung'",
        )
    ]


@pytest.mark.parametrize("start", [11, 10])
def test_carriage_returns_count_as_brat_counts_them_or_not(tmp_path, start):
    ann = f"T1\tLOC {start} {start + 8}\tNew York\r\n"
    write(tmp_path, text=TEXT.replace("\n", "\r\n"), ann=ann)
    assert read(tmp_path)[1] == ["O", "O", "B-LOC", "I-LOC", "O"]


@pytest.mark.parametrize(
    ("ann", "problem"),
    [
        ("T1\tPER 0\tAnna\n", r"a.ann line 1: expected T1<TAB>TYPE START END<TAB>TEXT, got 'T1\\tPER 0\\tAnna'"),
        ("\nT1\tPER 0 4\tAnne\n", "a.ann line 2: span 0-4 'PER' 'Anna' should be 'Anne'"),
        ("T1\tPER 0 400\tAnna\n", "a.ann line 1: span 0-400 'PER' .* lies outside of the text"),
    ],
)
def test_damaged_lines(tmp_path, ann, problem):
    write(tmp_path, ann=ann)
    with pytest.raises(ValueError, match=problem):
        read(tmp_path)


def test_a_pair_without_its_text(tmp_path):
    write(tmp_path)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"a.ann has no a.txt beside it"):
        read(tmp_path)


def test_splits_of_pairs(tmp_path):
    write(tmp_path / "train" / "x")
    write(tmp_path / "Dev")
    write(tmp_path / "guidelines")
    found = splits_of_pairs(pair_names(tmp_path))
    assert found == {"Dev/a.ann": "validation", "train/x/a.ann": "train"}
    assert splits_of_pairs(["train.ann", "test.ann"]) == {"train.ann": "train", "test.ann": "test"}
    assert splits_of_pairs(["test.ann", "a.ann"]) == {"test.ann": "all", "a.ann": "all"}
