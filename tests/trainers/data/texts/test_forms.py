import csv
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.data.labels import LabelNames
from trainers.data.rows import BadRows
from trainers.data.texts.forms import choose_columns, class_folder_rows, csv_rows, json_rows, parquet_rows

NAMES = LabelNames(("World", "Sports"), first_id=1)
ANY = LabelNames(None)
cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=20).filter(
    str.strip
)


def strict(reader, path, labels=ANY):
    return list(reader(path, labels, BadRows("error")))


def lenient(reader, path, labels=ANY):
    bad_rows = BadRows("skip")
    return list(reader(path, labels, bad_rows)), [problem.removeprefix(f"{path}") for problem in bad_rows.first]


@given(rows=st.lists(st.tuples(st.integers(1, 2), cells, cells), min_size=1, max_size=5), header=st.booleans())
def test_csv_gives_back_what_python_wrote(tmp_path_factory, rows, header):
    path = tmp_path_factory.getbasetemp() / "written.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        if header:
            writer.writerow(["Class Index", "Title", "Description"])
        writer.writerows(rows)
    expected = [(f"{title.strip()} {text.strip()}", NAMES.names[label - 1]) for label, title, text in rows]
    assert strict(csv_rows, path, NAMES) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("label,text\nSports,a\n\nWorld,b\n", [("a", "Sports"), ("b", "World")]),
        ("id,Text,Sentiment\n7,a,1\n8,b,2\n", [("a", "World"), ("b", "Sports")]),
        ("\ufeff2,a\n1,b", [("a", "Sports"), ("b", "World")]),
        ("Sports,a\nWorld,b", [("a", "Sports"), ("b", "World")]),
        ('1,"say ""a""\nor b",c', [('say "a"\nor b c', "World")]),
    ],
)
def test_csv_columns(tmp_path, content, expected):
    path = tmp_path / "train.csv"
    path.write_text(content, encoding="utf-8")
    assert strict(csv_rows, path, NAMES) == expected


def test_bad_csv_rows_are_named_by_the_line_where_they_begin(tmp_path):
    path = tmp_path / "train.csv"
    path.write_bytes(b'1,"a\nb",c\n2,d\n3,e,f\n0,g,h\n1,\xff,i\n2,"x"y,z\n1, ,\t\n2,ok,yes\n1,"open\n')
    rows, problems = lenient(csv_rows, path, NAMES)
    assert rows == [("a\nb c", "World"), ("ok yes", "Sports")]
    first = [
        "2 columns, expected 3: ['2', 'd']",
        "the label is '3', expected one of World, Sports, or an id from 1",
        "the label is '0'",
        "not UTF-8",
        "not CSV",
    ]
    assert [problem.split(":")[1] for problem in problems] == ["3", "4", "5", "6", "7"]
    assert all(expected in problem for expected, problem in zip(first, problems, strict=True))
    bad_rows = BadRows("skip")
    list(csv_rows(path, NAMES, bad_rows))
    assert bad_rows.count == 7
    with pytest.raises(ValueError, match=r"train.csv:3: 2 columns.*on_bad_row='skip'"):
        strict(csv_rows, path, NAMES)


@pytest.mark.parametrize("content", ["topic,words\n1,a\n", "a\nb\n", "1\n2\n"])
def test_csv_without_known_columns_says_what_is_known(tmp_path, content):
    path = tmp_path / "train.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"train.csv:1: .* a header needs one for the label \(label, .*title and desc"):
        strict(csv_rows, path, NAMES)


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.jsonl.gz"])
def test_json_lines(tmp_path, name):
    rows = [{"text": " a\u2028b ", "label": 2, "id": 5}, {"title": "t", "description": "d", "Label": "World"}]
    content = b"\xef\xbb\xbf" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert strict(json_rows, tmp_path / name, NAMES) == [("a\u2028b", "Sports"), ("t d", "World")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "a"}', "expected an object"),
        (b'["a", 1]', "expected an object"),
        (b'{"text": "a", "label": 1', "not JSON"),
        (b'{"text": "\xe9", "label": 1}', "not UTF-8"),
        (b'{"text": null, "label": 1}', "the text is None, expected a string"),
        (b'{"text": " ", "label": 1}', "an empty text"),
        (b'{"text": "\\ud800", "label": 1}', "half of a character"),
        (b'{"text": "a", "label": true}', "the label is True"),
        (b'{"text": "a", "label": 3}', "an id from 1 to 2"),
        (b'{"text": "a", "label": "Spor"}', "expected one of World, Sports"),
        (b'{"text": "a", "label": ["Sports"]}', "expected one of World, Sports"),
    ],
)
def test_bad_json_rows(tmp_path, line, problem):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"text": "a", "label": 1}\n' + line + b"\n")
    rows, problems = lenient(json_rows, path, NAMES)
    assert rows == [("a", "World")]
    assert problems[0].startswith(":2: ")
    assert problem in problems[0]


def test_a_gzip_file_that_is_cut_short(tmp_path):
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a", "label": 1}\n' * 1000)[:-20])
    with pytest.raises(ValueError, match=r"train.jsonl.gz is damaged or cut short.*Fetch it again"):
        strict(json_rows, path)


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", None, "c"], "label": [1, 1, 2], "other": [0, 0, 0]}), path)
    rows, problems = lenient(parquet_rows, path, NAMES)
    assert rows == [("a", "World"), ("c", "Sports")]
    assert problems == [":2: the text is None, expected a string"]
    parquet.write_table(pyarrow.table({"words": ["a"]}), path)
    with pytest.raises(ValueError, match=r"has the columns \['words'\], but needs one for the label"):
        strict(parquet_rows, path)


def test_class_folders(tmp_path):
    for name, content in {
        "pos/2": b"b",
        "pos/10": b"c",
        "neg/1": b"a",
        "neg/2": b"\xff",
        "neg/3": b" ",
        "unsup/1": b"u",
    }.items():
        file = tmp_path / f"{name}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    (tmp_path / "pos" / "notes.md").write_text("no text")
    rows, problems = lenient(class_folder_rows, tmp_path)
    assert rows == [("a", "neg"), ("c", "pos"), ("b", "pos")]
    assert problems[0].startswith("/neg/2.txt: not UTF-8")
    assert problems[1] == "/neg/3.txt: an empty text"


def test_columns_are_found_in_any_case_and_keep_their_spelling():
    assert choose_columns(["Class Index", "Title", "Description"]) == (["Title", "Description"], "Class Index")
    assert choose_columns(["label", "title", "TEXT"]) == (["TEXT"], "label")
    assert choose_columns(["text"]) is None
    assert choose_columns(["label"]) is None
