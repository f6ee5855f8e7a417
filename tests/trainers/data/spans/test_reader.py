"""Files of texts with spans, found by their content, in every wrapping; and every verb that reads tagged words."""

import gzip
import json
import tracemalloc
import zipfile

import numpy as np
import pytest

from trainers.cli import main
from trainers.corpus.prepare import Preparation, prepare
from trainers.data.rows import BadRows, OnBadRow
from trainers.data.spans.files import holds_spans
from trainers.data.tokens.files import find_tagged_source
from trainers.data.tokens.reader import TagIds, completed, load_token_datasets, tagged_rows, token_files

ROWS = [
    {"id": 1, "text": "the il2 gene binds", "label": [[4, 7, "protein"], [8, 12, "DNA"]]},
    {"id": 2, "text": "no cells", "label": []},
    {"id": 3, "text": "nfkb binds", "label": [[0, 4, "protein"]]},
]
READ = [
    (["the", "il2", "gene", "binds"], ["O", "B-protein", "B-DNA", "O"]),
    (["no", "cells"], ["O", "O"]),
    (["nfkb", "binds"], ["B-protein", "O"]),
]


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read(path, on_bad_row: OnBadRow = "error"):
    """Words and tags of all rows, and what there was to say."""
    tag_ids, bad_rows, found = TagIds(None), BadRows(on_bad_row), []
    source = find_tagged_source(path)
    for file in source.files:
        assert file.format == "spans"
        for _, words, ids in tagged_rows(file, tag_ids, bad_rows):
            found.append((words, [tag_ids.names[index] for index in ids]))
    return found, bad_rows


CONTENTS = {
    "lines": lines(ROWS),
    "blank lines": "\n\n" + lines(ROWS).replace("\n", "\n\n"),
    "array": json.dumps(ROWS),
    "array, indented": json.dumps(ROWS, indent=2),
    "array, a row a line": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "an object around them": json.dumps({"classes": ["DNA"], "annotations": [*ROWS, None]}, indent=1),
    "an object around them on a line": json.dumps({"data": ROWS}),
    "spacy's lists": json.dumps([[row["text"], {"entities": row["label"]}] for row in ROWS]),
    "spacy's lists, lines": lines([[row["text"], {"entities": row["label"]}] for row in ROWS]),
}


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("content", CONTENTS)
def test_every_wrapping_of_rows(tmp_path, content, suffix):
    (tmp_path / f"export{suffix}").write_text(CONTENTS[content])
    found, bad_rows = read(tmp_path / f"export{suffix}")
    assert found == READ
    assert not bad_rows.changed


def test_gzip_and_zip_and_utf16(tmp_path):
    with gzip.open(tmp_path / "export.jsonl.gz", "wt") as file:
        file.write(lines(ROWS))
    with zipfile.ZipFile(tmp_path / "admin.zip", "w") as archive:  # doccano's export: one file called after the user
        archive.writestr("admin.jsonl", lines(ROWS))
    with zipfile.ZipFile(tmp_path / "splits.zip", "w") as archive:
        archive.writestr("train.json", json.dumps(ROWS))
        archive.writestr("test.json", json.dumps(ROWS))
    (tmp_path / "wide.jsonl").write_text(lines(ROWS), encoding="utf-16")
    assert read(tmp_path / "export.jsonl.gz")[0] == READ
    assert read(tmp_path / "admin.zip")[0] == READ
    assert read(tmp_path / "splits.zip")[0] == READ * 2
    assert read(tmp_path / "wide.jsonl")[0] == READ


