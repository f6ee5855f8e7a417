import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.data.rows import BadRows
from trainers.data.tokens.reader import read_label_file, read_tner_file


def read_all(path, num_labels, bad_rows):
    """Words and tags of all usable sentences."""
    rows = list(read_tner_file(path, num_labels, bad_rows))
    return [words for words, _ in rows], [tags for _, tags in rows]


GOOD = b'{"tokens": ["EU", "rejects"], "tags": [1, 0]}'

BAD_ROWS = [
    (b'{"tokens": ["EU"]', "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b'["EU"]', r"expected an object .* got \['EU'\]"),
    (b'[{"tokens": ["EU"], "tags": [1]}]', "expected an object"),
    (b'{"tokens": ["EU"]}', r"expected an object .* got \{'tokens': \['EU'\]\}"),
    (b'{"tokens": ["EU"], "ner_tags": [1]}', "expected an object"),
    (b'{"tokens": null, "tags": [1]}', "tokens is None, expected a list"),
    (b'{"tokens": "EU", "tags": [1, 1]}', "tokens is 'EU', expected a list"),
    (b'{"tokens": ["EU"], "tags": null}', "tags is None, expected a list"),
    (b'{"tokens": ["EU", "UN"], "tags": [1]}', "2 tokens but 1 tags"),
    (b'{"tokens": [], "tags": []}', "an empty sentence"),
    (b'{"tokens": ["EU", 7], "tags": [1, 0]}', "token 1 is 7, expected a string"),
    (b'{"tokens": ["EU", null], "tags": [1, 0]}', "token 1 is None, expected a string"),
    (b'{"tokens": ["EU"], "tags": [3]}', r"tag 0 is 3, expected a label id of label.json \(0 to 2\)"),
    (b'{"tokens": ["EU"], "tags": [-1]}', "tag 0 is -1"),
    (b'{"tokens": ["EU"], "tags": [null]}', "tag 0 is None"),
    (b'{"tokens": ["EU"], "tags": [NaN]}', "tag 0 is nan"),
    (b'{"tokens": ["EU"], "tags": [1.0]}', "tag 0 is 1.0"),
    (b'{"tokens": ["EU"], "tags": [true]}', "tag 0 is True"),
    (b'{"tokens": ["EU"], "tags": ["B-ORG"]}', "tag 0 is 'B-ORG'"),
    (b'{"tokens": ["\xe9t\xe9"], "tags": [1]}', "not UTF-8"),
    (b'{"tokens": ["\\ud83d"], "tags": [1]}', "half of a character"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_bad_rows_are_named(tmp_path, row, message):
    path = tmp_path / "train.json"
    path.write_bytes(GOOD + b"\n" + row + b"\n")
    with pytest.raises(ValueError, match=r"train.json:2: .*" + message) as error:
        read_all(path, 3, BadRows("error"))
    assert "on_bad_row='skip'" in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_bad_rows_can_be_left_out(tmp_path, row, message):
    path = tmp_path / "train.json"
    path.write_bytes(row + b"\n" + GOOD)
    bad_rows = BadRows("skip")
    assert read_all(path, 3, bad_rows) == ([["EU", "rejects"]], [[1, 0]])
    assert bad_rows.count == 1


def test_byte_order_mark_line_ends_and_blank_lines_are_no_rows(tmp_path):
    path = tmp_path / "train.json"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\r\n\r\n  \n" + GOOD + b"\n\n\n")
    words, tags = read_all(path, 3, BadRows("error"))
    assert (len(words), tags) == (2, [[1, 0]] * 2)


def test_a_huge_line_is_a_row_and_its_error_is_short(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"tokens": ["a"] * 300_000, "tags": [0] * 300_000}))
    assert len(read_all(path, 3, BadRows("error"))[0][0]) == 300_000
    path.write_text(json.dumps({"tokens": ["a"] * 300_000, "tags": [0]}))
    with pytest.raises(ValueError, match="300000 tokens but 1 tags") as error:
        read_all(path, 3, BadRows("error"))
    assert len(str(error.value)) < 500


ROWS = st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 2)), min_size=1)


@given(st.lists(ROWS, min_size=1), st.booleans())
def test_what_is_written_is_read(tmp_path_factory, rows, ensure_ascii):
    path = tmp_path_factory.mktemp("tner") / "train.json"
    rows = [([word for word, _ in row], [tag for _, tag in row]) for row in rows]
    lines = [json.dumps({"tokens": w, "tags": t}, ensure_ascii=ensure_ascii) for w, t in rows]
    path.write_bytes("\n".join(lines).encode())
    assert read_all(path, 3, BadRows("error")) == ([w for w, _ in rows], [t for _, t in rows])


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_named_row(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "train.json"
    path.write_bytes(content)
    bad_rows = BadRows("skip")
    words, _ = read_all(path, 3, bad_rows)
    assert len(words) + bad_rows.count == sum(
        bool(line.strip()) for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    )


def test_labels_stand_in_order_of_their_ids(tmp_path):
    path = tmp_path / "label.json"
    path.write_text('\ufeff{"B-X": 1, "O": 0, "I-X": 2}', encoding="utf-8")
    assert read_label_file(path) == ("O", "B-X", "I-X")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"label.json is missing: .*\{\"O\": 0"),
        (b"{", "is not JSON in UTF-8"),
        (b'{"\xe9t\xe9": 0}', "is not JSON in UTF-8"),
        (b"[]", r"holds \[\], expected label names with their ids"),
        (b"{}", "expected label names with their ids"),
        (b'{"0": "O"}', "expected label names with their ids"),
        (b'{"O": 0, "B-X": 2}', r"gives the ids \[0, 2\], expected 0 to 1"),
        (b'{"O": 0, "B-X": 0}', r"gives the ids \[0, 0\]"),
        (b'{"O": 0, "S-X": 1, "B-X": 2, "I-X": 3, "E-X": 4}', r"outside the IOB scheme: \['S-X', 'E-X'\].*rewritten"),
        (b'{"LOC": 0, "O": 1}', r"outside the IOB scheme: \['LOC'\]"),
    ],
)
def test_bad_label_files_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "label.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_label_file(tmp_path / "label.json")
