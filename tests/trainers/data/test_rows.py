import gzip
from pathlib import Path

import pytest

from trainers.data.rows import BadRows, numbered_lines, refuse_lone_surrogates, short


def test_the_first_bad_row_raises_with_its_place_and_a_remedy():
    with pytest.raises(ValueError, match=r"^a.txt:7: no tag\. Correct the file, or leave .*--on-bad-row skip"):
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


TEXT = "Müller\tB-PER\nläuft\tO\n\n東京\tB-LOC\n"


def lines_of(path, **options):
    return [line.decode() for _, line in numbered_lines(path, **options)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_forms_of_unicode_line_ends_and_gzip_are_recognised_whatever_the_name(tmp_path, encoding, pack, end):
    (tmp_path / "a.txt").write_bytes(pack((TEXT * 3).replace("\n", end).encode(encoding)))
    assert lines_of(tmp_path / "a.txt") == (TEXT * 3).split("\n")[:-1]


def test_an_old_encoding_is_recognised_and_said(tmp_path, caplog):
    (tmp_path / "a.txt").write_bytes("Müller “läuft” \n".encode("cp1252"))
    assert lines_of(tmp_path / "a.txt", keep_ends=True) == ["Müller “läuft” \n"]
    assert "a.txt is not UTF-8: it is read as cp1252. --encoding says otherwise." in caplog.messages[0]
    (tmp_path / "b.txt").write_bytes("Москва\n".encode("koi8-r"))
    assert lines_of(tmp_path / "b.txt", encoding="koi8-r") == ["Москва"]
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_damage_stays_in_its_line(tmp_path, encoding):
    damaged = TEXT.encode(encoding) + "läuft".encode(encoding)[:-1] + b"\xd8\xff"[-1 if encoding == "utf-8" else 0 :]
    (tmp_path / "a.txt").write_bytes(damaged)
    *whole, last = [line for _, line in numbered_lines(tmp_path / "a.txt")]
    assert [line.decode() for line in whole] == TEXT.split("\n")[:-1]
    with pytest.raises(UnicodeDecodeError):
        last.decode()


def test_values_in_messages_are_short():
    assert short("ab") == "'ab'"
    assert len(short("a" * 10_000)) == 103


def test_lone_surrogates_are_refused():
    refuse_lone_surrogates("plain é 🙂")
    with pytest.raises(ValueError, match=r"'\\udc00', half of a character"):
        refuse_lone_surrogates("é\udc00")


def test_a_row_in_another_encoding_names_the_flag():
    """So few bytes that the file is taken for damaged, and not for one in an old encoding."""
    with pytest.raises(
        ValueError, match=r"^a.csv:3: not UTF-8 \(x\)\. Name its encoding \(--encoding cp1252\), correct"
    ):
        BadRows("error").add("a.csv", 3, "not UTF-8 (x)")
    with pytest.raises(ValueError, match=r"^a.csv:3: empty\. Correct the file, or leave such rows out: --on-bad-row"):
        BadRows("error").add("a.csv", 3, "empty")
