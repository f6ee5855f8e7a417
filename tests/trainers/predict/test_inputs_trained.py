"""`lora-core predict` knows how the files were read that its model was trained on: others like them need no flags."""

import json
import random
import shutil

import pytest

from trainers.cli import main
from trainers.data.reading import Reading
from trainers.predict.forms import InputFile
from trainers.serve import pipeline


def write_table(path, header, rows, delimiter=",", encoding="utf-8"):
    lines = [delimiter.join(cells) for cells in ([header] if header else []) + rows]
    path.write_bytes(("\n".join(lines) + "\n").encode(encoding))
    return path


def some_texts(count=40):
    choice = random.Random(0)
    words = ["il2", "gene", "junb", "binds", "the", "promoter"]
    return [" ".join(choice.choices(words, k=5)) for _ in range(count)]


TEXTS = some_texts()
LABELS = ["yes" if "gene" in text else "no" for text in TEXTS]


@pytest.fixture(scope="module")
def train(checkpoint, tmp_path_factory):
    """Trains a tiny classifier on a file, with some flags, and gives the run."""

    def run(data, *flags, task="text-classification"):
        folder = tmp_path_factory.mktemp("trained") / "run"
        main(["train", "--task", task, "--model", str(checkpoint), "--data", str(data), "--output-dir", str(folder),
              "--epochs", "1", "--fresh-head", *flags])  # fmt: skip
        return folder

    return run


@pytest.fixture
def predict(tmp_path):
    """Runs the verb and gives the objects written."""

    def run(model, path, *flags):
        output = tmp_path / "found.jsonl"
        main(["predict", str(model), str(path), "--output", str(output), *flags])
        return [json.loads(line) for line in output.read_text().splitlines()]

    return run


@pytest.fixture(scope="module")
def columns_run(train, tmp_path_factory):
    """A run whose columns and delimiter had to be said."""
    data = write_table(tmp_path_factory.mktemp("data") / "all.csv", ["nr", "what", "remark", "verdict"],
                       [[str(n), text, "ok", label] for n, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True))],
                       delimiter="^")  # fmt: skip
    return train(data, "--text-column", "what", "--label-column", "verdict", "--delimiter", "^")


FORMS = {
    "the form of training": ("new.csv", "nr^what^remark^verdict\n1^il2 gene^ok^yes\n"),
    "without labels": ("new.csv", "nr^what^remark\n1^il2 gene^ok\n"),
    "another delimiter": ("new.tsv", "what\tremark\nil2 gene\tok\n"),
    "a suffix that says nothing": ("new.txt", "nr|what|remark\n1|il2 gene|ok\n"),
    "JSON lines": ("new.jsonl", '{"what": "il2 gene", "remark": "ok"}\n'),
    "an array": ("new.json", '[{"what": "il2 gene", "remark": "ok"}]'),
    "the usual name": ("new.jsonl", '{"text": "il2 gene", "remark": "ok"}\n'),
}


@pytest.mark.parametrize(
    ("form", "served"),
    [*((form, "run") for form in FORMS), *(("without labels", served) for served in ("weights", "saved", "onnx"))],
)
def test_columns_of_training_are_taken(form, served, columns_run, predict, tmp_path, caplog):
    name, content = FORMS[form]
    model = {"weights": columns_run / "adapter", "onnx": columns_run / "model.onnx"}.get(served, columns_run)
    if served == "onnx":
        main(["export", str(columns_run), "--points-lost", "100"])
    if served == "saved":
        from trainers.notebook import TrainedRun
        from trainers.run_folder import read_run

        files = read_run(columns_run)
        model = TrainedRun(**{key: getattr(files, key) for key in files.__dataclass_fields__}).save(tmp_path / "saved")
    (tmp_path / name).write_text(content)
    with caplog.at_level("INFO"):
        (found,) = predict(model, tmp_path / name)
    (expected,) = pipeline(model=model)(["il2 gene"])
    assert [label["label"] for label in found["labels"]] == [expected["label"]]
    assert found["labels"][0]["score"] == pytest.approx(expected["score"], abs=1e-6)
    if name.endswith((".csv", ".tsv", ".txt")):
        assert "predicted from: what (as in training)" in caplog.text


