import pytest

from trainers.show import duration, markdown_table, text_table


def test_columns_are_aligned_and_bars_escaped():
    assert markdown_table(["run", "F1"], [["a|b", "9.50"], ["long", "80"]]).splitlines() == [
        r"| run  |   F1 |",
        r"| ---- | ---: |",
        r"| a\|b | 9.50 |",
        r"| long |   80 |",
    ]
    assert markdown_table(["run", "kind"], [["a", "b"]], left=2).splitlines()[1:] == [
        "| --- | ---- |",
        "| a   | b    |",
    ]


def test_chosen_columns_stand_to_the_left():
    rows = [["file", "MB", "compared"], ["a.onnx", "7.5", "equal"], ["b", "12.5", "-0.1"]]
    assert text_table(rows, left={0, 2}).splitlines() == [
        "file      MB  compared",
        "a.onnx   7.5  equal",
        "b       12.5  -0.1",
    ]
    assert text_table(rows).splitlines()[1:] == ["a.onnx   7.5     equal", "b       12.5      -0.1"]
    assert markdown_table(rows[0], rows[1:], left={0, 2}).splitlines() == [
        "| file   |   MB | compared |",
        "| ------ | ---: | -------- |",
        "| a.onnx |  7.5 | equal    |",
        "| b      | 12.5 | -0.1     |",
    ]
    with pytest.raises(ValueError, match="shorter"):
        text_table([["a", "b"], ["c"]])


@pytest.mark.parametrize(
    ("seconds", "text"), [(6.6, "7 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
