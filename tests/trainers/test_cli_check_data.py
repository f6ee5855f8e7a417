"""The verb check-data, on data of every layout that training takes, and on those of FiNER-139."""

import json

import pytest

from trainers.cli import main

ROWS = [("5 % notes", "B-Rate O O"), ("no debt", "O O")]


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)


def tner(folder):
    labels = {"O": 0, "B-Rate": 1}
    (folder / "label.json").write_text(json.dumps(labels))
    for split in ("train", "valid", "test"):
        rows = [{"tokens": w.split(), "tags": [labels[tag] for tag in t.split()]} for w, t in ROWS]
        (folder / f"{split}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))


def conll(folder):
    for split in ("train", "dev", "test"):
        blocks = ["\n".join(f"{w} {t}" for w, t in zip(*map(str.split, row), strict=True)) for row in ROWS]
        (folder / f"{split}.conll").write_text("\n\n".join(blocks) + "\n")


def json_lines(folder):
    for split in ("train", "validation", "test"):
        rows = [{"tokens": w.split(), "ner_tags": t.split()} for w, t in ROWS]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("write", [tner, conll, json_lines])
def test_the_same_figures_for_every_layout(tmp_path, capsys, write):
    data = tmp_path / "data"
    data.mkdir()
    write(data)
    main(["check-data", str(data), "--output-dir", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "| with entities                  |  1 (50.0%) |  1 (50.0%) |  1 (50.0%) |" in out
    assert "| Rate                  |     1 |          1 |    1 |" in out
    assert "2 of 2 test sentences (100.0%) also stand in the training split." in out
    for suffix in ("md", "json", "png"):
        path = tmp_path / "out" / f"statistics.{suffix}"
        assert path.stat().st_size
        assert str(path) in out


def test_damaged_rows_stop_it_or_are_counted(tmp_path, capsys):
    json_lines(tmp_path)
    with (tmp_path / "test.jsonl").open("a") as file:
        file.write('{"tokens": ["a"], "ner_tags": ["?Rate"]}\n')
    arguments = ["check-data", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "test.jsonl:3: tag '?Rate' " in capsys.readouterr().err
    main([*arguments, "--on-bad-row", "skip"])
    assert "1 rows cannot be used and were left out" in capsys.readouterr().out


def test_a_label_file_names_the_ids(tmp_path, capsys):
    (tmp_path / "train.jsonl").write_text('{"tokens": ["5"], "ner_tags": [1]}\n')
    (tmp_path / "names.txt").write_text("O\nB-Rate\n")
    main(
        ["check-data", str(tmp_path), "--label-file", str(tmp_path / "names.txt"), "--output-dir", str(tmp_path / "o")]
    )
    assert "| Rate                  |     1 |" in capsys.readouterr().out