def test_flags_win_over_training(columns_run, predict, tmp_path):
    (tmp_path / "new.csv").write_text("what,remark\nil2 gene,the promoter\n")
    found = predict(columns_run, tmp_path / "new.csv", "--text-column", "remark")
    assert found[0]["labels"] == pipeline(model=columns_run)("the promoter")
    (tmp_path / "new.jsonl").write_text('{"what": "il2 gene", "remark": "the promoter"}\n')
    assert predict(columns_run, tmp_path / "new.jsonl", "--text-column", "remark")[0]["labels"] == found[0]["labels"]


def test_names_that_training_found_are_known_where_they_alone_do_not_tell(train, predict, tmp_path):
    rows = [[text, label] for text, label in zip(TEXTS, LABELS, strict=True)]
    run = train(write_table(tmp_path / "all.csv", ["claimed", "label"], rows))  # the only column beside the label
    (tmp_path / "new.csv").write_text("no,claimed,by\n7,il2 gene,me\n")
    assert predict(run, tmp_path / "new.csv")[0]["labels"] == pipeline(model=run)("il2 gene")
    before = json.loads((run / "config.json").read_text())
    assert before["text_column"] == ""  # a setting stays as it was given


def test_a_run_without_the_note_takes_its_settings(columns_run, predict, tmp_path):
    old = shutil.copytree(columns_run, tmp_path / "old")
    path = old / "adapter" / "text_processing.json"
    path.write_text(
        json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "reading"})
    )
    (tmp_path / "new.csv").write_text("nr^what^remark\n1^il2 gene^ok\n")
    assert predict(old, tmp_path / "new.csv")[0]["labels"] == pipeline(model=old)("il2 gene")


@pytest.mark.parametrize("flags", [(), ("--label-column", "1", "--text-column", "2,3")])
def test_tables_without_a_header_as_in_training(flags, train, predict, tmp_path):
    rows = [[str(1 + (label == "yes")), text, "again"] for text, label in zip(TEXTS, LABELS, strict=True)]
    run = train(write_table(tmp_path / "all.csv", None, rows), *flags)
    found = predict(run, write_table(tmp_path / "new.csv", None, rows[:9]))
    assert [row["labels"] for row in found] == [[one] for one in pipeline(model=run)([f"{t} again" for t in TEXTS[:9]])]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
def test_the_encoding_of_training_is_taken_where_the_content_is_no_unicode(encoding, train, predict, tmp_path, caplog):
    rows = [[f"{text} ž", label] for text, label in zip(TEXTS, LABELS, strict=True)]
    run = train(write_table(tmp_path / "all.csv", ["text", "label"], rows, encoding="cp1250"), "--encoding", "cp1250")
    new = write_table(tmp_path / "new.csv", ["text"], [["il2 ž gene ě š"]],
                      encoding="cp1250" if encoding == "cp1252" else "utf-8")  # fmt: skip
    with caplog.at_level("INFO"):
        (found,) = predict(run, new)
    assert found["text"] == "il2 ž gene ě š"
    assert ("is read as cp1250, as in training" in caplog.text) == (encoding == "cp1252")


