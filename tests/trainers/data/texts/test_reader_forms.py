"""One data set in every form: the same texts, labels and splits come out."""

import gzip
import json

import numpy as np
import pytest

from trainers.data.reading import Reading
from trainers.data.texts.dataset import TextDataset
from trainers.data.texts.reader import load_text_datasets

ROWS = [("A fine film, really.", "pos"), ('"Dull" and\nlong', "neg"), ("Été; jour | nuit", "pos"), ("so so", "neg")]


def read(folder, **reading):
    datasets = load_text_datasets(folder, reading=Reading(**reading))
    return {split: pairs_of(dataset) for split, dataset in datasets.items()}


def pairs_of(dataset):
    return [(text, dataset.labels[target]) for text, target in zip(dataset.texts, dataset.targets, strict=True)]


def quoted(rows, delimiter, header="text,label"):
    lines = [header.replace(",", delimiter)] if header else []
    lines += [delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    return "\n".join(lines) + "\n"


def as_columns(rows):
    return json.dumps({"text": {str(n): text for n, (text, _) in enumerate(rows)},
                       "label": {str(n): label for n, (_, label) in enumerate(rows)}})  # fmt: skip


def objects(rows):
    return [{"text": text, "label": label} for text, label in rows]


CONTENTS = {
    "csv": quoted(ROWS, ","),
    "semicolons": quoted(ROWS, ";"),
    "tabs": quoted(ROWS, "\t"),
    "bars": quoted(ROWS, "|"),
    "label first": quoted([row[::-1] for row in ROWS], ",", "label,text"),
    "no header": quoted(ROWS, ",", ""),
    "CRLF": quoted(ROWS, ",").replace("\n", "\r\n").replace("and\r\n", "and\n"),
    "JSON lines": "".join(json.dumps(row) + "\n" for row in objects(ROWS)),
    "array": json.dumps(objects(ROWS), indent=1),
    "array on one line": json.dumps(objects(ROWS)),
    "data": json.dumps({"version": "1", "data": objects(ROWS)}),
    "columns": as_columns(ROWS),
    "columns of lists": json.dumps({"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}),
    "index": json.dumps({str(n): row for n, row in enumerate(objects(ROWS))}),
    "split": json.dumps({"columns": ["text", "label"], "index": [0, 1, 2, 3], "data": ROWS}),
}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt", "json", "jsonl"])
@pytest.mark.parametrize("form", CONTENTS)
def test_content_and_not_the_suffix_tells_the_form(tmp_path, form, suffix):
    (tmp_path / f"test.{suffix}").write_text(CONTENTS[form], encoding="utf-8", newline="")
    assert read(tmp_path) == {"test": ROWS}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("form", ["csv", "JSON lines", "array"])
def test_encodings(tmp_path, form, encoding):
    content = CONTENTS[form].encode(encoding)
    (tmp_path / "test.csv").write_bytes(content)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "test.csv.gz").write_bytes(gzip.compress(content))
    assert read(tmp_path) == read(tmp_path / "packed") == {"test": ROWS}


def test_the_encoding_and_the_delimiter_that_the_user_names(tmp_path):
    (tmp_path / "test.csv").write_bytes("text~label\nÜber; uns~a\nда~b\n".encode("koi8-r", "replace"))
    assert read(tmp_path, delimiter="~", encoding="koi8-r")["test"][1] == ("да", "b")


def test_excel(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in [("text", "label", "id"), *((text, label, 1) for text, label in ROWS), (None, None, None)]:
        book.active.append(row)
    book.save(tmp_path / "test.xlsx")
    assert read(tmp_path) == {"test": ROWS}
    book.create_sheet("more").append(["text"])
    book.save(tmp_path / "test.xlsx")
    with pytest.raises(ValueError, match=r"test.xlsx has the filled sheets \['Sheet', 'more'\], expected one"):
        read(tmp_path)


def test_a_file_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.save(tmp_path / "test.xlsx")
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lora-core\[xlsx\]'"):
        read(tmp_path)


def test_fasttext(tmp_path):
    (tmp_path / "test.txt").write_text("__label__pos A fine film.\n__label__neg dull , long\n")
    assert read(tmp_path) == {"test": [("A fine film.", "pos"), ("dull , long", "neg")]}


def test_quotes_in_files_of_tabs_may_be_a_texts_own(tmp_path):
    (tmp_path / "test.tsv").write_text('sentence\tlabel\n"so it goes\t1\na "quoted" word\t0\n"both" and more\t1\n')
    assert read(tmp_path)["test"] == [('"so it goes', "1"), ('a "quoted" word', "0"), ('"both" and more', "1")]


def test_a_single_file_or_class_folders_are_cut_in_three(tmp_path, caplog):
    rows = [(f"text {number}", "ab"[number % 2]) for number in range(100)]
    (tmp_path / "reviews.csv").write_text(quoted(rows, ","))
    for place in (tmp_path / "reviews.csv", tmp_path):
        caplog.clear()
        found = read(place)
        assert {split: len(part) for split, part in found.items()} == {"train": 80, "validation": 10, "test": 10}
        assert sorted(row for part in found.values() for row in part) == sorted(rows)
        assert "no splits; cut into 80 training, 10 validation and 10 test texts" in caplog.text
    for text, label in rows:
        path = tmp_path / "folders" / label / f"{text}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert {split: len(part) for split, part in read(tmp_path / "folders").items()} == {
        "train": 80, "validation": 10, "test": 10}  # fmt: skip
    (tmp_path / "more.csv").write_text("text,label\n")
    with pytest.raises(ValueError, match=r"holds more.csv, reviews.csv, and no name says which split it is"):
        read(tmp_path)


def test_what_is_not_used_is_named(tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "test.csv").write_text("id,text,label,when\n1,a,x,2020\n2,b,y,2021\n")
    (tmp_path / "extra.csv").write_text("text,label\na,x\n")
    (tmp_path / "README.txt").write_text("hello")
    assert read(tmp_path)["test"] == [("a", "x"), ("b", "y")]
    assert caplog.messages == [
        f"not read, as the name says no split, or one that has its file: {tmp_path}/extra.csv",
        f"{tmp_path}/test.csv: text 'text', label 'label'; NOT used: 'id', 'when'".replace("'id', 'when'", "id, when"),
    ]


def test_the_columns_that_the_user_names_in_every_form(tmp_path):
    rows = [{"title": "t", "body": "b", "text": "no", "gold": "x", "label": "no"}]
    (tmp_path / "test.jsonl").write_text(json.dumps(rows[0]))
    assert read(tmp_path, text_column="title,body", label_column="gold") == {"test": [("t b", "x")]}
    (tmp_path / "test.jsonl").write_text("7\tx\tA text\n8\ty\tOther\n9\tx\tThird\n")
    assert read(tmp_path, text_column="3", label_column="2")["test"][1] == ("Other", "y")


def test_a_file_without_a_header_whose_columns_are_not_clear(tmp_path):
    line = '"{}","146781036{}","Mon Apr 06","NO_QUERY","user{}","text {}"\n'
    (tmp_path / "test.csv").write_text("".join(line.format(4 * (n % 2), n, n, n) for n in range(9)))
    with pytest.raises(ValueError, match=r"columns 1 \('0'\), 2 \('1467810360'\).* and no header.*by number, from 1"):
        read(tmp_path)
    assert read(tmp_path, text_column="6", label_column="1")["test"][1] == ("text 1", "4")


@pytest.mark.parametrize("header", ["question,sentence,label", "sentence1,sentence2,gold_label"])
def test_pairs(tmp_path, header):
    (tmp_path / "test.csv").write_text(f"{header}\nis it ?,it is .,yes\nis it ?,no .,no\n")
    (dataset,) = load_text_datasets(tmp_path).values()
    assert (dataset.texts, dataset.pairs) == (["is it ?", "is it ?"], ["it is .", "no ."])
    assert dataset.groups.tolist() == [0, 1]
    (tmp_path / "test.csv").write_text(f"{header}\nis it ?,,yes\n")
    with pytest.raises(ValueError, match=r"test.csv:2: the second text is empty"):
        load_text_datasets(tmp_path)


@pytest.mark.parametrize("test", ["id,text\n1,a\n", "id,text,label\n1,a,-1\n2,b,-1\n", "id,text,label\n1,a,\n2,b,\n"])
def test_a_split_without_labels_is_left_out(tmp_path, caplog, test):
    train = "".join(f"{n},text {n},{n % 2}\n" for n in range(40))
    (tmp_path / "train.csv").write_text("id,text,label\n" + train)
    (tmp_path / "test.csv").write_text(test)
    assert {split: len(rows) for split, rows in read(tmp_path).items()} == {"train": 36, "validation": 4}
    assert f"{tmp_path}/test.csv: none of its" in caplog.text
    assert "has a label: the test split is left out" in caplog.text
    (tmp_path / "train.csv").write_text("id,text,label\n" + train + "41,no label,\n")
    with pytest.raises(ValueError, match=r"train.csv:42: the row has no label"):
        read(tmp_path)
    (tmp_path / "train.csv").write_text("id,text\n1,a\n")
    with pytest.raises(ValueError, match=r"train.csv (has the columns 'id', 'text'|holds no labels)"):
        read(tmp_path)


def test_labels_of_the_glue_test_split(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    features = {"label": {"names": ["negative", "positive"], "_type": "ClassLabel"}}
    for split, labels in {"train": [0, 1] * 20, "validation": [0, 1], "test": [-1, -1]}.items():
        table = pyarrow.table({"sentence": [f"{split} {n}" for n in range(len(labels))], "label": labels})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        parquet.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    datasets = load_text_datasets(tmp_path)
    assert list(datasets) == ["train", "validation"]
    assert datasets["train"].labels == ("negative", "positive")


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["True", "False"], ("False", "True")),
        ([True, False], ("False", "True")),
        ([1.0, 0.0], ("0", "1")),
        (["1.0", "0.0"], ("0", "1")),
        ([" pos", "neg "], ("neg", "pos")),
        ([-1, 1], ("-1", "1")),
        (["Portland, OR", "Salem, OR"], ("Portland, OR", "Salem, OR")),
    ],
)
def test_labels(tmp_path, cells, labels):
    lines = [json.dumps({"text": f"t{n}", "label": cell}) for n, cell in enumerate(cells)]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    (dataset,) = load_text_datasets(tmp_path).values()
    assert dataset.labels == labels
    assert dataset.problem_type == "single_label_classification"


