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


def test_a_file_too_small_to_be_cut_is_counted_whole(tmp_path, capsys):
    (tmp_path / "few.csv").write_text("text,label\na fine film,good\na dull film,bad\nfine,good\n")
    flags = ["--task", "text-classification", "--output-dir", str(tmp_path / "out")]
    main(["check-data", str(tmp_path / "few.csv"), *flags])
    assert "| good                | 2 (66.7%) |" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "statistics.json").read_text())["splits"].keys() == {"all"}


def test_a_table_without_a_header_is_checked_and_learned_by_the_numbers_of_its_columns(tmp_path, capsys, checkpoint):
    """CoLA's files: source, label, the author's mark, sentence."""
    words = ["nfkb", "binds", "the", "gene"]
    for split, count in (("train", 40), ("dev", 8)):
        lines = [
            f"gj04\t{n % 2}\t{'' if n % 2 else '*'}\t{words[n % 4]} {words[n // 4 % 4]} site {n}" for n in range(count)
        ]
        (tmp_path / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    said = ["--task", "text-classification", "--text-column", "4", "--label-column", "2"]
    with pytest.raises(SystemExit):
        main(["check-data", str(tmp_path), "--output-dir", str(tmp_path / "out"), *said[:2]])
    error = " ".join(capsys.readouterr().err.split())
    assert "columns 1 ('gj04'), 2 ('0'), 3 ('*'), 4 ('nfkb nfkb site 0') and no header line" in error
    main(["check-data", str(tmp_path), "--output-dir", str(tmp_path / "out"), *said])
    assert "40" in capsys.readouterr().out
    flags = ["--fresh-head", "--epochs", "1", "--max-length", "12", "--output-dir", str(tmp_path / "run")]
    main(["train", "--data", str(tmp_path), "--model", str(checkpoint), *said, *flags])
    result = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert result["labels"] == ["0", "1"]


def test_pubtator_is_learned(tmp_path, checkpoint):
    documents = [f"{n}|t|nfkb binds gene {n}\n{n}|a|\n{n}\t0\t4\tnfkb\tprotein\tX\n" for n in range(40)]
    (tmp_path / "corpus.PubTator.txt").write_text("\n".join(documents))
    flags = ["--fresh-head", "--epochs", "1", "--max-length", "12", "--output-dir", str(tmp_path / "run")]
    main(["train", "--data", str(tmp_path / "corpus.PubTator.txt"), "--model", str(checkpoint), *flags])
    result = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert result["labels"] == ["O", "B-protein", "I-protein"]
