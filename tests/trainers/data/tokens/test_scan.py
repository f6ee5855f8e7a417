import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.data.rows import BadRows
from trainers.data.tokens.bio import find_entities
from trainers.data.tokens.files import find_tagged_source
from trainers.data.tokens.scan import scan

TAGS = ["O", "O", "B-a", "I-a", "B-b", "I-b"]
SENTENCES = st.lists(
    st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from(TAGS)), min_size=1, max_size=7), min_size=1
)


def write(folder, **splits):
    folder.mkdir(parents=True, exist_ok=True)
    for split, sentences in splits.items():
        rows = [{"tokens": [w for w, _ in sentence], "ner_tags": [t for _, t in sentence]} for sentence in sentences]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return find_tagged_source(folder)


@settings(max_examples=60)
@given(train=SENTENCES, test=SENTENCES)
def test_counts_equal_those_of_whole_sentences_in_memory(tmp_path_factory, train, test):
    scanned = scan(write(tmp_path_factory.mktemp("scan"), train=train, test=test), BadRows("error"))
    every = train + test
    assert scanned.lengths.tolist() == [len(sentence) for sentence in every]
    assert scanned.file_offsets.tolist() == [0, len(train), len(every)]
    assert [scanned.splits[index] for index in scanned.split_of_rows()] == ["train"] * len(train) + ["test"] * len(test)
    for index, sentence in enumerate(every):
        own = scanned.entity_types[scanned.entity_offsets[index] : scanned.entity_offsets[index + 1]]
        expected = Counter(kind for kind, _, _ in find_entities([tag for _, tag in sentence], strict=False))
        assert Counter(scanned.types[kind] for kind in own) == expected
    for index, sentences in enumerate((train, test)):
        expected = Counter(tag for sentence in sentences for _, tag in sentence)
        assert {k: v for k, v in zip(scanned.labels, scanned.label_counts[index], strict=True) if v} == expected
    words = [tuple(word for word, _ in sentence) for sentence in every]
    tags = [tuple(tag for _, tag in sentence) for sentence in every]
    same = scanned.fingerprints[:, None] == scanned.fingerprints
    assert same.tolist() == [[a == b for b in words] for a in words]
    same &= scanned.taggings[:, None] == scanned.taggings
    assert same.tolist() == [[a == b for b in every] for a in every]
    lenient = sum(len(find_entities(sentence, strict=False)) for sentence in tags)
    strict = sum(tag[0] == "B" for sentence in tags for tag in sentence)
    assert scanned.stray == lenient - strict


def test_rows_that_are_left_out_keep_their_place(tmp_path):
    source = write(tmp_path, train=[[("x", "B-a")]], test=[[("y", "O")]])
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"tokens": []}\n{"tokens": ["z"], "ner_tags": ["B-b"]}\n{\n')
    bad_rows = BadRows("skip")
    scanned = scan(source, bad_rows)
    assert scanned.lengths.tolist() == [1, 0, 1, 1]
    assert scanned.file_offsets.tolist() == [0, 3, 4]
    assert np.diff(scanned.entity_offsets).tolist() == [1, 0, 1, 0]
    assert scanned.unusable == bad_rows.count == 2


def test_a_sentence_of_more_entities_than_16_bits_count(tmp_path):
    scanned = scan(write(tmp_path, train=[[("x", "B-a")] * 70_000]), BadRows("error"))
    assert scanned.entity_offsets.tolist() == [0, 70_000]


def test_a_file_without_sentences_is_refused(tmp_path):
    source = write(tmp_path, train=[[("x", "B-a")]], test=[])
    with pytest.raises(ValueError, match=r"test.jsonl holds no usable sentence"):
        scan(source, BadRows("error"))