def test_splits_of_a_folder(tmp_path):
    for name in ("train.jsonl", "dev.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(lines(ROWS))
    datasets = load_token_datasets(tmp_path)
    assert list(datasets) == ["train", "validation", "test"]
    assert datasets["train"].labels == ("O", "B-DNA", "I-DNA", "B-protein", "I-protein")
    assert datasets["test"].words == [words for words, _ in READ]


def test_a_single_export_in_a_folder_with_its_list_of_labels(tmp_path):
    numbers = {"protein": 7, "DNA": 9}
    rows = []
    for row in ROWS:
        spans = [{"label": numbers[kind], "start_offset": s, "end_offset": e, "user": 1} for s, e, kind in row["label"]]
        rows.append({"id": row["id"], "text": row["text"], "annotations": spans, "meta": {}})
    (tmp_path / "file.json1").write_text("")
    (tmp_path / "project.jsonl").write_text(lines(rows))
    with pytest.raises(ValueError, match=r"project.jsonl:1: .* 7, a number that nothing names: put .* as labels.json"):
        read(tmp_path)
    labels = [{"id": 7, "text": "protein", "prefix_key": None, "suffix_key": "p"}, {"id": 9, "text": "DNA"}]
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    assert read(tmp_path)[0] == READ


def test_spacys_documents_give_their_paragraphs(tmp_path):
    paragraphs = []
    for words, tags in READ:
        biluo = [tag.replace("B-", "U-") for tag in tags]
        tokens = [{"orth": word, "ner": tag} for word, tag in zip(words, biluo, strict=True)]
        paragraphs.append({"raw": " ".join(words), "sentences": [{"tokens": tokens, "brackets": []}]})
    documents = [{"id": 0, "paragraphs": paragraphs[:2]}, {"id": 1, "paragraphs": paragraphs[2:]}]
    (tmp_path / "train.json").write_text(json.dumps(documents, indent=2))
    (tmp_path / "lines.jsonl").write_text(lines(documents) + '{"paragraphs"\n')
    assert read(tmp_path / "train.json")[0] == READ
    assert read(tmp_path / "lines.jsonl", "skip")[0] == READ


def write_brat(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(ROWS):
        (folder / f"doc{number}.txt").write_text(row["text"])
        spans = [f"T{n}\t{kind} {s} {e}\t{row['text'][s:e]}\n" for n, (s, e, kind) in enumerate(row["label"])]
        (folder / f"doc{number}.ann").write_text("".join(spans))


def test_brat_in_one_folder_and_in_folders_of_splits(tmp_path):
    write_brat(tmp_path / "flat")
    for split in ("train", "dev", "test"):
        write_brat(tmp_path / "splits" / split)
    assert read(tmp_path / "flat")[0] == READ
    assert [file.split for file in find_tagged_source(tmp_path / "flat").files] == ["all"]
    datasets = load_token_datasets(tmp_path / "splits")
    assert [split.words for split in datasets.values()] == [[words for words, _ in READ]] * 3
    with zipfile.ZipFile(tmp_path / "brat.zip", "w") as archive:
        for path in sorted((tmp_path / "splits").rglob("doc*")):
            archive.write(path, path.relative_to(tmp_path))
    zipped = load_token_datasets(tmp_path / "brat.zip")
    assert [split.words for split in zipped.values()] == [[words for words, _ in READ]] * 3


def test_the_cache_is_told_when_a_pair_changes(tmp_path):
    write_brat(tmp_path)
    before = find_tagged_source(tmp_path).files[0].sha256()
    (tmp_path / "doc1.txt").write_text("cells, two")
    assert find_tagged_source(tmp_path).files[0].sha256() != before


def test_a_bad_row_names_file_line_and_span(tmp_path):
    rows = [*ROWS, {"text": "il2", "label": [[0, 9, "protein"]]}]
    (tmp_path / "export.jsonl").write_text(lines(rows))
    with pytest.raises(ValueError, match=r"export.jsonl:4: span 0-9 'protein' 'il2' lies outside .*--on-bad-row skip"):
        read(tmp_path / "export.jsonl")
    found, bad_rows = read(tmp_path / "export.jsonl", "skip")
    assert (found, bad_rows.count) == (READ, 1)


def test_a_bad_row_of_an_array_names_its_line(tmp_path):
    rows = [*ROWS, {"text": "il2", "label": [[0, 9, "protein"]]}]
    (tmp_path / "export.json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]")
    with pytest.raises(ValueError, match=r"export.json:5: span 0-9"):
        read(tmp_path / "export.json")


def test_an_array_that_is_cut_short(tmp_path):
    (tmp_path / "export.json").write_text("[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n")
    with pytest.raises(ValueError, match=r"export.json:4: the array is cut short"):
        read(tmp_path / "export.json")


def test_what_is_changed_is_said_once_with_the_first(tmp_path, caplog):
    rows = [ROWS[1], {"text": "the il2 gene", "label": [[5, 7, "protein"], [8, 11, "DNA"]]}]
    (tmp_path / "train.jsonl").write_text(lines(rows))
    (tmp_path / "test.jsonl").write_text(lines([*ROWS, {**ROWS[0], "answer": "reject"}]))
    load_token_datasets(tmp_path)
    assert caplog.messages == [
        "2 spans began or ended inside a word and were widened to the words that they touch; the first: "
        f"{tmp_path}/train.jsonl:2: span 5-7 'protein' 'l2' is now 'il2'",
        "1 texts that Prodigy's answer rejects or ignores were left out; the first: " + f"{tmp_path}/test.jsonl:4",
    ]


def test_files_of_tagged_words_and_of_labelled_texts_hold_no_spans(tmp_path):
    for number, row in enumerate([{"tokens": ["a"], "tags": [0]}, {"text": "fine", "label": "pos"}]):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(lines([row]))
        assert not holds_spans(path)
    (tmp_path / "damaged.json").write_text("[[[")
    (tmp_path / "empty.json").write_text("")
    assert not holds_spans(tmp_path / "damaged.json")
    assert not holds_spans(tmp_path / "empty.json")


def many(count, seed=0):
    """Texts of the tiny model's words; a third have no entity."""
    random, rows = np.random.default_rng(seed), []
    for number in range(count):
        protein = str(random.choice(["nfkb", "il2", "junb"]))
        text = f"the {protein} gene binds a cells" if number % 3 else f"a cells {number}"
        end = 4 + len(protein)
        spans = [[4, end, "protein"], [end + 1, end + 5, "DNA"]] if number % 3 else []
        rows.append({"id": number, "text": text, "label": spans})
    return rows


def test_one_file_is_split_and_said(tmp_path, caplog):
    rows = many(60)
    (tmp_path / "all.jsonl").write_text(lines([*rows, {**rows[0], "answer": "reject"}]))
    files = completed(token_files(tmp_path / "all.jsonl"))
    assert any("no splits; its 60 sentences were cut" in message for message in caplog.messages)
    assert any("rejects or ignores" in message for message in caplog.messages)
    caplog.clear()
    datasets = {split: file.in_memory() for split, file in files.items()}
    assert not caplog.messages
    sentences = {split: [tuple(words) for words in dataset.words] for split, dataset in datasets.items()}
    assert sum(map(len, sentences.values())) == 60
    assert len(sentences["train"]) > 40
    assert sentences["validation"]
    assert sentences["test"]
    for split, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not set(sentences[split]) & set(sentences[other])  # equal texts stay together
    keys = {json.dumps(file.content_key()) for file in files.values()}
    assert len(keys) == 3


def test_too_few_texts_to_split(tmp_path):
    (tmp_path / "all.jsonl").write_text(lines(ROWS))
    with pytest.raises(ValueError, match="holds 3 sentences, too few different ones"):
        completed(token_files(tmp_path / "all.jsonl"))
    (tmp_path / "all.jsonl").write_text(lines([{**ROWS[0], "answer": "ignore"}]))
    with pytest.raises(ValueError, match="holds no usable sentence"):
        completed(token_files(tmp_path / "all.jsonl"))


def test_one_file_without_any_entity(tmp_path):
    rows = [{"text": f"no cells {number}", "label": []} for number in range(30)]
    (tmp_path / "all.jsonl").write_text(lines(rows))
    sizes = {split: len(file.in_memory()) for split, file in completed(token_files(tmp_path / "all.jsonl")).items()}
    assert sizes == {"train": 24, "validation": 3, "test": 3}


def test_a_long_file_stays_out_of_memory(tmp_path):
    path = tmp_path / "train.jsonl"
    with path.open("w") as file:
        for row in many(30):
            file.write(lines([{**row, "text": row["text"] + " cells" * 1000}]) * 10)
    tag_ids, (source,) = TagIds(None), find_tagged_source(path).files
    tracemalloc.start()
    for _ in tagged_rows(source, tag_ids, BadRows("error")):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 1_500_000
    assert peak < 1_000_000


def test_check_data_and_prepare(tmp_path, capsys, caplog):
    rows = [*many(60), {"text": "the xil2 binds", "label": [[5, 8, "protein"]]}]
    (tmp_path / "export.json").write_text(json.dumps(rows))
    main(["check-data", str(tmp_path / "export.json"), "--output-dir", str(tmp_path / "out")])
    assert "| protein" in capsys.readouterr().out
    assert [message for message in caplog.messages if "widened" in message] == [
        "1 spans began or ended inside a word and were widened to the words that they touch; the first: "
        f"{tmp_path}/export.json:1: span 5-8 'protein' 'il2' is now 'xil2'"
    ]
    prepared = tmp_path / "prepared"
    prepare(tmp_path / "export.json", prepared, Preparation(keep_empty=1.0))
    datasets = load_token_datasets(prepared)
    assert sum(len(dataset) for dataset in datasets.values()) == 61


def test_train_and_evaluate(tmp_path, checkpoint, capsys, caplog):
    for name in ("train", "dev", "test"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for row in many(12):
            (tmp_path / "data" / name / f"{row['id']}.txt").write_text(row["text"])
            spans = [f"T1\t{kind} {s} {e}\t{row['text'][s:e]}\n" for s, e, kind in row["label"]]
            (tmp_path / "data" / name / f"{row['id']}.ann").write_text("".join(spans))
    (tmp_path / "export.jsonl").write_text(lines(many(60)))
    for data, run in ((tmp_path / "data", "brat"), (tmp_path / "export.jsonl", "doccano")):
        more = ["--epochs", "0", "--model", str(checkpoint), "--output-dir", str(tmp_path / run)]
        main(["train", "--data", str(data), *more])
    assert any("no splits; its" in message for message in caplog.messages)
    capsys.readouterr()
    main(["evaluate", str(tmp_path / "doccano"), "--data", str(tmp_path / "data"), "--split", "test"])
    assert json.loads(capsys.readouterr().out)["types"]["protein"]["support"] == 8
