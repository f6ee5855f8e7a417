import gzip
import json
import os
from collections import Counter
from itertools import islice

import huggingface_hub
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.data.texts.dataset import TextDataset
from trainers.data.texts.reader import load_text_datasets

needs_data = pytest.mark.skipif("LORA_DATA_DIR" not in os.environ, reason="LORA_DATA_DIR is not set")


@pytest.fixture
def no_data_dir(monkeypatch):
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)


def write(folder, **files):
    """Files by name, "_" for the dot; a list becomes JSON lines of (text, label)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, list):
            content = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in content)
        (folder / name.replace("_", ".")).write_text(content, encoding="utf-8")
    return folder


def rows(dataset):
    return [(text, dataset.labels[target]) for text, target in zip(dataset.texts, dataset.targets, strict=True)]


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "dev"])
@pytest.mark.parametrize("subfolder", [".", "data"])
def test_splits_by_name(tmp_path, validation, subfolder):
    split = [("a", "good"), ("b", "bad")]
    write(tmp_path / subfolder, **{"test_jsonl": split, "train_jsonl": split, f"{validation}_jsonl": split})
    datasets = load_text_datasets(tmp_path)
    assert list(datasets) == ["train", "validation", "test"]
    for name, dataset in zip(("train", validation, "test"), datasets.values(), strict=True):
        assert (dataset.labels, dataset.targets.tolist(), dataset.targets.dtype) == (("bad", "good"), [1, 0], np.int64)
        assert (dataset.texts, len(dataset)) == (["a", "b"], 2)
        assert dataset.source == str(tmp_path / subfolder / f"{name}.jsonl")


def test_splits_are_found_in_any_case_and_wording(tmp_path):
    split = [("a", "good"), ("b", "bad")]
    write(tmp_path / "files", Training_jsonl=split, VAL_jsonl=split, Testing_jsonl=split)
    for name in ("Training/good/1", "Training/bad/1", "DEV/good/1", "Testing/bad/1"):
        write((tmp_path / "folders" / name).parent, **{"1_txt": "a"})
    for name in ("files", "folders"):
        assert list(load_text_datasets(tmp_path / name)) == ["train", "validation", "test"]
    write(tmp_path / "folders" / "training" / "good", **{"1_txt": "a"})
    with pytest.raises(ValueError, match=r"folders holds Training, training for the train split. Keep one"):
        load_text_datasets(tmp_path / "folders")


def test_ids_begin_at_one_in_csv_with_classes_and_at_zero_elsewhere(tmp_path):
    write(tmp_path / "csv", test_csv="2,a\n1,b\n", classes_txt="World\nSci/Tech\n")
    write(tmp_path / "json", test_jsonl=[("a", 1), ("b", 0), ("c", "World")], classes_txt="World\nSci/Tech\n\n")
    write(tmp_path / "named", test_csv="1,a\n0,b\n", label_json='{"Sci/Tech": 1, "World": 0}', classes_txt="x\ny\n")
    for name in ("csv", "json", "named"):
        dataset = load_text_datasets(tmp_path / name)["test"]
        assert dataset.labels == ("World", "Sci/Tech")
        assert rows(dataset)[:2] == [("a", "Sci/Tech"), ("b", "World")]


def test_undeclared_labels_are_those_of_all_splits_and_ids_sort_as_numbers(tmp_path, caplog):
    write(tmp_path, train_jsonl=[("a", 10), ("b", 9)], valid_jsonl=[("c", 9)], test_jsonl=[("d", 2)])
    datasets = load_text_datasets(tmp_path)
    assert {dataset.labels for dataset in datasets.values()} == {("2", "9", "10")}
    assert [rows(dataset) for dataset in datasets.values()] == [[("a", "10"), ("b", "9")], [("c", "9")], [("d", "2")]]
    assert caplog.messages == ["the test split has labels that the training split lacks: 2"]


def test_class_folders_without_the_unlabelled_ones(tmp_path, caplog):
    for name in ("train/pos/0_9", "train/neg/0_3", "train/unsup/0_0", "test/neg/0_2", "test/pos/1_10", "valid/pos/2"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "train" / "labeledBow.feat").write_text("9 0:9")
    (tmp_path / "README").write_text("hello")
    datasets = load_text_datasets(tmp_path)
    assert rows(datasets["train"]) == [("train/neg/0_3", "neg"), ("train/pos/0_9", "pos")]
    assert rows(datasets["test"]) == [("test/neg/0_2", "neg"), ("test/pos/1_10", "pos")]
    assert datasets["train"].source == str(tmp_path / "train")
    assert caplog.messages == [f"{tmp_path}/train/unsup holds texts without labels, which are left out"]


def test_parquet_shards_with_the_names_in_their_metadata(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    features = {"text": {"dtype": "string"}, "label": {"names": ["World", "Sports"], "_type": "ClassLabel"}}
    for number, (text, label) in enumerate([("a", 1), ("b", 0)]):
        table = pyarrow.table({"text": [text], "label": [label]})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        (tmp_path / "data").mkdir(exist_ok=True)
        parquet.write_table(table, tmp_path / "data" / f"test-0000{number}-of-00002.parquet")
    dataset = load_text_datasets(tmp_path)["test"]
    assert dataset.labels == ("World", "Sports")
    assert rows(dataset) == [("a", "Sports"), ("b", "World")]


@settings(max_examples=25)
@given(labels=st.lists(st.integers(0, 3), min_size=60, max_size=200), distinct=st.integers(50, 400))
def test_held_out_validation(tmp_path_factory, labels, distinct):
    folder = tmp_path_factory.getbasetemp() / "held_out"
    write(folder, train_jsonl=[(f"text {number % distinct}", label) for number, label in enumerate(labels)])
    datasets = load_text_datasets(folder)
    assert list(datasets) == ["train", "validation"]
    train, validation = rows(datasets["train"]), rows(datasets["validation"])
    assert Counter(train + validation) == Counter(
        (f"text {n % distinct}", str(label)) for n, label in enumerate(labels)
    )
    assert not {text for text, _ in train} & {text for text, _ in validation}
    assert train == [row for row in train + validation if row in set(train)]
    again = load_text_datasets(folder)
    assert rows(again["validation"]) == validation
    if distinct >= len(labels):  # otherwise copies of a text, which stay together, may upset the shares
        counts = Counter(label for _, label in validation)
        for label, count in Counter(map(str, labels)).items():
            assert abs(counts[label] - count / 10) <= 1


def test_which_texts_are_held_out_never_changes(tmp_path):
    """Scores of runs are on these texts."""
    split = [(f"text {number % 70}", "abc"[number * number % 7 % 3]) for number in range(100)]
    validation = load_text_datasets(write(tmp_path, train_jsonl=split))["validation"]
    assert [int(text.split()[1]) for text in validation.texts] == [7, 11, 13, 23, 45, 65, 7, 11, 13, 23]
    assert validation.targets.tolist() == [0, 2, 1, 1, 2, 1, 0, 2, 1, 1]


def test_held_out_validation_is_said_once_and_not_needed_for_a_test_split(tmp_path, caplog):
    write(tmp_path, train_jsonl=[(f"t{number}", number % 2) for number in range(40)], test_jsonl=[("x", 1)])
    datasets = load_text_datasets(tmp_path)
    assert [len(dataset) for dataset in datasets.values()] == [36, 4, 1]
    assert Counter(datasets["validation"].targets.tolist()) == {0: 2, 1: 2}
    assert caplog.messages == [f"{tmp_path}/train.jsonl: no validation split; 4 of 40 training texts became one"]
    (tmp_path / "train.jsonl").unlink()
    assert list(load_text_datasets(tmp_path)) == ["test"]
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"holds no labelled texts: expected train, valid and test files ending in .csv, .*.jsonl, .*or folders"),
        ({"train_txt": "a"}, r"train.txt has the columns 'a', and which of them hold the text and the label is not"),
        (
            {"train_csv": "1,a", "train_jsonl": "{}"},
            r"holds train.csv, train.jsonl for the train split. Keep one of them",
        ),
        ({"valid_csv": "1,a", "dev_csv": "1,a"}, "holds dev.csv, valid.csv for the validation split"),
        ({"train_csv": "1,a", "test_jsonl": "{}"}, "mixes files of several forms: test.jsonl, train.csv"),
        ({"train_jsonl": "\n"}, r"train.jsonl holds no usable text"),
        ({"train_csv": "1,a", "classes_txt": "a\na\n"}, r"classes.txt holds \['a', 'a'\]: expected .* once"),
        ({"train_csv": "1,a", "label_json": "[]"}, "label.json holds"),
        ({"train_jsonl": [("a", 1), ("b", 0)]}, "holds 2 texts, too few to set some aside for scoring. Add some"),
        ({"train_jsonl": [("a", 1), ("", 0)]}, r"train.jsonl:2: an empty text. Correct the file"),
    ],
)
def test_what_is_refused(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        load_text_datasets(write(tmp_path, **files))


def test_two_configurations_side_by_side(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, test_csv="1,x")
    with pytest.raises(ValueError, match=r"several folders hold a data set: .*/a, .*/b. Name one"):
        load_text_datasets(tmp_path)
    with pytest.raises(ValueError, match="on_bad_row='drop'"):
        load_text_datasets(tmp_path / "a", on_bad_row="drop")
    with pytest.raises(ValueError, match=r"test.csv holds 1 texts, too few to set some aside"):
        load_text_datasets(tmp_path / "a" / "test.csv")


def test_skipped_rows_of_all_files_are_reported_once(tmp_path, caplog):
    split = [("a", "x"), ("", "x"), ("b", -1)]
    write(tmp_path, train_jsonl=split, dev_jsonl=split)
    assert [len(dataset) for dataset in load_text_datasets(tmp_path, on_bad_row="skip").values()] == [1, 1]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("left out 4 bad rows: ")


def test_with_labels():
    dataset = TextDataset(["a", "b"], np.array([1, 0]), ("neg", "pos", "unused"), "here")
    assert rows(dataset.with_labels(("pos", "neg"))) == [("a", "pos"), ("b", "neg")]
    with pytest.raises(ValueError, match=r"here has labels that are not among \['pos'\]: \['neg'\]"):
        dataset.with_labels(("pos",))


def test_texts_of_your_own():
    dataset = TextDataset.from_lists([" good film ", "bad"], ["pos", "neg"])
    assert rows(dataset) == [("good film", "pos"), ("bad", "neg")]
    assert (dataset.labels, dataset.targets.dtype, dataset.source) == (("neg", "pos"), np.int64, "texts in memory")
    dataset = TextDataset.from_lists(iter(["a", "b"]), np.array([1, 0]), names=["no", "yes"], source="mine")
    assert (rows(dataset), dataset.source) == ([("a", "yes"), ("b", "no")], "mine")


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        ("ab", ["x", "y"], "mine: the texts are the string 'ab', expected a list of strings"),
        (["a", 7], ["x", "y"], "mine, example 1: the text is 7, expected a string"),
        (["a", " "], ["x", "y"], "mine, example 1: an empty text"),
        (["a", "b"], ["x"], "mine: 2 examples and 1 labels"),
        ([], [], "mine: 0 examples and 0 labels, expected examples"),
        (["a", "b"], ["x", None], "mine, example 1: the label is None"),
    ],
)
def test_lists_that_are_no_texts(texts, labels, message):
    with pytest.raises(ValueError, match=message):
        TextDataset.from_lists(texts, labels, source="mine")


def test_places_to_find_it(tmp_path, monkeypatch, no_data_dir):
    write(tmp_path / "news", test_csv="1,a")
    monkeypatch.setenv("LORA_DATA_DIR", str(tmp_path))
    assert len(load_text_datasets("news")["test"]) == len(load_text_datasets("maker/news")["test"]) == 1
    asked = {}

    def snapshot_download(hub_id, **keywords):
        asked.update(keywords, hub_id=hub_id)
        return str(tmp_path / "news")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    load_text_datasets("maker/elsewhere")
    assert asked["hub_id"] == "maker/elsewhere"
    needed = [
        "data/train-00000-of-00001.parquet",
        "plain_text/test-00000-of-00001.parquet",
        "dev.jsonl.gz",
        "Testing.csv",
        "classes.txt",
    ]
    left = ["plain_text/unsupervised-00000-of-00001.parquet", "README.md", "model.bin"]
    from huggingface_hub.utils import filter_repo_objects

    assert list(filter_repo_objects(needed + left, allow_patterns=asked["allow_patterns"])) == needed


@needs_data
def test_ag_news(caplog):
    datasets = load_text_datasets("ag_news")
    assert {split: len(dataset) for split, dataset in datasets.items()} == {
        "train": 5131,
        "validation": 569,
        "test": 1900,
    }
    assert datasets["train"].labels == ("World", "Sports", "Business", "Sci/Tech")
    shares = {split: np.bincount(dataset.targets) / len(dataset) for split, dataset in datasets.items()}
    np.testing.assert_allclose(shares["validation"], shares["train"], atol=0.002)
    assert datasets["test"].texts[0] == datasets["test"].texts[0].strip()
    assert "569 of 5700" in caplog.text


@needs_data
def test_imdb():
    datasets = load_text_datasets("imdb")
    assert datasets["train"].labels == ("0", "1")
    assert abs(datasets["validation"].targets.mean() - 0.5) < 0.001
    with gzip.open(datasets["test"].source, "rt", encoding="utf-8") as file:
        expected = [json.loads(line) for line in islice(file, 100)]
    assert datasets["test"].texts[:100] == [row["text"].strip() for row in expected]
    assert datasets["test"].targets[:100].tolist() == [row["label"] for row in expected]
    assert len(datasets["train"]) + len(datasets["validation"]) == 25_000
