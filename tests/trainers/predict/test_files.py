import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainers.cli import main
from trainers.serve import pipeline

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def ner(finished):
    return pipeline("ner", finished["full"])


@pytest.fixture
def predict(finished, tmp_path):
    """Runs the verb and gives the lines that it writes."""

    def run(*arguments):
        output = tmp_path / "output" / "found.jsonl"
        main(["predict", str(finished["full"]), *map(str, arguments), "--output", str(output)])
        return output.read_text(encoding="utf-8").split("\n")[:-1]

    return run


def write(path, *lines):
    path.write_bytes(b"".join(line if isinstance(line, bytes) else line.encode() + b"\n" for line in lines))
    return path


def as_json(entities):
    return json.loads(json.dumps(entities))


def test_a_name_in_capitals_tells_the_format_too(predict, tmp_path):
    (line,) = predict(write(tmp_path / "IN.JSONL", "", '{"text": "il2", "id": 1}'))
    assert json.loads(line)["id"] == 1


def test_json_lines(predict, ner, tmp_path):
    records = [
        {"text": "il2 gene promoter", "id": 7},
        {"tokens": ["the", "junb", "gene"], "tags": [0, 1, 2]},
        {"text": "", "note": "žluťoučký"},
        {"tokens": []},
    ]
    path = write(tmp_path / "in.jsonl", b"\xef\xbb\xbf", json.dumps(records[0]), "", *map(json.dumps, records[1:]))
    lines = predict(path)
    assert [json.loads(line) for line in lines] == [
        {**record, "entities": as_json(ner([record.get("text", record.get("tokens"))])[0])} for record in records
    ]
    assert "žluťoučký" in lines[2]
    assert any(json.loads(line)["entities"] for line in lines)


def test_a_file_that_is_written_ends_with_a_summary(predict, tmp_path, caplog):
    caplog.set_level("INFO", "trainers")
    predict(write(tmp_path / "in.txt", "il2", "gene"))
    assert re.fullmatch(r".*found\.jsonl: 2 lines in \d+ s, \d+ a second", caplog.messages[-1])


def test_plain_text_gives_a_line_for_each_line(predict, ner, tmp_path):
    texts = ["il2 gene promoter", "", "  the junb\u2028gene\x0cof", "il2"]
    path = write(tmp_path / "in.txt", "\r\n".join(texts))
    lines = [json.loads(line) for line in predict(path, path)]
    assert [line["text"] for line in lines] == texts * 2
    assert [line["entities"] for line in lines] == [as_json(entities) for entities in ner(texts * 2)]


def test_other_fields_come_back_whatever_they_hold(predict, tmp_path):
    line = '{"text": "il2", "note": "\\ud800 é", "\\udfff": [1e400, null]}'
    (found,) = predict(write(tmp_path / "in.jsonl", line))
    assert {name: value for name, value in json.loads(found).items() if name != "entities"} == json.loads(line)


def test_text_for_reading(predict, ner, tmp_path):
    text = "the (junb) gene of il2 gene"
    entities = ner(text)
    assert len(entities) > 1
    expected = text
    for entity in reversed(entities):
        marked = f"[{entity['word']}]({entity['entity_group']})"
        expected = expected[: entity["start"]] + marked + expected[entity["end"] :]
    assert predict(write(tmp_path / "in.txt", text, ""), "--format", "text") == [expected, ""]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"txt": "a"}', r"in\.jsonl:2: expected a JSON object with 'text' or 'tokens'"),
        ('{"text": "a", "tokens": ["a"]}', r"in\.jsonl:2: expected a JSON object with 'text' or 'tokens'"),
        ('["a"]', r"in\.jsonl:2: expected a JSON object"),
        ('{"text": "a"', r"in\.jsonl:2: not JSON"),
        ("[" * 100_000, r"in\.jsonl:2: not JSON"),
        ('{"text": 3}', r"in\.jsonl:2: text is 3, expected a string"),
        ('{"tokens": ["a", null]}', r"in\.jsonl:2: tokens is .*expected a list of strings"),
        ('{"text": "\\ud800"}', r"in\.jsonl:2: .*half of a character"),
        (b"\xff\xfe\n", r"in\.jsonl:2: not UTF-8"),
    ],
)
def test_a_bad_line_is_named(line, message, finished, tmp_path, capsys):
    path = write(tmp_path / "in.jsonl", '{"text": "il2"}', line)
    with pytest.raises(SystemExit) as stopped:
        main(["predict", str(finished["full"]), str(path), "--on-bad-row", "error"])
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.txt"], "missing.txt does not exist"),
        (["in.txt", "--output", "in.txt"], "it would be lost"),
        (["in.txt", "--top-k", "2"], "no option 'top_k'"),
        (["in.txt", "--task", "text-classification"], "does token-classification, not text-classification"),
    ],
)
def test_wrong_arguments_stop_before_any_output(arguments, message, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.txt", "il2 gene")
    with pytest.raises(SystemExit):
        main(["predict", str(finished["full"]), *arguments])
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert (tmp_path / "in.txt").read_text() == "il2 gene\n"


def test_standard_input_that_begins_with_a_brace_is_json_lines(finished, monkeypatch, capsysbinary):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "il2 gene", "id": 1}\n')))
    main(["predict", str(finished["full"])])
    assert json.loads(capsysbinary.readouterr().out)["id"] == 1
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'\n \n{"text": "il2", "id": 1}\n\n')))
    main(["predict", str(finished["full"])])
    assert [json.loads(line)["text"] for line in capsysbinary.readouterr().out.splitlines()] == ["", " ", "il2"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "il2"}\n')))
    main(["predict", str(finished["full"]), "--input-format", "text"])
    assert json.loads(capsysbinary.readouterr().out)["text"] == '{"text": "il2"}'


def test_who_types_is_told_that_input_is_awaited(finished, monkeypatch, capsysbinary, caplog):
    typed = io.TextIOWrapper(io.BytesIO(b"il2 gene\n"))
    monkeypatch.setattr(typed, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", typed)
    with caplog.at_level("INFO"):
        main(["predict", str(finished["full"])])
    assert "Ctrl-D" in caplog.text
    assert json.loads(capsysbinary.readouterr().out)["text"] == "il2 gene"


def test_a_reader_that_has_enough_is_no_error(finished, tmp_path):
    path = write(tmp_path / "in.txt", *["il2 gene promoter"] * 2500)
    command = [sys.executable, "-W", "error", "-m", "trainers", "predict", str(finished["full"]), str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        first = json.loads(process.stdout.readline())
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(timeout=200) == 0, errors
    assert first["text"] == "il2 gene promoter"
    assert b"Broken" not in errors
    assert b"Traceback" not in errors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("to", ["", "--output"])
@pytest.mark.fault("a full disk under standard output", "a line: the file; exit status 4", "the output")
def test_a_full_disk_under_the_output_is_named(to, finished_text, tmp_path):
    (tmp_path / "in.txt").write_text("IL-2 binds\n")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "trainers", "predict", str(finished_text), str(tmp_path / "in.txt"),
             *([to, "/dev/full"] if to else [])],
            stdout=subprocess.DEVNULL if to else full, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
    assert done.returncode == 4
    (line,) = done.stderr.splitlines()[-1:]
    assert line.startswith("error: /dev/full could not be written: no space left on device; ")
    assert line.endswith("Make room there, or name a file elsewhere: --output FILE.")
