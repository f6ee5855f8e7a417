import dataclasses
import json
import logging
import os
import socket
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import filter_repo_objects

from trainers.data.tokens.reader import TokenDataset, load_token_datasets

ROW = {"tokens": ["EU", "rejects"], "tags": [1, 0]}
LABELS = {"O": 0, "B-ORG": 1, "I-ORG": 2}


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def write_tner(folder: Path, names=("train", "valid", "test")) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "label.json").write_text(json.dumps(LABELS))
    for name in names:
        (folder / f"{name}.json").write_text(json.dumps(ROW) + "\n")
    return folder


def write(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        stem, suffix = name.rsplit("_", 1)
        (folder / f"{stem}.{suffix}").write_text(content)
    return folder


@pytest.mark.parametrize("validation", ["valid", "validation", "dev"])
@pytest.mark.parametrize("subfolder", [".", "dataset"])
def test_the_tner_layout(tmp_path, validation, subfolder):
    write_tner(tmp_path / subfolder, ("train", validation, "test"))
    datasets = load_token_datasets(tmp_path)
    assert list(datasets) == ["train", "validation", "test"]
    for name, dataset in zip(("train", validation, "test"), datasets.values(), strict=True):
        source = str(tmp_path / subfolder / f"{name}.json")
        assert dataset == TokenDataset([["EU", "rejects"]], [[1, 0]], ("O", "B-ORG", "I-ORG"), source)
        assert len(dataset) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        datasets["train"].source = ""


def test_only_the_splits_that_exist(tmp_path):
    assert list(load_token_datasets(str(write_tner(tmp_path, ("test",))))) == ["test"]


@pytest.mark.parametrize("suffix", ["conll", "txt", "bio", "iob2"])
def test_the_conll_layout_has_one_label_list_for_all_splits(tmp_path, suffix, caplog):
    write(
        tmp_path,
        **{
            f"train_{suffix}": "EU B-ORG\nof O\n",
            f"dev_{suffix}": "Peter B-PER\n",
            f"test_{suffix}": "a O\n",
        },
    )
    datasets = load_token_datasets(tmp_path)
    assert {dataset.labels for dataset in datasets.values()} == {("O", "B-ORG", "I-ORG", "B-PER", "I-PER")}
    assert [dataset.tags for dataset in datasets.values()] == [[[1, 0]], [[3]], [[0]]]
    assert caplog.messages == [f"{tmp_path}/dev.{suffix} has labels that the training split lacks: B-PER, I-PER"]


def test_conll_tags_are_made_iob2_and_the_change_is_reported(tmp_path, caplog):
    write(tmp_path, train_txt="EU I-ORG\nof I-ORG\n\na O\nb I-ORG\n")
    assert load_token_datasets(tmp_path)["train"].tags == [[1, 2], [0, 1]]
    assert caplog.messages == [f"{tmp_path}/train.txt: 2 tags I- that continue nothing became B- (IOB2)"]


def test_clean_conll_data_reports_nothing(tmp_path, caplog):
    write(tmp_path, train_txt="EU B-ORG\nof I-ORG\n", test_txt="EU B-ORG\n")
    load_token_datasets(tmp_path)
    assert caplog.messages == []


@pytest.mark.parametrize("layout", ["tner", "conll"])
def test_skipped_rows_of_all_files_are_reported_once(tmp_path, caplog, layout):
    if layout == "tner":
        write_tner(tmp_path)
        for name in ("train", "test"):
            with (tmp_path / f"{name}.json").open("a") as file:
                file.write("{}\n")
    else:
        write(tmp_path, train_txt="EU B-ORG\nof O\n\nbad\n", test_txt="EU B-ORG\nof O\n\nbad\n")
    with pytest.raises(ValueError, match="on_bad_row='skip'"):
        load_token_datasets(tmp_path)
    datasets = load_token_datasets(tmp_path, on_bad_row="skip")
    assert all(dataset.tags == [[1, 0]] for dataset in datasets.values())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.startswith("left out 2 bad rows: ")
    assert "train." in record.message
    assert "test." in record.message


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no tagged sentences: expected files of the splits, such as train.json"),
        ({"README_md": "hello"}, "holds no tagged sentences"),
        ({"train_json": json.dumps(ROW)}, "train.json:1: the tags are ids, but nothing names them: put label.json"),
        (
            {"train_txt": "a O", "train_conll": "a O"},
            "holds train.conll, train.txt for the train split. Keep one of them",
        ),
        (
            {"valid_txt": "a O", "dev_txt": "a O"},
            "holds dev.txt, valid.txt for the validation split. Keep one of them",
        ),
        ({"train_json": "{}", "test_txt": "a O"}, "mixes files of several forms: train.json, test.txt. Keep one form"),
        ({"train_txt": "\n\n"}, "train.txt holds no usable sentence"),
        ({"train_txt": "-DOCSTART- O\n"}, "train.txt holds no usable sentence"),
    ],
)
def test_folders_that_are_no_data_set_are_refused(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        load_token_datasets(write(tmp_path, **files))


def test_a_file_whose_rows_are_all_bad_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no usable sentence"):
        load_token_datasets(write(tmp_path, train_jsonl="bad\n"), on_bad_row="skip")


def test_an_unknown_policy_is_refused(tmp_path):
    with pytest.raises(ValueError, match="on_bad_row='ignore': expected 'error' or 'skip'"):
        load_token_datasets(tmp_path, on_bad_row="ignore")


@pytest.mark.parametrize("name", ["news", "maker/corpus", "maker/news"])
def test_names_are_found_under_the_data_folder(tmp_path, monkeypatch, no_network, name):
    write_tner(tmp_path / "news")
    write_tner(tmp_path / "maker" / "corpus")
    monkeypatch.setenv("LORA_DATA_DIR", str(tmp_path))
    expected = tmp_path / ("maker/corpus" if name == "maker/corpus" else "news")
    assert load_token_datasets(name)["train"].source == str(expected / "train.json")


def test_a_folder_comes_before_the_data_folder(tmp_path, monkeypatch):
    write_tner(tmp_path / "here" / "news")
    write_tner(tmp_path / "there" / "news")
    monkeypatch.setenv("LORA_DATA_DIR", str(tmp_path / "there"))
    monkeypatch.chdir(tmp_path / "here")
    assert load_token_datasets("news")["train"].source == str(Path("news", "train.json"))


def test_a_missing_folder_is_named_with_the_places_looked_at(tmp_path, monkeypatch, no_network):
    monkeypatch.setenv("LORA_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no data set 'news'") as error:
        load_token_datasets("news")
    assert f"looked at {tmp_path}/news, {tmp_path}/data/news" in str(error.value)
    with pytest.raises(ValueError, match=r"no data set '/no/such/folder'"):
        load_token_datasets("/no/such/folder")


def test_a_hub_data_set_is_downloaded_with_the_files_needed_only(tmp_path, monkeypatch):
    calls = []

    def snapshot_download(repo_id, **keywords):
        calls.append((repo_id, keywords))
        return str(write_tner(tmp_path / "dataset").parent)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert list(load_token_datasets("tner/bionlp2004")) == ["train", "validation", "test"]
    ((repo_id, keywords),) = calls
    assert (repo_id, keywords["repo_type"]) == ("tner/bionlp2004", "dataset")
    wanted = (
        "dataset/label.json",
        "dataset/valid.json",
        "train.conll",
        "data/train-00000-of-00001.parquet",
        "Dev.txt",
        "train.csv",
    )
    unwanted = ("model.bin", "script.py", "other.json", "notes.txt")
    assert list(filter_repo_objects([*wanted, *unwanted], allow_patterns=keywords["allow_patterns"])) == list(wanted)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch, no_network) -> Path:
    """An offline hub cache that holds the data set maker/corpus."""
    repository = tmp_path / "hub" / "datasets--maker--corpus"
    write_tner(repository / "snapshots" / "0123456789012345678901234567890123456789" / "dataset")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123456789012345678901234567890123456789")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_cached_hub_data_set_needs_no_network(hub_cache):
    source = load_token_datasets("maker/corpus")["test"].source
    assert source.startswith(str(hub_cache))
    assert source.endswith(os.path.join("dataset", "test.json"))


def test_offline_and_not_cached_names_the_places_and_the_remedy(hub_cache):
    with pytest.raises(ValueError, match="no data set 'maker/other': nothing there") as error:
        load_token_datasets("maker/other")
    assert "the hub did not give it" in str(error.value)
    assert "put a copy under LORA_DATA_DIR" in str(error.value)


DATA_DIR = os.environ.get("LORA_DATA_DIR")


@pytest.mark.skipif(DATA_DIR is None, reason="needs bionlp2004 under LORA_DATA_DIR")
def test_bionlp2004(monkeypatch):
    monkeypatch.setenv("LORA_DATA_DIR", str(DATA_DIR))
    datasets = load_token_datasets("tner/bionlp2004")
    assert {name: len(dataset) for name, dataset in datasets.items()} == {
        "train": 17046,
        "validation": 1928,
        "test": 3856,
    }
    assert datasets["train"].labels[:3] == ("O", "B-DNA", "I-DNA")
    assert datasets["train"].words[0][:2] == ["Anti-Ro", "("]
