from pathlib import Path

import pytest

from trainers.data.rows import BadRows, numbered_lines, refuse_lone_surrogates, short


def test_the_first_bad_row_raises_with_its_place_and_a_remedy():
    with pytest.raises(ValueError, match=r"^a.txt:7: no tag\. Correct the file, or pass on_bad_row='skip'"):
        BadRows("error").add(Path("a.txt"), 7, "no tag")


def test_left_out_rows_are_reported_once_and_the_first_ones_named(caplog):
    bad_rows = BadRows("skip")
    bad_rows.report()
    assert caplog.messages == []
    for line in range(1, 8):
        bad_rows.add(Path("a.txt"), line, "no tag")
    bad_rows.report()
    (message,) = caplog.messages
    assert message.startswith("left out 7 bad rows: a.txt:1: no tag; ")
    assert message.endswith("a.txt:5: no tag; ...")


def test_only_a_newline_ends_a_line(tmp_path):
    text = "\ufeffa\u2028b\x85c\x0bd\re\r\n\nlast"
    (tmp_path / "a.txt").write_bytes(text.encode())
    lines = [(number, line.decode()) for number, line in numbered_lines(tmp_path / "a.txt")]
    assert lines == [(1, "a\u2028b\x85c\x0bd\re"), (2, ""), (3, "last")]


def test_values_in_messages_are_short():
    assert short("ab") == "'ab'"
    assert len(short("a" * 10_000)) == 103


def test_lone_surrogates_are_refused():
    refuse_lone_surrogates("plain é 🙂")
    with pytest.raises(ValueError, match=r"'\\udc00', half of a character"):
        refuse_lone_surrogates("é\udc00")
