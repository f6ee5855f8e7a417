import csv
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.data.reading import Reading
from trainers.data.texts.reader import load_text_datasets

NAMES = ("World", "Sports")
cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=20).filter(
    str.strip
)


def strict(path, names=(), **reading):
    """(Text, name of the label) of all rows of a file called test, beside the names of its labels."""
    if names:
        (path.parent / "classes.txt").write_text("\n".join(names))
    (dataset,) = load_text_datasets(path.parent, reading=Reading(**reading)).values()
    return rows_of(dataset)


def rows_of(dataset):
    return [(text, dataset.labels[target]) for text, target in zip(dataset.texts, dataset.targets, strict=True)]


def lenient(path, caplog, names=()):
    """The rows that can be used, and what is said of the others."""
    if names:
        (path.parent / "classes.txt").write_text("\n".join(names))
    (dataset,) = load_text_datasets(path.parent, on_bad_row="skip").values()
    (message,) = [message for message in caplog.messages if message.startswith("left out")]
    return rows_of(dataset), message


@given(rows=st.lists(st.tuples(st.integers(1, 2), cells, cells), min_size=1, max_size=5), header=st.booleans())
def test_csv_gives_back_what_python_wrote(tmp_path_factory, rows, header):
    path = tmp_path_factory.getbasetemp() / "written" / "test.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        if header:
            writer.writerow(["Class Index", "Title", "Description"])
        writer.writerows(rows)
    expected = [(f"{title.strip()} {text.strip()}", NAMES[label - 1]) for label, title, text in rows]
    assert strict(path, NAMES) == expected


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
    path = tmp_path / "test.csv"
    path.write_text(content, encoding="utf-8")
    assert strict(path, NAMES) == expected


def test_bad_csv_rows_are_named_by_the_line_where_they_begin(tmp_path, caplog):
    path = tmp_path / "test.csv"
    path.write_bytes(b'1,"a\nb",c\n2,d\n3,e,f\n0,g,h\n1,\xff,i\n2,"x"y,z\n1, ,\t\n2,ok,yes\n1,"open\n')
    rows, message = lenient(path, caplog, NAMES)
    assert rows == [("a\nb c", "World"), ("ok yes", "Sports")]
    assert message.startswith("left out 7 bad rows: ")
    for problem in (
        "test.csv:3: 2 columns, expected 3: ['2', 'd']",
        "test.csv:6: not UTF-8",
        "test.csv:7: not CSV",
        "test.csv:8: an empty text",
        "test.csv:10: not CSV",
    ):
        assert problem in message
    with pytest.raises(ValueError, match=r"test.csv:3: 2 columns.*on_bad_row='skip'"):
        strict(path)


@pytest.mark.parametrize("label", ["0", "3", "Spor"])
def test_labels_that_are_not_declared_are_bad_rows(tmp_path, label):
    path = tmp_path / "test.csv"
    path.write_text(f"label,text\n1,a\n{label},b\n")
    with pytest.raises(ValueError, match=rf"test.csv:3: the label is '{label}', expected one of World, Sports, or an"):
        strict(path, NAMES)


@pytest.mark.parametrize("content", ["alpha,words\n1,a\n", "a\nb\n", "1\n2\n"])
def test_columns_that_are_not_known_are_listed(tmp_path, content):
    path = tmp_path / "test.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"test.csv has the columns .*: --text-column, --label-column and, for pairs"):
        strict(path)


@pytest.mark.parametrize("name", ["test.jsonl", "test.json", "test.jsonl.gz", "test.txt"])
def test_json_lines(tmp_path, name):
    rows = [{"text": " a\u2028b ", "label": 1, "id": 5}, {"title": "t", "description": "d", "Label": "World"}]
    content = b"\xef\xbb\xbf" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert strict(tmp_path / name, NAMES) == [("a\u2028b", "Sports"), ("t d", "World")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "a"}', "the row has no label"),
        (b'{"text": "a", "label": null}', "the row has no label"),
        (b'{"text": "a", "label": -1}', "the row has no label"),
        (b'{"label": 1}', "the object has no text"),
        (b'["a", 1]', "expected an object"),
        (b'{"text": "a", "label": 1', "not JSON"),
        (b'{"text": "\xe9", "label": 1}', "not UTF-8"),
        (b'{"text": null, "label": 1}', "the text is None, expected a string"),
        (b'{"text": " ", "label": 1}', "an empty text"),
        (b'{"text": "\\ud800", "label": 1}', "half of a character"),
        (b'{"text": "a", "label": 3}', "an id from 0 to 1"),
        (b'{"text": "a", "label": "Spor"}', "expected one of World, Sports"),
    ],
)
def test_bad_json_rows(tmp_path, caplog, line, problem):
    path = tmp_path / "test.jsonl"
    path.write_bytes(b'{"text": "a", "label": 0}\n' + line + b"\n")
    rows, message = lenient(path, caplog, NAMES)
    assert rows == [("a", "World")]
    assert "test.jsonl:2: " in message
    assert problem in message


def test_a_gzip_file_that_is_cut_short(tmp_path):
    path = tmp_path / "test.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a", "label": 1}\n' * 1000)[:-20])
    with pytest.raises(ValueError, match=r"test.jsonl.gz is damaged or cut short.*Fetch it again"):
        strict(path)


def test_parquet(tmp_path, caplog):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "test.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", None, "c"], "label": [0, 0, 1], "other": [0, 0, 0]}), path)
    rows, message = lenient(path, caplog, NAMES)
    assert rows == [("a", "World"), ("c", "Sports")]
    assert "test.parquet:2: the text is None, expected a string" in message
    parquet.write_table(pyarrow.table({"words": ["a"]}), path)
    with pytest.raises(ValueError, match=r"test.parquet has the columns 'words', and which of them hold the text"):
        strict(path)


def test_class_folders(tmp_path, caplog):
    for name, content in {
        "pos/2": b"b",
        "pos/10": b"c",
        "neg/1": b"a",
        "neg/2": b"\xff",
        "neg/3": b" ",
        "unsup/1": b"u",
    }.items():
        file = tmp_path / "test" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (tmp_path / "test" / "pos" / "notes.md").write_text("no text")
    rows, message = lenient(tmp_path / "test", caplog)
    assert rows == [("a", "neg"), ("c", "pos"), ("b", "pos")]
    assert "neg/2.txt: not UTF-8" in message
    assert "neg/3.txt: an empty text" in message
