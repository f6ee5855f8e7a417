"""Files that strangers give to `lora-core predict`: each is read as what it is, or refused in a line."""

import gzip
import io
import json
import os
import sys
import threading

import pyarrow as pa
import pyarrow.parquet
import pytest

from trainers.cli import main
from trainers.serve import pipeline


@pytest.fixture(scope="module")
def classify(finished_text):
    return pipeline("text-classification", finished_text)


@pytest.fixture(scope="module")
def ner(finished):
    return pipeline("ner", finished["full"])


@pytest.fixture
def predict(finished, finished_text, tmp_path):
    """Runs the verb on a file of this content with the text classifier, or with ner, and gives the objects written."""

    def run(name, content, *arguments, model=None):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        output = tmp_path / "found.jsonl"
        main(["predict", str(model or finished_text), str(path), "--output", str(output), *arguments])
        return [json.loads(line) for line in output.read_text().split("\n")[:-1]]

    return run


ROWS = [{"id": "1", "text": "gene of il2"}, {"id": "2", "text": ""}, {"id": "3", "text": 'the "junb",\ngene'}]
CSV = 'id,text\n1,gene of il2\n2,\n3,"the ""junb"",\ngene"\n'


def parquet_bytes(rows):
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("new.csv", CSV),
        ("new.csv", CSV.encode("utf-16")),
        ("NEW.CSV", "\ufeff" + CSV.replace("\n", "\r\n").replace(",\r\n", ",\n")),
        ("new.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
        ("new.csv", CSV.replace("id,text", "id;text").replace("\n1,", "\n1;").replace("\n2,", "\n2;")
         .replace("\n3,", "\n3;")),
        ("new.parquet", parquet_bytes(ROWS)),
        ("new", parquet_bytes(ROWS)),
        ("new.json", json.dumps(ROWS)),
        ("new.json", json.dumps(ROWS, indent=2)),
        ("new.jsonl", "\n".join(map(json.dumps, ROWS))),
        ("new", "\n".join(map(json.dumps, ROWS))),
        ("new.json", json.dumps({"data": ROWS}, indent=2)),
    ],
)  # fmt: skip
def test_the_column_of_the_text_is_predicted_from_and_the_others_come_back(name, content, predict, classify):
    found = predict(name, content)
    assert [{key: row[key] for key in ("id", "text")} for row in found] == ROWS
    assert [row["labels"] for row in found] == [classify(row["text"]) for row in ROWS]


def test_the_user_names_column_and_delimiter(predict, classify):
    found = predict("new.txt", "a:b\nil2:gene\n", "--text-column", "b", "--delimiter", ":")
    assert found == [{"a": "il2", "b": "gene", "labels": classify("gene")}]
    found = predict("new.tsv", "title\tbody\nil2\tgene\n", "--text-column", "title,body")
    assert found[0]["labels"] == classify("il2 gene")


def test_dates_in_a_table_are_written(predict):
    import datetime

    (found,) = predict("new.parquet", parquet_bytes([{"text": "il2", "day": datetime.date(2024, 2, 29)}]))
    assert found["day"] == "2024-02-29"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("new.csv", "a,b\n1,2\n", "Name it: --text-column"),
        ("new.csv", "review,comment\nx,y\n", "several columns could be the text"),
        ("new.csv", "", "holds no rows"),
        ("new.xlsx", b"PK\x03\x04 cut", "new.xlsx is damaged or cut short"),
        ("new.conll", "il2 B-protein\n\n", "holds tagged words"),
        ("new.txt", "il2 B-protein\nbinds O\n\n", "holds tagged words"),
    ],
)
def test_what_is_not_clear_is_refused(name, content, message, predict, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        predict(name, content)
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "found.jsonl").exists()


@pytest.mark.parametrize("name", ["new.conll", "new.txt", "new.conll.gz"])
def test_sentences_with_a_word_a_line(name, predict, ner, finished):
    content = "-DOCSTART- -X- O\n\njunb\tB-protein\ngene\tO\n\n\nil2\tB-protein"
    content = content.replace("\t", " ")
    found = predict(name, gzip.compress(content.encode()) if name.endswith("gz") else content, model=finished["full"])
    assert [row["tokens"] for row in found] == [["junb", "gene"], ["il2"]]
    expected = ner([["junb", "gene"], ["il2"]])
    assert [row["entities"] for row in found] == json.loads(json.dumps(expected))


