import logging
import sys

import pytest

from trainers.show import (
    LogHandler,
    duration,
    fitted_table,
    hushed,
    markdown_table,
    progress_bar,
    score_text,
    text_table,
)


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


def test_scores_are_in_percent_and_losses_as_they_are():
    assert [score_text(*one) for one in (("f1", 0.87654), ("pearson", -0.5), ("loss", 0.87654), ("mae", 2.0))] == [
        "87.65",
        "-50.00",
        "0.8765",
        "2.0000",
    ]


def test_wide_tables_are_turned_and_split():
    rows = [["name", *(f"column {number}" for number in range(5))], *([name, *"12345"] for name in ("one", "two"))]
    assert fitted_table(rows, width=200) == text_table(rows)
    turned = fitted_table(rows, width=30)
    assert turned.splitlines()[:2] == ["name      one  two", "column 0    1    1"]
    many = [["name", "a", "b"], *([f"run {number}", f"{number}", "x" * 9] for number in range(9))]
    split = fitted_table(many, width=17)  # neither way round it fits
    blocks = [[line.split("  ") for line in block.splitlines()] for block in split.split("\n\n")]
    assert [len(block) for block in blocks] == [3] * 9
    assert [block[0][0] for block in blocks] == ["name"] * 9
    assert [block[1][-1].strip() for block in blocks] == [str(number) for number in range(9)]
    assert max(map(len, split.splitlines())) <= 17


def test_log_lines_stand_above_the_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    handler, record = LogHandler(), logging.makeLogRecord({"msg": "a line"})
    with progress_bar("work", 3) as bar:
        capsys.readouterr()
        handler.emit(record)
        err = capsys.readouterr().err
        assert err[: err.index("a line")].strip("\r ") == ""  # the bar's line is emptied first
        assert err.endswith(str(bar))
    handler.emit(record)
    assert capsys.readouterr().err.endswith("a line\n")


def test_a_line_is_not_written_again_until_a_while_later(capsys):
    handler = LogHandler()
    for rows, when in [(3, 1.0), (4, 2.0), (3, 3.0), (3, 700.0)]:
        handler.handle(logging.makeLogRecord({"msg": "%s rows", "args": (rows,), "created": when}))
    assert capsys.readouterr().err == "3 rows\n4 rows\n3 rows\n"


def test_bars_show_on_a_terminal_alone_and_not_when_hushed(monkeypatch, caplog):
    assert progress_bar("work", 3).disable  # a test's standard error is no terminal
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar("work", 3) as bar:
        assert not bar.disable
    assert progress_bar("work", 3, shown=False).disable
    caplog.set_level("INFO")
    with hushed():
        assert progress_bar("work", 3).disable
        logging.getLogger("trainers").info("nothing")
        logging.getLogger("trainers").warning("something")
    assert caplog.messages == ["something"]
    with hushed(False):
        logging.getLogger("trainers").info("again")
    assert caplog.messages == ["something", "again"]
