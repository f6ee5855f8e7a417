import dataclasses
import json
import logging
import string

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel, WordPiece
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import BertProcessing

from trainers.data.tokens import encode as preprocess
from trainers.data.tokens.encode import load_windows
from trainers.data.tokens.head import TaggedFile
from trainers.data.tokens.reader import TokenFile, load_token_datasets, token_files
from trainers.data.tokens.windows import encode_tokens

LABELS = ("O", "B-X", "I-X")
ARRAYS = ("input_ids", "labels", "word_ids", "offsets", "sentence", "lengths", "label_counts")
TOKENS = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", *string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase)]


def letters() -> Tokenizer:
    """A word of n letters becomes n pieces."""
    tokenizer = Tokenizer(WordPiece({token: i for i, token in enumerate(TOKENS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return tokenizer


TOKENIZER = letters()
SENTENCE = st.lists(st.tuples(st.text(string.ascii_lowercase, min_size=1, max_size=8), st.integers(0, 2)), min_size=1)


def write(folder, sentences, extra=""):
    path = folder / "train.json"
    rows = [{"tokens": [word for word, _ in row], "tags": [tag for _, tag in row]} for row in sentences]
    path.write_text("\n".join(map(json.dumps, rows)) + extra)
    return TokenFile((TaggedFile(path, "", "train", "json"),), LABELS, LABELS, "error")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def encoded(monkeypatch):
    """Numbers of sentences that were tokenised, one for each chunk."""
    found = []
    plain = preprocess.encode_chunk

    def counted(words, *args):
        found.append(len(words))
        return plain(words, *args)

    monkeypatch.setattr(preprocess, "encode_chunk", counted)
    return found


def assert_same(windows, expected):
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(windows, name), getattr(expected, name), err_msg=name)
    assert windows.pad_token_id == expected.pad_token_id
    order = np.arange(len(expected))[::-1]
    for ours, theirs in zip(windows.collate(order), expected.collate(order), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@given(st.lists(SENTENCE, min_size=1, max_size=12), st.integers(1, 4), st.integers(1, 30), st.integers(3, 12))
def test_windows_in_chunks_mapped_or_not_are_those_of_all_sentences_at_once(
    tmp_path_factory, sentences, chunk_sentences, chunk_words, max_length
):
    folder = tmp_path_factory.mktemp("data")
    file = write(folder, sentences)
    words, tags = [[w for w, _ in row] for row in sentences], [[t for _, t in row] for row in sentences]
    expected = encode_tokens(words, tags, TOKENIZER, max_length, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_CACHE_DIR", str(folder / "cache"))
        patch.setattr(preprocess, "CHUNK_SENTENCES", chunk_sentences)
        patch.setattr(preprocess, "CHUNK_WORDS", chunk_words)
        patch.setattr("trainers.data.tokens.pieces.MOST_WORDS", 3)
        assert_same(load_windows(file, TOKENIZER, max_length, 3), expected)
        assert_same(load_windows(file, TOKENIZER, max_length, 3), expected)
        assert_same(load_windows(file, TOKENIZER, max_length, 3, cache=False), expected)


def test_the_second_time_nothing_is_tokenised(tmp_path, encoded, folder):
    file = write(tmp_path, [[("a", 1)]] * 5)
    load_windows(file, TOKENIZER, 9, 3)
    windows = load_windows(file, TOKENIZER, 9, 3)
    assert encoded == [5]
    assert isinstance(windows.input_ids.base, np.memmap)
    load_windows(file, TOKENIZER, 9, 3, cache=False)
    assert encoded == [5, 5]
    assert len(list(folder.iterdir())) == 2  # an entry and its lock


def test_without_the_cache_nothing_is_written(tmp_path, folder):
    load_windows(write(tmp_path, [[("a", 1)]]), TOKENIZER, 9, 3, cache=False)
    assert not folder.exists()


def test_memory_holds_a_chunk_at_a_time(tmp_path, encoded, monkeypatch):
    monkeypatch.setattr(preprocess, "CHUNK_SENTENCES", 3)
    monkeypatch.setattr(preprocess, "CHUNK_WORDS", 10)
    load_windows(write(tmp_path, [[("a", 1)]] * 7 + [[("b", 0)] * 12] * 2), TOKENIZER, 99, 3)
    assert encoded == [3, 3, 2, 1]


def test_what_the_windows_depend_on_is_in_the_key(tmp_path, encoded):
    file = write(tmp_path, [[("ab", 1)]])
    load_windows(file, TOKENIZER, 9, 3)
    other_tokenizer = letters()
    other_tokenizer.add_tokens(["ab"])
    assert len(load_windows(file, other_tokenizer, 9, 3).input_ids) == 3
    load_windows(file, TOKENIZER, 8, 3)
    relabelled = load_windows(file.with_labels(("B-X", "I-X", "O")), TOKENIZER, 9, 3)
    assert relabelled.labels.tolist() == [-100, 0, -100, -100]
    load_windows(write(tmp_path, [[("ba", 1)]]), TOKENIZER, 9, 3)
    assert encoded == [1] * 5
    padded = load_windows(file, TOKENIZER, 9, 0)  # padding is added later
    assert encoded == [1] * 5
    assert padded.pad_token_id == 0


def test_bad_rows_are_reported_every_time(tmp_path, caplog):
    file = dataclasses.replace(write(tmp_path, [[("a", 1)]], "\nbad\n"), on_bad_row="skip")
    for cache in (True, True, False):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert len(load_windows(file, TOKENIZER, 9, 3, cache=cache)) == 1
        assert "left out 1 bad rows" in caplog.text
        assert "train.json:2: not JSON" in caplog.text
    with pytest.raises(ValueError, match=r"train.json:2: not JSON"):
        load_windows(dataclasses.replace(file, on_bad_row="error"), TOKENIZER, 9, 3)


def test_ids_and_labels_take_the_narrowest_type_that_holds_them(tmp_path):
    file = write(tmp_path, [[("a", 2)]])
    assert load_windows(file, TOKENIZER, 9, 3).input_ids.dtype == np.uint16
    vocabulary = {"[UNK]": 0, "a": 65_535}
    assert load_windows(file, Tokenizer(WordLevel(vocabulary, unk_token="[UNK]")), 9, 0).input_ids.tolist() == [65_535]
    vocabulary["b"] = 65_536
    windows = load_windows(file, Tokenizer(WordLevel(vocabulary, unk_token="[UNK]")), 9, 0)
    assert (windows.input_ids.dtype, windows.labels.dtype) == (np.int32, np.int16)
    many = dataclasses.replace(file, labels=tuple(f"B-{index}" for index in range(32_768)))
    with pytest.raises(ValueError, match="32768 labels"):
        load_windows(many, TOKENIZER, 9, 3)


def test_a_dataset_in_memory_gives_the_same_windows(tmp_path, encoded):
    (tmp_path / "label.json").write_text(json.dumps({label: index for index, label in enumerate(LABELS)}))
    file = write(tmp_path, [[("ab", 1), ("c", 2)], [("d", 0)]])
    dataset = load_token_datasets(tmp_path)["train"]
    for _ in range(2):
        assert_same(load_windows(dataset, TOKENIZER, 9, 3), load_windows(file, TOKENIZER, 9, 3, cache=False))
    assert encoded == [2, 2, 2]
    changed = dataclasses.replace(dataset, tags=[[1, 2], [1]])
    assert load_windows(changed, TOKENIZER, 9, 3).labels.tolist()[-2] == 1
    with pytest.raises(ValueError, match="no sentences"):
        load_windows(dataclasses.replace(dataset, words=[], tags=[]), TOKENIZER, 9, 3)


def test_files_of_a_folder_go_straight_into_windows(tmp_path):
    (tmp_path / "train.conll").write_text("ab B-X\nc I-X\n\nd O\n")
    windows = load_windows(token_files(tmp_path)["train"], TOKENIZER, 9, 3)
    assert windows.labels.tolist() == [-100, 1, -100, 2, -100, -100, 0, -100]
