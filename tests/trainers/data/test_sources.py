"""Which split a file belongs to by its name: one rule for words, spans, texts and tables of pictures."""

import json
from pathlib import Path

import pytest
from PIL import Image

from trainers.data.images.reader import load_image_datasets
from trainers.data.sources import by_split, check_one_form, split_in
from trainers.data.texts.reader import load_text_datasets
from trainers.data.tokens.reader import load_token_datasets

TEXTS = "text,label\n" + "".join(f"text {number},{'ab'[number % 2]}\n" for number in range(10))
SPLITS = ["train", "validation", "test"]


def spans(split):
    rows = [{"text": f"{split} Anna {number}", "label": [[len(split) + 1, len(split) + 5, "PER"]]} for number in "123"]
    return "".join(json.dumps(row) + "\n" for row in rows)


def words(split):
    return "".join(f"{split}{number}\tO\nAnna\tB-PER\n\n" for number in range(3))


KINDS = [
    ("texts", "csv", load_text_datasets),
    ("words", "txt", load_token_datasets),
    ("spans", "jsonl", load_token_datasets),
    ("images", "csv", load_image_datasets),
]
NAMES = [
    ("sts-train", "sts-dev", "sts-test"),
    ("snli_1.0_train", "snli_1.0_dev", "snli_1.0_test"),
    ("imdb_train", "imdb_valid", "imdb_test"),
    ("TrainSet", "devset", "testset"),
    ("train", "my-dev", "test-00000-of-00001"),
]


@pytest.mark.parametrize("names", NAMES)
def test_a_split_is_a_word_of_the_name_in_every_kind_of_data(tmp_path, names):
    for kind, ending, load in KINDS:
        (tmp_path / kind).mkdir()
        for split, name in zip(SPLITS, names, strict=True):
            content = {"texts": TEXTS, "words": words(split), "spans": spans(split)}.get(kind, "image,label\n")
            for number in range(4 if kind == "images" else 0):
                content += f"{split}{number}.png,{'ab'[number % 2]}\n"
                Image.new("L", (4, 4)).save(tmp_path / kind / f"{split}{number}.png")
            (tmp_path / kind / f"{name}.{ending}").write_text(content)
        assert list(load(tmp_path / kind)) == SPLITS, kind


def test_a_name_of_its_own_comes_first_and_words_that_tell_two_tell_none():
    names = ["train.csv", "train_extra.csv", "train_dev.csv", "glue-dev.tsv", "notes.csv"]
    found, others = by_split((Path(name), name) for name in names)
    assert found == {"train": ["train.csv"], "validation": ["glue-dev.tsv"]}
    assert others == ["train_extra.csv", "train_dev.csv", "notes.csv"]
    assert split_in(Path("contest.csv")) is None


def test_shards_differ_in_a_number_alone():
    shards = ["train-00000-of-00002-a09b74b3ef9c3b56.parquet", "train-00001-of-00002-4ce5f6c1a1a1a1a1.parquet"]
    check_one_form("train", list(map(Path, shards)), "here")
    for names in (["multi_1.0_dev_matched.jsonl", "multi_1.0_dev_mismatched.jsonl"], ["a_1_dev.txt", "a_1_dev.jsonl"]):
        with pytest.raises(ValueError, match=f"here holds {names[0]}, {names[1]} for the validation split. Keep one"):
            check_one_form("validation", list(map(Path, names)), "here")


def test_text_folders_come_before_a_file_that_only_mentions_a_split(tmp_path):
    for split in ("train", "test"):
        for number in range(20):
            path = tmp_path / split / "ab"[number % 2] / f"{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{split} {number}")
    (tmp_path / "test_ids.txt").write_text("1\n2\n")
    assert len(load_text_datasets(tmp_path)["test"]) == 20


def test_a_folder_of_files_without_tags_names_the_first_and_why(tmp_path):
    lines = "1\tAnna\tAnna\tPROPN\t_\t_\t0\troot\t_\t_\n2\tsings\tsing\tVERB\t_\t_\t1\tdep\t_\t_\n\n"
    for split in SPLITS:
        (tmp_path / f"en_ewt-ud-{split}.conllu").write_text(lines * 3)
    with pytest.raises(ValueError, match=r"ud-test.conllu: no column holds tags"):
        load_token_datasets(tmp_path)
