import pytest

from trainers.data.table import column_of, rows_of


class Polars:
    def to_dicts(self):
        return [{"a": 1}]


@pytest.mark.parametrize("table", [Polars(), [{"a": 1}], {"a": [1]}])
def test_rows(table):
    assert rows_of(table, "x") == ([{"a": 1}], {})


def test_a_row_that_is_none_is_named():
    with pytest.raises(ValueError, match=r"x, row 1, is 3, expected a dict"):
        rows_of([{"a": 1}, 3], "x")


def test_the_wanted_column_or_the_first_usual_one():
    assert column_of([{"a": 1, "b": 2}], "", ("c", "b"), "it", "x") == "b"
    assert column_of([{"a": 1, "b": 2}], "a", ("c", "b"), "it", "x") == "a"
    with pytest.raises(ValueError, match=r"x has the columns \['a'\]: expected 'z' for it"):
        column_of([{"a": 1}], "z", (), "it", "x")
