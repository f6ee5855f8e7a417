import pytest

from lora_core.models.labels import check_labels, labels_of_config, rows_for


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("O", "expected a list of names"),
        ([], "expected a list of names"),
        (["O", ""], "expected a list of names"),
        (["O", 1], "expected a list of names"),
        (["O", "B", "O"], "holds O more than once"),
    ],
)
def test_labels_are_distinct_names(labels, message):
    with pytest.raises(ValueError, match=message):
        check_labels(labels)


def test_config_s_names_come_in_the_order_of_their_numbers():
    assert labels_of_config({"id2label": {"1": "B", "0": "O"}}, rows=2) == ("O", "B")


def test_names_that_a_config_gives_twice_get_their_row():
    """ImageNet's crane is a bird and a machine."""
    id2label = {"0": "crane", "1": "dog", "2": "crane"}
    assert labels_of_config({"id2label": id2label}, rows=3) == ("crane (0)", "dog", "crane (2)")


def test_numbers_can_be_names():
    assert labels_of_config({"id2label": {"0": 3, "1": 1.5, "2": "x"}}, rows=3) == ("3", "1.5", "x")


def test_a_config_without_names_has_placeholders():
    assert labels_of_config({}, rows=2) == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize(
    ("id2label", "message"),
    [
        ({"0": "O"}, r"id2label has the numbers \[0\]; the head has the rows 0 to 1"),
        ({"zero": "O", "1": "B"}, "expected names by number"),
        (["O", "B"], "expected names by number"),
    ],
)
def test_names_that_do_not_fit_the_head(id2label, message):
    with pytest.raises(ValueError, match=message):
        labels_of_config({"id2label": id2label}, rows=2)


def test_rows_follow_the_names():
    assert rows_for(("B", "O", "I"), known=("O", "B", "I")) == [1, 0, 2]


def test_rows_of_placeholders_are_taken_as_they_come():
    assert rows_for(("bad", "good"), known=("LABEL_0", "LABEL_1")) == [0, 1]


def test_other_names_are_refused_with_both_lists():
    with pytest.raises(ValueError, match=r"\['O', 'X'\], those of .* \['O', 'B'\]; .*fresh_head=True"):
        rows_for(("O", "X"), known=("O", "B"))
