import json

import pytest

from trainers.data.rows import BadRows
from trainers.data.tokens.reader import load_token_datasets, token_files

ROWS = [(["EU", "rejects"], [1, 0]), (["Peter"], [2])]
LABELS = ("O", "B-ORG", "B-PER")


@pytest.fixture
def tner(tmp_path):
    folder = tmp_path / "tner"
    folder.mkdir()
    (folder / "label.json").write_text(json.dumps({label: index for index, label in enumerate(LABELS)}))
    lines = [json.dumps({"tokens": words, "tags": tags}) for words, tags in ROWS]
    (folder / "train.json").write_text("\n".join(lines))
    return folder


@pytest.fixture
def conll(tmp_path):
    folder = tmp_path / "conll"
    folder.mkdir()
    (folder / "train.txt").write_text("EU I-ORG\nrejects O\n\nPeter B-PER\n")
    (folder / "test.txt").write_text("Rome B-LOC\n")
    return folder


def sentences(file):
    return list(file.sentences(BadRows(file.on_bad_row)))


def test_sentences_come_as_often_as_they_are_asked_for(tner):
    file = token_files(tner)["train"]
    assert sentences(file) == sentences(file) == ROWS
    assert file.labels == LABELS
    dataset = load_token_datasets(tner)["train"]
    assert list(zip(dataset.words, dataset.tags, strict=True)) == ROWS


def test_nothing_is_read_before_it_is_needed(tner):
    with (tner / "train.json").open("a") as file:
        file.write("\nnot json")
    rows = token_files(tner)["train"].sentences(BadRows("error"))
    assert next(rows) == ROWS[0]
    with pytest.raises(ValueError, match=r"train.json:3: not JSON"):
        list(rows)


def test_sentences_drawn_are_equally_likely_and_in_order(tner):
    lines = [json.dumps({"tokens": [f"word{number}"], "tags": [0]}) for number in range(6)]
    (tner / "train.json").write_text("\n".join(lines))
    file = token_files(tner)["train"]
    assert file.drawn(6, seed=0) == file.drawn(9, seed=1) == file.in_memory()
    drawn = [[words[0] for words in file.drawn(2, seed).words] for seed in range(300)]
    assert drawn[0] == [words[0] for words in file.drawn(2, 0).words]
    assert all(len(set(words)) == 2 and words == sorted(words) for words in drawn)
    counts = [sum(f"word{number}" in words for words in drawn) for number in range(6)]
    assert all(75 < count < 125 for count in counts)  # 100 expected, and a standard deviation of 8
    with pytest.raises(ValueError, match="limit=0: expected at least 1 example"):
        file.drawn(0, seed=0)


def test_conll_files_have_the_labels_of_all_splits_and_iob2(conll, caplog):
    files = token_files(conll)
    labels = ("O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER")
    assert {file.labels for file in files.values()} == {labels}
    assert sentences(files["train"]) == [(["EU", "rejects"], [3, 0]), (["Peter"], [5])]
    assert sentences(files["test"]) == [(["Rome"], [1])]
    assert "1 tags I- that continue nothing" in caplog.text
    assert "labels that the training split lacks: B-LOC, I-LOC" in caplog.text


@pytest.mark.parametrize("layout", ["tner", "conll"])
def test_other_labels_give_their_ids(request, layout):
    file = token_files(request.getfixturevalue(layout))["train"]
    names = ("B-PER", "X", "I-PER", "I-ORG", "B-ORG", "I-LOC", "B-LOC", "O")
    assert [tags for _, tags in sentences(file.with_labels(names))] == [[4, 7], [0]]
    assert file.with_labels(names).labels == names
    assert [tags for _, tags in sentences(file.with_labels(("B-ORG", "B-PER", "O")))] == [[0, 2], [1]]
    with pytest.raises(ValueError, match=r"train\.\w+ has labels that are not among \['O'\]: \['B-ORG'\]"):
        sentences(file.with_labels(("O",)))
    with pytest.raises(ValueError, match=r"train\.\w+ has labels that are not among \['O'\]: \['B-ORG', 'B-PER'\]"):
        file.in_memory().with_labels(("O",))
    assert file.in_memory().with_labels(names) == file.with_labels(names).in_memory()


def test_the_content_key_tells_what_the_sentences_depend_on(tner, tmp_path):
    def key(folder, labels=LABELS, on_bad_row="error"):
        return json.dumps(token_files(folder, on_bad_row=on_bad_row)["train"].with_labels(labels).content_key())

    first = key(tner)
    assert len({first, key(tner, labels=(*LABELS, "X")), key(tner, on_bad_row="skip")}) == 3
    moved = tner.rename(tmp_path / "moved")
    assert key(moved) == first
    (moved / "train.json").write_text((moved / "train.json").read_text() + "\n")
    assert key(moved) != first


def test_a_file_without_a_usable_sentence_is_refused(tner):
    (tner / "train.json").write_text("bad\n")
    with pytest.raises(ValueError, match="holds no usable sentence"):
        sentences(token_files(tner, on_bad_row="skip")["train"])


@pytest.mark.parametrize("tag", ["I-ORG", "B-LOC"])
def test_a_name_that_the_data_does_not_declare_is_refused_when_it_is_read(tner, tag):
    with (tner / "train.json").open("a") as file:
        file.write('\n{"tokens": ["EU", "in"], "tags": ["B-ORG", "O"]}\n')
        json.dump({"tokens": ["Rome"], "tags": [tag]}, file)
    rows = token_files(tner)["train"].sentences(BadRows("error"))
    assert [next(rows) for _ in range(3)] == [*ROWS, (["EU", "in"], [1, 0])]
    with pytest.raises(ValueError, match=rf"train.json has labels that are not among .*: \['{tag}'\]"):
        next(rows)


def test_names_in_json_lines_are_read_as_those_of_conll(tmp_path, caplog):
    (tmp_path / "train.jsonl").write_text('{"tokens": ["a", "b", "c"], "ner_tags": ["I-X", "I-X", "I-Y"]}\n')
    (tmp_path / "test.jsonl").write_text('{"tokens": ["d"], "ner_tags": ["B-A"]}\n')
    files = token_files(tmp_path)
    assert files["train"].labels == ("O", "B-A", "I-A", "B-X", "I-X", "B-Y", "I-Y")
    assert sentences(files["train"]) == [(["a", "b", "c"], [3, 4, 5])]
    assert caplog.messages == [
        f"{tmp_path}/train.jsonl: 2 tags I- that continue nothing became B- (IOB2)",
        f"{tmp_path}/test.jsonl has labels that the training split lacks: B-A, I-A",
    ]


def test_the_names_beside_conll_files_do_not_change_its_labels(conll):
    (conll / "label.json").write_text('{"O": 0, "B-LOC": 1}')
    assert token_files(conll)["train"].labels == ("O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER")


def test_shards_are_one_split_and_each_must_hold_a_sentence(tner):
    key = token_files(tner)["train"].content_key()
    (tner / "train.json").rename(tner / "train-0.json")
    (tner / "train-1.json").write_text('{"tokens": ["a"], "tags": [0]}')
    file = token_files(tner)["train"]
    assert sentences(file) == [*ROWS, (["a"], [0])]
    assert file.in_memory().source == f"{tner}/train-0.json, {tner}/train-1.json"
    assert file.content_key()["files"][0] == key["files"][0]
    (tner / "train-1.json").write_text("\n")
    with pytest.raises(ValueError, match=r"train-1.json holds no usable sentence"):
        sentences(file)