def test_lists_of_words_in_a_table(predict, ner, finished):
    content = parquet_bytes([{"tokens": ["the", "junb", "gene"]}, {"tokens": None}])
    found = predict("new.parquet", content, model=finished["full"])
    assert found[0]["entities"] == json.loads(json.dumps(ner([["the", "junb", "gene"]])[0]))
    assert found[1] == {"tokens": None, "error": found[1]["error"]}
    assert found[1]["error"].endswith("new.parquet:2: tokens is None, expected a list of strings")


BAD = {
    "new.csv": 'text,id\nil2,1\nthe,gene,2\njunb,3\n"gene',
    "new.jsonl": '{"text": "il2"}\n{"text": 3}\n{"text": "junb"}\n["gene"]',
    "new.txt": b"il2\n\xff\xfe\xff\njunb\n\xff\n",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_costs_one_line(name, predict, classify, caplog):
    found = predict(name, BAD[name], "--encoding", "utf-8")
    assert [row.get("labels") for row in found] == [classify("il2"), None, classify("junb"), None]
    for row, line in zip((1, 3), (3, 5) if name == "new.csv" else (2, 4), strict=True):
        assert f"{name}:{line}: " in found[row]["error"]
    assert '2 inputs could not be used and were marked with "error"' in caplog.text
    assert [row["labels"] for row in predict(name, BAD[name], "--encoding", "utf-8", "--on-bad-row", "skip")] == [
        classify("il2"), classify("junb"),
    ]  # fmt: skip
    assert "2 inputs could not be used and were left out" in caplog.text


def test_an_input_that_the_pipeline_refuses_costs_one_line(finished_image, tmp_path, capsys):
    from PIL import Image

    Image.new("L", (20, 16), 200).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG damaged")
    files = [str(tmp_path / name) for name in ("good.png", "bad.png", "good.png")]
    main(["predict", str(finished_image), *files])
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == third
    assert "bad.png" in second["error"]
    assert "labels" not in second


def test_output_is_whole_or_not_there(predict, tmp_path):
    output = tmp_path / "found.jsonl"
    output.write_text("of yesterday\n")
    with pytest.raises(SystemExit):
        predict("new.jsonl", '{"text": "il2"}\n{"text": 3}\n', "--on-bad-row", "error")
    assert output.read_text() == "of yesterday\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.jsonl", "new.jsonl"]


def test_output_is_zipped_by_its_name(predict, finished_text, tmp_path):
    (tmp_path / "in.txt").write_text("il2\n\ngene\n")
    main(["predict", str(finished_text), str(tmp_path / "in.txt"), "--output", str(tmp_path / "out.jsonl.gz")])
    with gzip.open(tmp_path / "out.jsonl.gz", "rt") as lines:
        assert [json.loads(line)["text"] for line in lines] == ["il2", "", "gene"]


def test_a_folder_and_a_file_are_not_taken_for_each_other(finished_text, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("il2\n")
    for arguments, message in (
        ([str(tmp_path)], "is a folder. Name the files in it"),
        ([str(tmp_path / "in.txt"), "--output", str(tmp_path)], "is a folder. Name a file in it"),
        ([str(tmp_path / "in.txt"), "--output", str(tmp_path / "in.txt" / "out")], "in.txt"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["predict", str(finished_text), *arguments])
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert len([line for line in error.splitlines() if line.startswith("error")]) == 1


@pytest.mark.parametrize(
    ("content", "arguments"),
    [
        (CSV.encode(), ["--input-format", "table"]),
        (CSV.encode(), ["--text-column", "text"]),
        (CSV.encode("cp1252"), ["--input-format", "table", "--encoding", "cp1252"]),
    ],
)
def test_a_table_on_standard_input(content, arguments, finished_text, monkeypatch, capsysbinary):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    main(["predict", str(finished_text), *arguments])
    found = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    assert [row["id"] for row in found] == ["1", "2", "3"]


def test_lines_with_tabs_that_may_be_columns_are_said(finished_text, tmp_path, capsys, caplog):
    (tmp_path / "sms.txt").write_text("ham\tsee you\nspam\twin now\n")
    main(["predict", str(finished_text), str(tmp_path / "sms.txt")])
    assert "sms.txt has tabs in every line: each whole line is taken for one text" in caplog.text
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.fixture
def from_stdin(finished_text, monkeypatch, capsysbinary):
    """Runs the verb on standard input and gives the objects written."""

    def run(content, *arguments):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        main(["predict", str(finished_text), *arguments])
        return [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]

    return run


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b"il2 gene\njunb\n", mtime=0),
        "il2 gene\njunb\n".encode("utf-16"),
        b'[{"text": "il2 gene"}, {"text": "junb"}]',
        b'[\n {"text": "il2 gene"},\n {"text": "junb"}\n]\n',
        parquet_bytes([{"text": "il2 gene"}, {"text": "junb"}]),
        b"text,label\nil2 gene,DNA\njunb,protein\n",  # the columns of training
    ],
)
def test_standard_input_is_read_as_what_it_is(content, from_stdin, classify):
    assert [row["labels"] for row in from_stdin(content)] == [[one] for one in classify(["il2 gene", "junb"])]


