import numpy as np
import pytest

from trainers.data.labels import LabelNames, label_ids, labels_from_list, read_label_names, relabel, sorted_names

ANY = LabelNames(None)


@pytest.mark.parametrize("label", [-1, "", " ", None, 0.5, -1.0])
def test_labels_that_are_neither_id_nor_name(label):
    with pytest.raises(ValueError, match="expected a name, or an id from 0"):
        ANY.name_of(label)


def test_a_name_that_looks_like_an_id_is_a_name():
    assert LabelNames(("1", "0")).name_of("0") == "0"
    assert LabelNames(("1", "0")).name_of(0) == "1"
    assert ANY.name_of(7) == ANY.name_of(" 7 ") == "7"


def test_numbers_without_decimals_are_ids_and_truth_values_names():
    """pandas writes 1.0 where a column of ids has gaps."""
    assert [ANY.name_of(label) for label in (True, 1.0, "True", " a ")] == ["True", "1", "True", "a"]
    declared = LabelNames(("no", "yes"))
    assert [declared.name_of(label) for label in (True, 0.0, "1.0", "no")] == ["yes", "no", "yes", "no"]
    assert LabelNames(("False", "True")).name_of(True) == "True"


def test_names_are_sorted_by_the_alphabet_and_ids_by_size():
    assert sorted_names(["b", "a", "b"]) == ("a", "b")
    assert sorted_names(["1", "01", "0"]) == ("0", "01", "1")
    assert sorted_names(["10", "9", "2"]) == ("2", "9", "10")
    assert sorted_names(["10", "9", "x"]) == ("10", "9", "x")


@pytest.mark.parametrize(
    ("labels", "names", "targets", "found"),
    [
        (["pos", "neg", "pos"], None, [1, 0, 1], ("neg", "pos")),
        (["pos", "neg"], ["pos", "neg", "neutral"], [0, 1], ("pos", "neg", "neutral")),
        ([1, 0], ["pos", "neg"], [1, 0], ("pos", "neg")),
        (np.array([10, 9]), None, [1, 0], ("9", "10")),
        (np.array(["b", "a"]), None, [1, 0], ("a", "b")),
    ],
)
def test_labels_from_a_list(labels, names, targets, found):
    ids, given = labels_from_list(labels, names, len(targets), "here")
    assert (ids.tolist(), ids.dtype, given) == (targets, np.int64, found)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ("ab", None, "here: the labels are the string 'ab', expected a list"),
        (["a", None], None, "here, example 1: the label is None, expected a name, or an id from 0"),
        (["a", "c"], ["a", "b"], "here, example 1: the label is 'c', expected one of a, b, or an id from 0 to 1"),
        ([[True]], None, r"here, example 0: the label is \[True\]"),
        (np.array([0.5]), None, "here, example 0: the label is 0.5"),
        (["a"], ["a", "a"], r"here: the label names are \['a', 'a'\], expected a list of different names"),
        (["a"], ["a", 1], "expected a list of different names"),
        (["a"], "ab", "expected a list of different names"),
        (["a"], None, "here: 2 examples and 1 labels, expected examples with a label each"),
    ],
)
def test_lists_that_are_no_labels(labels, names, message):
    with pytest.raises(ValueError, match=message):
        labels_from_list(labels, names, 2, "here")


def test_ids_among_other_labels():
    assert label_ids(("neg", "pos", "unused"), ("pos", "neg")).tolist() == [1, 0, -1]
    assert label_ids((), ("pos",)).dtype == np.int64


def test_only_labels_that_occur_must_be_known():
    own, new = ("neg", "pos", "unused"), ("pos", "neg")
    assert relabel(np.array([[1, 0], [0, 0]]), own, new, "here").tolist() == [[0, 1], [1, 1]]
    assert relabel(np.zeros(0, dtype=np.int64), (), new, "here").tolist() == []
    with pytest.raises(ValueError, match=r"here has labels that are not among \['pos', 'neg'\]: \['unused'\]"):
        relabel(np.array([0, 2, 2]), own, new, "here")


def test_labels_stand_in_order_of_their_ids(tmp_path):
    path = tmp_path / "label.json"
    path.write_text('\ufeff{"B-X": 1, "O": 0, "I-X": 2}', encoding="utf-8")
    assert read_label_names(path) == ("O", "B-X", "I-X")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON in UTF-8"),
        (b'{"\xe9t\xe9": 0}', "is not JSON in UTF-8"),
        (b"[]", r"holds list instead of a JSON object. Expected label names with their ids: \{\"O\": 0"),
        (b"{}", "Expected label names with their ids"),
        (b'{"0": "O"}', r"holds \{'0': 'O'\}. Expected label names with their ids"),
        (b'{"O": 0, "B-X": 2}', r"gives the ids \[0, 2\], expected 0 to 1"),
        (b'{"O": 0, "B-X": 0}', r"gives the ids \[0, 0\]"),
    ],
)
def test_bad_label_files_are_refused(tmp_path, content, message):
    (tmp_path / "label.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_label_names(tmp_path / "label.json")