@pytest.mark.parametrize(
    ("content", "labels", "targets", "said"),
    [
        ('text,labels\na,"0,1"\nb,0\nc,1\n', ("0", "1"), [[1, 1], [1, 0], [0, 1]], "cells hold several labels"),
        ("text,labels\na,x|y\nb,x\nc,y\n", ("x", "y"), [[1, 1], [1, 0], [0, 1]], "cells hold several labels"),
        ("comment_text,toxic,insult\na,1,0\nb,1,1\n", ("toxic", "insult"), [[1, 0], [1, 1]], "hold 0 and 1"),
        ('{"text": "a", "labels": ["x", "y"]}\n{"text": "b", "labels": []}\n', ("x", "y"), [[1, 1], [0, 0]], "lists"),
        ("__label__x __label__y a\n__label__x b\n", ("x", "y"), [[1, 1], [1, 0]], "labels are lists: multi-label"),
    ],
)
def test_several_labels(tmp_path, caplog, content, labels, targets, said):
    (tmp_path / "test.txt").write_text(content)
    (dataset,) = load_text_datasets(tmp_path).values()
    assert dataset.problem_type == "multi_label_classification"
    assert (dataset.labels, dataset.targets.tolist(), dataset.targets.dtype) == (labels, targets, np.float32)
    assert said in caplog.text
    back = dataset.with_labels(labels[::-1])
    assert back.targets.tolist() == [row[::-1] for row in targets]
    with pytest.raises(ValueError, match="has labels that are not among"):
        dataset.with_labels(("other",))


