"""What spreadsheets and people's own tables do."""

import pytest

from trainers.data.reading import Reading
from trainers.data.texts.reader import load_text_datasets

TEXTS = [f"text number {number}" for number in range(40)]


@pytest.mark.parametrize("separator", [";", ",", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_the_line_that_tells_excel_the_separator(tmp_path, separator, encoding):
    rows = [f"text{separator}label", *(f"{text}{separator}{'ab'[number % 2]}" for number, text in enumerate(TEXTS))]
    (tmp_path / "train.csv").write_text("\r\n".join([f"sep={separator}", *rows]) + "\r\n", encoding=encoding)
    found = load_text_datasets(tmp_path)
    assert sorted(found["train"].texts + found["validation"].texts) == sorted(TEXTS)
    assert found["train"].labels == ("a", "b")


@pytest.mark.parametrize(("yes", "no"), [("True", "False"), ("TRUE", "FALSE"), ("1", "0")])
def test_a_column_for_each_label_in_words(tmp_path, yes, no):
    rows = [f"{text},{(no, yes)[number % 2]},{(no, yes)[number % 3 > 0]}" for number, text in enumerate(TEXTS)]
    (tmp_path / "train.csv").write_text("\n".join(["text,anger,joy", *rows]) + "\n")
    found = load_text_datasets(tmp_path, reading=Reading(label_column="anger,joy"))
    assert found["train"].labels == ("anger", "joy")
    total = found["train"].targets.sum(0) + found["validation"].targets.sum(0)
    assert total.tolist() == [20, 26]


@pytest.mark.parametrize("separator", ["|", ";", " "])
def test_what_a_user_calls_several_labels_is_cut(tmp_path, caplog, separator):
    kinds = [f"db{separator}java", "java", f"db{separator}java{separator}sql", f"sql{separator}java"]
    rows = [f'{text},"{kinds[number % 4]}"' for number, text in enumerate(TEXTS)]
    (tmp_path / "train.csv").write_text("\n".join(["text,tags", *rows]) + "\n")
    reading = Reading(label_column="tags")
    found = load_text_datasets(tmp_path, problem_type="multi_label_classification", reading=reading)
    assert found["train"].labels == ("db", "java", "sql")
    assert f"cells are cut at {separator!r}" in caplog.text or separator in ",|;"


def test_a_label_that_may_stand_for_none_is_said(tmp_path, caplog):
    rows = [f"{text},{('entailment', 'neutral', '-')[number % 3]}" for number, text in enumerate(TEXTS)]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    load_text_datasets(tmp_path)
    assert "one of the labels is '-', which is taken for a class" in caplog.text


def test_splits_in_one_object_are_refused_with_what_to_do(tmp_path):
    (tmp_path / "data.json").write_text('{"train": [["a", "x"]], "test": [["b", "y"]]}')
    with pytest.raises(ValueError, match=r"are to be files of their own, train\.json and test\.json"):
        load_text_datasets(tmp_path / "data.json")
