import json

import numpy as np
import pytest
from PIL import Image

from trainers.corpus.statistics import statistics, statistics_table, write_statistics
from trainers.data.rows import BadRows
from trainers.data.tokens.files import find_tagged_source
from trainers.data.tokens.scan import scan

TRAIN = [
    ("5.25 % notes", "B-Rate O O"),
    ("up to $ 40 million", "O O O B-Cap O"),
    ("no debt", "O O"),
    ("no debt", "O O"),
]
TEST = [("5.25 % notes", "O O O"), ("no debt", "O O"), ("LIBOR plus 2 and 3", "O O B-Rate O B-Rate")]


def counted(folder, on_bad_row="error", **splits):
    for split, sentences in splits.items():
        rows = [{"tokens": words.split(), "ner_tags": tags.split()} for words, tags in sentences]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return statistics(scan(find_tagged_source(folder), BadRows(on_bad_row)))


def test_every_figure(tmp_path):
    found = counted(tmp_path, train=TRAIN, test=TEST)
    train, test = found.splits["train"], found.splits["test"]
    assert (train.sentences, train.tokens, train.sentences_with_entities, train.entity_tokens) == (4, 12, 2, 2)
    assert (train.sentence_coverage, train.token_coverage) == (0.5, 2 / 12)
    assert train.entities == {"Rate": 1, "Cap": 1}
    assert test.entities == {"Rate": 2, "Cap": 0}
    assert test.labels == {"O": 8, "B-Rate": 2, "B-Cap": 0}
    assert train.lengths == {
        "min": 2,
        "median": 2.5,
        "mean": 3.0,
        "p95": pytest.approx(np.percentile([3, 5, 2, 2], 95)),
        "max": 5,
    }
    assert (sum(train.length_histogram), train.length_histogram[0]) == (4, 4)
    assert (train.repeated, test.repeated) == (1, 0)
    assert (train.seen_in_train, test.seen_in_train) == (0, 2)
    assert found.types == ("Rate", "Cap")
    assert found.labels == ("O", "B-Rate", "B-Cap")


def test_what_may_spoil_an_experiment_is_said(tmp_path):
    (tmp_path / "label.json").write_text(
        json.dumps(dict(zip(["O", "B-Rate", "B-Cap", "B-Never"], range(4), strict=True)))
    )
    long = [("word " * 400, "O " * 400), ("a b", "I-Cap O")]
    (tmp_path / "valid.jsonl").write_text("{\n" + json.dumps({"tokens": ["a"], "ner_tags": ["B-Cap"]}))
    found = counted(tmp_path, "skip", train=TRAIN + long, test=TEST)
    text = " ".join(found.warnings)
    for part in (
        "1 rows cannot be used and were left out.",
        "1 tags I-X continue no entity, as in IOB1; each",
        "1 of 7 distinct sentences are tagged in more than one way.",
        "2 of 3 test sentences (66.7%) also stand in the training split.",
        "The test split lacks Cap.",
        "The test split has fewer than 20 entities of Rate:",
        "The longest train sentence has 400 words",
        "1 of 5 labels never occur: B-Never.",
    ):
        assert part in text
    assert "validation sentences" not in text


def test_a_sound_corpus_has_no_warnings(tmp_path):
    def sentences(name):
        return [(f"{name} {number} a b", "O B-Rate O B-Cap") for number in range(30)]

    assert counted(tmp_path, train=sentences("x"), valid=sentences("y"), test=sentences("z")).warnings == ()


def test_the_table_and_the_files(tmp_path):
    found = counted(tmp_path, train=TRAIN, test=TEST)
    table = statistics_table(found)
    assert "| with entities                  |  2 (50.0%) |  1 (33.3%) |" in table
    assert "| Rate                  |     1 |    2 |" in table
    assert "| B-Cap                 |     1 |    0 |" in table
    assert all(f"- Note: {warning}" in table for warning in found.warnings)
    paths = write_statistics(found, tmp_path / "out", "corpus")
    assert [path.name for path in paths] == ["corpus.md", "corpus.json", "corpus.png"]
    assert paths[0].read_text() == table
    figures = json.loads(paths[1].read_text())
    assert figures["splits"]["test"]["entities"] == {"Rate": 2, "Cap": 0}
    assert figures["warnings"] == list(found.warnings)


def test_the_picture_shows_each_split_and_has_room_for_many_types(tmp_path):
    many = [(f"word {number}", f"O B-Type{number}WithAVeryLongNameThatGoesOnAndOn") for number in range(30)]
    few = Image.open(write_statistics(counted(tmp_path, train=TRAIN, test=TEST), tmp_path / "few")[2])
    (tmp_path / "many").mkdir()
    tall = Image.open(write_statistics(counted(tmp_path / "many", train=many), tmp_path / "many")[2])
    assert tall.height > few.height
    colours = {colour for _, colour in few.convert("RGB").getcolors(1 << 20)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours
    assert (0xD5, 0x5E, 0x00) not in {colour for _, colour in tall.convert("RGB").getcolors(1 << 20)}