def test_numbers_and_what_the_user_says_of_labels(tmp_path, caplog):
    (tmp_path / "test.csv").write_text("text,score\na,0.5\nb,1\nc,2.25\n")
    (dataset,) = load_text_datasets(tmp_path).values()
    assert (dataset.problem_type, dataset.targets.tolist(), dataset.targets.dtype) == (
        "regression", [0.5, 1.0, 2.25], np.float32)  # fmt: skip
    assert dataset.labels == ("score",)
    assert caplog.messages == ["labels are 3 different decimals: regression. --problem-type says otherwise."]
    (tmp_path / "test.csv").write_text("text,score\na,1\nb,2\n")
    assert load_text_datasets(tmp_path)["test"].labels == ("1", "2")
    assert load_text_datasets(tmp_path, problem_type="regression")["test"].targets.tolist() == [1.0, 2.0]
    (tmp_path / "test.csv").write_text('text,label\na,"x,y"\nb,x\nc,y\n')
    single = load_text_datasets(tmp_path, problem_type="single_label_classification")["test"]
    assert single.labels == ("x", "x,y", "y")
    with pytest.raises(ValueError, match="the label is 'x,y', expected a number"):
        load_text_datasets(tmp_path, problem_type="regression")


@pytest.mark.parametrize("odd", ["nan", "n/a", "1.37 €", "unknown"])
def test_a_label_among_decimals_that_is_no_number_is_named(tmp_path, odd):
    """Else each decimal would be a class of its own."""
    scores = [f"{n}.5" for n in range(20)]
    path = tmp_path / "test.csv"
    path.write_text("text,score\n" + "".join(f"t {n},{cell}\n" for n, cell in enumerate([*scores, odd])))
    with pytest.raises(ValueError, match=f"20 different labels are decimals, but '{odd}' is no number"):
        load_text_datasets(tmp_path)
    found = load_text_datasets(tmp_path, problem_type="single_label_classification")["test"]
    assert len(found.labels) == 21
    path.write_text(path.read_text().replace(f",{odd}\n", ",\n"))
    skipping = load_text_datasets(tmp_path, on_bad_row="skip")["test"]
    assert (len(skipping), skipping.problem_type) == (20, "regression")
    path.write_text("text,version\n" + "".join(f"t {n},{cell}\n" for n, cell in enumerate(["1.5", "2.5", "other"] * 4)))
    assert load_text_datasets(tmp_path)["test"].labels == ("1.5", "2.5", "other")