def test_pairs_of_training(train, predict, tmp_path):
    rows = [[text, text[::-1], label] for text, label in zip(TEXTS, LABELS, strict=True)]
    run = train(write_table(tmp_path / "all.csv", ["one", "other", "label"], rows), "--text-column", "one",
                "--pair-column", "other")  # fmt: skip
    (tmp_path / "new.csv").write_text("other,one\nthe promoter,il2 gene\n")
    (found,) = predict(run, tmp_path / "new.csv")
    assert found["labels"] == pipeline(model=run)(("il2 gene", "the promoter"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("new.txt", "1 junb NNP B-protein\n2 gene NN O\n\n1 il2 NNP B-protein\n"),
        ("new.conll", "1\tjunb\tNNP\tB-protein\n2\tgene\tNN\tO\n\n1\til2\tNNP\tB-protein\n"),
        ("new.conll", "1\tjunb\tNNP\n2\tgene\tNN\n\n1\til2\tNNP\n"),
        ("new.conllu", "# sent_id = 1\n1-2\tjunbgene\t_\n1\tjunb\tNNP\n2\tgene\tNN\n\n1\til2\tNNP\n"),
        ("new.csv", "Sentence #,Word,POS,Tag\nSentence: 1,junb,NNP,B-protein\n,gene,NN,O\n"
         "Sentence: 2,il2,NNP,B-protein\n"),
        ("new.tsv", "junb\tB-protein\ngene\tO\n\nil2\tB-protein\n"),
        ("new.conll", "junb\ngene\n\nil2\n"),
        ("new.conll", "junb O B-protein\ngene O O\n\nil2 O B-protein\n"),
    ],
)  # fmt: skip
def test_words_are_found_in_their_column(name, content, finished, predict, tmp_path):
    (tmp_path / name).write_text(content)
    flags = ["--input-format", "conll"] if name == "new.conllu" else []
    found = predict(finished["full"], tmp_path / name, *flags)
    assert [row["tokens"] for row in found] == [["junb", "gene"], ["il2"]]
    expected = pipeline("ner", finished["full"])([["junb", "gene"], ["il2"]])
    assert [row["entities"] for row in found] == json.loads(json.dumps(expected))


def test_the_column_of_words_is_that_of_training_or_the_one_that_is_named(train, predict, tmp_path):
    tagged = [("junb", "B-protein"), ("gene", "O"), ("il2", "B-protein"), ("the", "O")]
    lines = []
    for number in range(80):
        word, tag = tagged[number % 4]
        lines.append(f"{tag}\tx{number % 3}\t{word}\nO\tw\tw{number // 2}\n\n")
    (tmp_path / "all.conll").write_text("".join(lines))
    run = train(tmp_path / "all.conll", "--columns", "3,1", task="token-classification")
    (tmp_path / "new.conll").write_text("".join(lines[:2]))
    assert [row["tokens"] for row in predict(run, tmp_path / "new.conll")] == [["junb", "w0"], ["gene", "w0"]]
    found = predict(run, tmp_path / "new.conll", "--columns", "2")
    assert [row["tokens"] for row in found] == [["x0", "w"], ["x1", "w"]]


EXPORTS = {
    "doccano": '{"id": 1, "text": "il2 gene", "label": [[0, 3, "protein"]]}\n{"id": 2, "text": "junb", "label": []}\n',
    "prodigy": '{"text": "il2 gene", "tokens": [{"text": "il2", "start": 0, "end": 3}], "spans": [], "answer": '
               '"reject"}\n{"text": "junb", "tokens": [{"text": "junb", "start": 0, "end": 4}], "spans": [{"start": 0, '
               '"end": 4, "label": "protein"}]}\n',
    "label studio": json.dumps([
        {"id": 1, "data": {"text": "il2 gene"}, "annotations": [{"result": []}]},
        {"id": 2, "data": {"text": "junb"}, "annotations": []},
    ], indent=1),
    "label studio tasks": json.dumps([{"data": {"review": "il2 gene"}}, {"data": {"review": "junb"}}]),
    "spacy": json.dumps([["il2 gene", {"entities": [[0, 3, "protein"]]}], ["junb", {"entities": []}]]),
    "spacy lines": '["il2 gene", {"entities": [[0, 3, "protein"]]}]\n["junb", {"entities": []}]\n',
}  # fmt: skip


