"""Labelled texts a line each, in the layouts in which well known data sets are published."""

import logging

import pytest

from trainers.data.reading import Reading
from trainers.data.texts.reader import load_text_datasets
from trainers.predict.forms import InputFile

FRENCH = "caf\xe9 d\xe9j\xe0 vu fianc\xe9"


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)


def write(path, lines, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
    return path


def read(source, **settings):
    """{Split: {text: label}}."""
    found = load_text_datasets(source, **settings)
    return {split: {text: data.labels[target] for text, target in zip(data.texts, data.targets, strict=True)}
            for split, data in found.items()}  # fmt: skip


def merged(found):
    return {text: label for rows in found.values() for text, label in rows.items()}


def test_trees_of_sst(tmp_path):
    """The root has the label of the sentence; brackets are spelled out."""
    for split in ("train", "dev", "test"):
        rest = "(4 (4 (2 's) (3 (2 -LRB-) (2 a)) (3 (3 lovely) (2 film))) (2 .))"
        write(tmp_path / "trees" / f"{split}.txt", [f"({n % 5} (2 It{n}) {rest})" for n in range(20)])
    found = read(tmp_path)
    assert found["validation"] == {f"It{n} 's ( a lovely film .": str(n % 5) for n in range(20)}
    assert list(found) == ["train", "validation", "test"]
    write(tmp_path / "trees" / "dev.txt", ["(3 (2 It) (4 works))", "(3 (2 It) (4 stops"])
    with pytest.raises(ValueError, match=r"dev.txt:2: expected a tree such as \(3 \(2 It\) \(4 works\)\), got"):
        read(tmp_path)


@pytest.mark.parametrize("above", [True, False])
def test_rt_polarity(tmp_path, caplog, above):
    folder = tmp_path / "rt-polaritydata"
    write(folder / "rt-polarity.pos", [f"{FRENCH} {n} . " for n in range(30)], "latin-1")
    write(folder / "rt-polarity.neg", [f"simplistic , silly {n} ." for n in range(30)])
    write(tmp_path / "rt-polaritydata.README.1.0.txt", ["what this is"])
    found = merged(read(tmp_path if above else folder))
    assert found == {f"{FRENCH} {n} .": "pos" for n in range(30)} | {
        f"simplistic , silly {n} .": "neg" for n in range(30)
    }


def test_files_of_classes_in_splits(tmp_path):
    for split in ("train", "dev", "test"):
        for end in ("pos", "neg"):
            write(tmp_path / f"{split}.{end}", [f"{split} {end} {n}" for n in range(9)])
    found = read(tmp_path)
    assert found["validation"] == {f"dev {end} {n}": end for end in ("pos", "neg") for n in range(9)}
    assert len(found["train"]) == len(found["test"]) == 18


@pytest.mark.parametrize("above", [True, False])
def test_intents_of_snips(tmp_path, above):
    for split in ("train", "valid", "test"):
        write(tmp_path / "snips" / split / "seq.in", [f"play {split} {n}" for n in range(10)])
        write(tmp_path / "snips" / split / "seq.out", ["O O B-track"] * 10)
        write(tmp_path / "snips" / split / "label", [["PlayMusic", "GetWeather"][n % 2] for n in range(10)])
    found = read(tmp_path if above else tmp_path / "snips")
    assert found["validation"] == {f"play valid {n}": ["PlayMusic", "GetWeather"][n % 2] for n in range(10)}
    write(tmp_path / "snips" / "test" / "label", ["PlayMusic"])
    with pytest.raises(ValueError, match=r"seq.in has 10 lines and .*label 1: expected as many"):
        read(tmp_path)


def test_class_folders_in_an_old_encoding(tmp_path, caplog):
    """Each file has a single byte that is no UTF-8: all together tell."""
    for number in range(20):
        write(tmp_path / ["pos", "neg"][number % 2] / f"{number}.txt", [f"caf\xe9 {number}"], "latin-1")
    assert merged(read(tmp_path)) == {f"caf\xe9 {n}": ["pos", "neg"][n % 2] for n in range(20)}
    assert "20 files are not UTF-8: they are read as cp1252. --encoding says otherwise" in caplog.text
    caplog.clear()
    for number in range(1, 20):
        write(tmp_path / ["pos", "neg"][number % 2] / f"{number}.txt", [f"caf\xe9 {number}"])
    with pytest.raises(
        ValueError, match=r"pos/0.txt: not UTF-8 .*Name its encoding \(--encoding cp1252\), correct it, or"
    ):
        read(tmp_path)
    assert len(merged(read(tmp_path, on_bad_row="skip"))) == 19


def imdb(folder):
    for number in range(20):
        for split in ("train", "test"):
            write(folder / split / ["neg", "pos"][number % 2] / f"{number}_9.txt", [f"film {split} {number}"])
    write(folder / "train" / "unsup" / "1_0.txt", ["x"])
    write(folder / "imdbEr.txt", ["0.1"])
    write(folder / "README", ["x"])


@pytest.mark.parametrize("above", ["", "aclImdb", "aclImdb_v1/aclImdb"])
def test_imdb_and_the_folder_above_it(tmp_path, above, caplog):
    imdb(tmp_path / above)
    with caplog.at_level(logging.INFO):
        found = read(tmp_path)
    assert found["test"] == {f"film test {n}": ["neg", "pos"][n % 2] for n in range(20)}
    assert ("the data set lies in aclImdb" in caplog.text) == bool(above)


def test_class_folders_in_one_folder(tmp_path):
    for number in range(20):
        write(
            tmp_path / "20_newsgroups" / ["alt.atheism", "sci.med"][number % 2] / str(5000 + number), [f"From {number}"]
        )
    assert merged(read(tmp_path)) == {f"From {n}": ["alt.atheism", "sci.med"][n % 2] for n in range(20)}


def test_words_in_the_names_of_texts_of_a_class_are_no_splits(tmp_path):
    for number in range(20):
        name = f"cv{number:03}_{['train', 'test'][number // 2 % 2]}.txt"
        write(tmp_path / "txt_sentoken" / ["pos", "neg"][number % 2] / name, [f"text {number}"])
    write(tmp_path / "poldata.README.2.0", ["x"])
    assert merged(read(tmp_path)) == {f"text {n}": ["pos", "neg"][n % 2] for n in range(20)}
    for task in ("pos", "neg"):
        write(tmp_path / "txt_sentoken" / task / "train.txt", ["text\tlabel", "a\tb"])
    with pytest.raises(ValueError, match="several folders hold a data set"):
        read(tmp_path)


@pytest.mark.parametrize(
    "name", ["{}.tsv", "multinli_1.0_{}.tsv", "{}-00000-of-00001-ab12cd34ef567890.tsv"], ids=["GLUE", "MultiNLI", "hub"]
)
def test_of_mnli_the_matched_files_are_the_splits(tmp_path, caplog, name):
    for split in ("train", "dev_matched", "dev_mismatched"):
        rows = [f"{n}\tfiction\tpremise {split} {n}\thypothesis\t{['neutral', 'entailment'][n % 2]}" for n in range(20)]
        write(tmp_path / name.format(split), ["index\tgenre\tsentence1\tsentence2\tgold_label", *rows])
    found = load_text_datasets(tmp_path)
    assert found["validation"].texts == [f"premise dev_matched {n}" for n in range(20)]
    assert len(found["train"]) == 20
    assert (
        f"not read, as the name says no split, or one that has its file: {tmp_path / name.format('dev_mismatched')}"
        in (caplog.text)
    )


def test_predict_reads_trees_as_tables(tmp_path):
    path = write(tmp_path / "dev.txt", ["(3 (2 It) (4 works))"])
    (record,) = InputFile(path, "dev.txt", ("text", "text_pair"), Reading(), Reading()).records("table")
    assert record.source == "It works"