def test_several_labels_and_numbers_are_split_too(tmp_path):
    for column in ("labels", "score"):
        cells = [[["x"], ["y"], ["x", "y"]][n % 3] if column == "labels" else n + 0.5 for n in range(60)]
        rows = [{"text": f"text {n}", column: cell} for n, cell in enumerate(cells)]
        (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
        datasets = load_text_datasets(tmp_path)
        assert len(datasets["train"]) + len(datasets["validation"]) == 60
        assert 5 <= len(datasets["validation"]) <= 7


@pytest.mark.parametrize("make", ["list", "pandas", "datasets", "dict"])
def test_a_table_in_memory(make):
    rows = [{"id": n, "sentence1": f"a {n}", "sentence2": "b", "label": n % 2} for n in range(4)]
    table = rows
    if make == "pandas":
        table = pytest.importorskip("pandas").DataFrame(rows)
    elif make == "datasets":
        table = pytest.importorskip("datasets").Dataset.from_list(rows)
    elif make == "dict":
        table = {name: [row[name] for row in rows] for name in rows[0]}
    dataset = TextDataset.from_table(table, names=["no", "yes"])
    assert (dataset.texts[3], dataset.pairs[3], dataset.targets.tolist()) == ("a 3", "b", [0, 1, 0, 1])
    assert dataset.labels == ("no", "yes")
    single = TextDataset.from_table(table, text_column="sentence2,sentence1", label_column="label")
    assert (single.texts[0], single.pairs, single.labels) == ("b a 0", None, ("0", "1"))
    with pytest.raises(ValueError, match=r"there is no column 'gold' \(--label-column\)"):
        TextDataset.from_table(table, label_column="gold")


def test_a_table_with_gaps_or_unclear_columns():
    with pytest.raises(ValueError, match=r"mine, example 1: it has no label \(label\)"):
        TextDataset.from_table([{"text": "a", "label": "x"}, {"text": "b", "label": None}], source="mine")
    with pytest.raises(ValueError, match=r"mine has the columns 'review', 'comment', 'label', and several"):
        TextDataset.from_table([{"review": "a", "comment": "b", "label": "x"}], source="mine")


def test_lists_of_pairs():
    dataset = TextDataset.from_lists(["a", "b"], ["x", "y"], pairs=[" c ", "d"])
    assert dataset.pairs == ["c", "d"]
    with pytest.raises(ValueError, match="2 texts and 1 second texts"):
        TextDataset.from_lists(["a", "b"], ["x", "y"], pairs=["c"])
    several = TextDataset.from_lists(["a", "b"], [["x"], ["x", "y"]])
    assert several.targets.tolist() == [[1, 0], [1, 1]]
    assert TextDataset.from_lists(["a", "b"], [0.5, 1.5]).problem_type == "regression"