def test_nothing_on_standard_input_gives_nothing(from_stdin):
    assert from_stdin(b"") == []


def test_a_pipe_is_read_once_and_as_it_comes(predict, finished_text, classify, tmp_path):
    for name, content in {
        "a.jsonl": b'{"text": "il2"}\n',
        "b": gzip.compress(b"il2\n"),
        "c.csv": b"review,id\nil2,7\n",
    }.items():
        os.mkfifo(tmp_path / name)
        writer = threading.Thread(target=(tmp_path / name).write_bytes, args=(content,))
        writer.start()
        main(["predict", str(finished_text), str(tmp_path / name), "--output", str(tmp_path / "found.jsonl")])
        writer.join()
        (row,) = map(json.loads, (tmp_path / "found.jsonl").read_text().splitlines())
        assert row["labels"] == classify("il2")


def test_what_looks_like_a_header_is_said(from_stdin, predict, caplog):
    assert len(from_stdin(b"id;review\n1;fine\n")) == 2
    assert "standard input begins with 'id;review', as a table does" in caplog.text
    predict("new.txt", "id;review\n1;fine\n")
    assert "new.txt begins with 'id;review', as a table does" in caplog.text


@pytest.mark.parametrize("content", [b"%PDF-1.7\n%\xe2\xe3\n1 0 obj\n", b"\xd0\xcf\x11\xe0" + bytes(9) + b"Word\n"])
def test_a_file_that_is_no_text_is_refused(content, predict, capsys):
    with pytest.raises(SystemExit):
        predict("new.doc", content)
    assert "new.doc is no text: its content is binary" in capsys.readouterr().err


def test_a_pattern_neither_reads_its_own_output_nor_passes_over_folders_in_silence(
    finished_text, tmp_path, capsys, caplog
):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("il2\n")
    (tmp_path / "in" / "more").mkdir()
    output = tmp_path / "in" / "found.txt"
    main(["predict", str(finished_text), str(tmp_path / "in" / "*"), "--output", str(output)])
    assert f"{tmp_path / 'in' / 'more'} is a folder, so what it holds is not read" in caplog.text
    before = output.read_text()
    with pytest.raises(SystemExit):
        main(["predict", str(finished_text), str(tmp_path / "in" / "*.txt"), "--output", str(output)])
    assert "it would be lost" in capsys.readouterr().err
    assert output.read_text() == before


def test_one_object_over_several_lines_is_one_input(predict, classify):
    (found,) = predict("new.json", json.dumps({"text": "il2 gene", "id": 7}, indent=2))
    assert (found["labels"], found["id"]) == (classify("il2 gene"), 7)


def test_sentences_in_the_cells_of_a_table_are_no_words_a_line(predict, ner, finished):
    (found,) = predict("new.csv", "tokens,tags\nthe junb gene,O B-protein O\n", model=finished["full"])
    assert found["entities"] == json.loads(json.dumps(ner("the junb gene")))


@pytest.mark.parametrize(
    ("ner_model", "columns", "message"),
    [(False, "1", "--columns is for models that label words"), (True, "9", "--columns is 9, but")],
)
def test_columns_that_do_not_fit(ner_model, columns, message, predict, finished, capsys):
    with pytest.raises(SystemExit):
        predict("new.txt", "il2 B-protein\n", "--columns", columns, model=finished["full"] if ner_model else None)
    assert message in capsys.readouterr().err