@pytest.mark.parametrize("task", ["words", "texts"])
@pytest.mark.parametrize("content", EXPORTS.values(), ids=EXPORTS)
def test_exports_of_annotation_tools_are_predicted_from_labelled_or_not(
    content, task, finished, finished_text, predict, tmp_path
):
    (tmp_path / "new.json").write_text(content)
    model, name = (finished["full"], "entities") if task == "words" else (finished_text, "labels")
    found = predict(model, tmp_path / "new.json")
    expected = json.loads(json.dumps(pipeline(model=model)(["il2 gene", "junb"])))
    assert [row[name] for row in found] == (expected if task == "words" else [[one] for one in expected])


def test_labels_of_fasttext_are_no_words(finished_text, predict, tmp_path):
    (tmp_path / "new.txt").write_text("__label__DNA il2 gene\n__label__protein junb\n")
    found = predict(finished_text, tmp_path / "new.txt")
    assert [row["labels"] for row in found] == [[one] for one in pipeline(model=finished_text)(["il2 gene", "junb"])]


def test_a_file_of_lines_is_cut_where_training_cut(tmp_path):
    """Financial PhraseBank: a text, an @ and its label in each line; the model was trained with --delimiter."""
    path = tmp_path / "sentences.txt"
    labels = ("positive", "negative")
    path.write_text("".join(f"Profit changed in quarter {number}.@{labels[number % 2]}\n" for number in range(8)))
    as_found = InputFile(path, "sentences.txt", ("text",), Reading(), Reading())
    trained = InputFile(path, "sentences.txt", ("text",), Reading(), Reading(text_column="1", delimiter="@"))
    assert next(iter(as_found.records("auto"))).source == "Profit changed in quarter 0.@positive"
    assert next(iter(trained.records("auto"))).source == "Profit changed in quarter 0."


TREC = {"yes": "DESC:yes", "no": "HUM:no"}


@pytest.mark.parametrize(
    ("name", "line"),
    [("train_5500.label", "{trec} {text}"), ("SMSSpamCollection", "{label}\t{text}"), ("all.txt", "{number} {text}")],
)
def test_labels_before_the_texts_are_no_part_of_them(name, line, train, predict, tmp_path, caplog):
    """TREC's questions, the SMS spam collection, and lines with a number: in files like that of training."""
    lines = [
        line.format(text=text, label=label, trec=TREC[label], number=int(label == "yes"))
        for text, label in zip(TEXTS, LABELS, strict=True)
    ]
    data = write_table(tmp_path / name, [], [[line] for line in lines])
    run = train(data)
    assert [row["text"] for row in predict(run, data)] == TEXTS
    caplog.clear()
    alone = write_table(tmp_path / "one.txt", [], [[lines[0]]])
    assert [row["text"] for row in predict(run, alone)] == [lines[0]]
    assert "begins with a label" in caplog.text  # a single line does not tell
    assert [
        row["text"] for row in predict(run, write_table(tmp_path / "t.txt", [], [[text] for text in TEXTS]))
    ] == TEXTS


def test_labels_of_fasttext_behind_the_text(finished_text, predict, tmp_path):
    path = write_table(tmp_path / "a.txt", [], [["il2 gene __label__yes"], ["junb __label__no"]])
    assert [row["text"] for row in predict(finished_text, path)] == ["il2 gene", "junb"]


def test_a_folder_that_is_made_for_the_output_is_said(finished_text, tmp_path, caplog):
    path = write_table(tmp_path / "a.txt", [], [["il2 gene"]])
    with caplog.at_level("INFO"):
        main(["predict", str(finished_text), str(path), "--output", str(tmp_path / "new" / "found.jsonl")])
    assert (tmp_path / "new" / "found.jsonl").is_file()
    assert f"the folder {tmp_path / 'new'} was not there, and is made" in caplog.text


def test_an_excel_file_is_no_text_in_a_strange_encoding(finished_text, predict, tmp_path, caplog):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["text", "label"], ["il2 g\xe9ne", "yes"]):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    assert [row["text"] for row in predict(finished_text, tmp_path / "a.xlsx")] == ["il2 g\xe9ne"]
    assert "not UTF-8" not in caplog.text
    book.create_sheet("more").append(["text"])
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(SystemExit):
        predict(finished_text, tmp_path / "a.xlsx")
