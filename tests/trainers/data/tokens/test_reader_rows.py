import gzip
import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from trainers.data.rows import BadRows, numbered_lines
from trainers.data.tokens.files import find_tagged_source
from trainers.data.tokens.forms import tagged_rows
from trainers.data.tokens.tag_ids import TagIds

NAMES = ("O", "B-Rate", "I-Rate")
ROWS = [(["5", "%"], ["B-Rate", "O"]), (["None"], ["O"]), (["three", "quarters"], ["B-Rate", "I-Rate"])]


def lines(column="ner_tags", ids=False):
    return "".join(
        json.dumps({"tokens": words, column: [NAMES.index(tag) for tag in tags] if ids else tags}) + "\n"
        for words, tags in ROWS
    )


def read(path, declared=None, on_bad_row="error", wanted=None):
    tag_ids, bad_rows = TagIds(declared), BadRows(on_bad_row)
    files = find_tagged_source(path).files
    rows = [row for file in files for row in tagged_rows(file, tag_ids, bad_rows, wanted=wanted)]
    return rows, tag_ids.names, bad_rows


def as_names(rows, names):
    return [(words, [names[tag] for tag in tags]) for _, words, tags in rows]


@pytest.mark.parametrize("form", ["plain", "gz", "zip", "gz in zip", "conll"])
@pytest.mark.parametrize("column", ["ner_tags", "tags"])
def test_every_form_gives_the_same_sentences(tmp_path, form, column):
    text = lines(column).encode()
    if form == "plain":
        (tmp_path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n\r\n"))
    elif form == "gz":
        (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(text))
    elif form == "conll":
        blocks = ["\n".join(f"{word}\t{tag}" for word, tag in zip(*row, strict=True)) for row in ROWS]
        (tmp_path / "train.conll").write_text("-DOCSTART- O\n\n" + "\n\n\n".join(blocks))
    else:
        name = "train.jsonl.gz" if form == "gz in zip" else "train.jsonl"
        with zipfile.ZipFile(tmp_path / "corpus.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, gzip.compress(text) if form == "gz in zip" else text)
    rows, names, _ = read(tmp_path)
    assert as_names(rows, names) == ROWS
    assert [place for place, _, _ in rows] == [0, 1, 2]
    assert names == NAMES


def test_ids_mean_the_declared_names(tmp_path):
    (tmp_path / "train.json").write_text(lines("tags", ids=True))
    rows, names, _ = read(tmp_path, NAMES)
    assert as_names(rows, names) == ROWS
    assert names == NAMES


def test_ids_without_names_are_refused(tmp_path):
    (tmp_path / "train.json").write_text(lines("tags", ids=True))
    with pytest.raises(ValueError, match=r"train.json:1: the tags are ids, but nothing names them: put label.json"):
        read(tmp_path, on_bad_row="skip")


def test_unwanted_rows_are_not_parsed(tmp_path):
    (tmp_path / "train.jsonl").write_text("{broken\n" + lines() + "{broken too\n")
    rows, names, bad_rows = read(tmp_path, wanted=np.array([False, True, False, True]))
    assert as_names(rows, names) == [ROWS[0], ROWS[2]]
    assert [place for place, _, _ in rows] == [1, 3]
    assert bad_rows.count == 0


BAD = [
    ('{"tokens": ["5"], "ner_tags": ["X-Rate"]}', "tag 'X-Rate' is not in the IOB scheme"),
    ('{"tokens": ["5"], "ner_tags": ["B-Rate", "O"]}', "1 tokens but 2 tags"),
    ('{"tokens": [], "ner_tags": []}', "an empty sentence"),
    ('{"tokens": ["5", 7], "ner_tags": ["O", "O"]}', "token 1 is 7, expected a string"),
    ('{"tokens": "5", "ner_tags": ["O"]}', "tokens is '5', expected a list"),
    ('{"tokens": ["5"], "ner_tags": null}', "tags is None, expected a list"),
    ('{"tokens": ["5"], "ner_tags": [null]}', "tag 0 is None, expected a name, or a label id"),
    ('{"tokens": ["5"], "ner_tags": [NaN]}', "tag 0 is nan, expected a name, or a label id"),
    ('{"tokens": ["5"], "ner_tags": [1.0]}', "tag 0 is 1.0, expected a name, or a label id"),
    ('{"tokens": ["5", "6"], "ner_tags": ["O", 0]}', "expected names, or ids"),
    ('{"tokens": ["5"], "ner_tags": [true]}', "tag 0 is True, expected a name, or a label id"),
    ('{"tokens": ["5"], "ner_tags": [3]}', "tag 0 is 3, expected a label id from 0 to 2"),
    ('{"tokens": ["5"], "ner_tags": [-1]}', "tag 0 is -1, expected a label id from 0 to 2"),
    ('{"tokens": null, "ner_tags": ["O"]}', "tokens is None, expected a list"),
    ('{"tokens": ["5", null], "ner_tags": ["O", "O"]}', "token 1 is None, expected a string"),
    ('{"tokens": ["5"]}', r"expected an object \{\"tokens\".* got \{'tokens': \['5'\]\}"),
    ('["5"]', r"expected an object .* got \['5'\]"),
    ('[{"tokens": ["5"], "ner_tags": [1]}]', "expected an object"),
    ("[]", 'expected an object {"tokens"'),
    ("{", "not JSON"),
    ('{"tokens": ["5"]', "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("[", "not JSON .*; expected an object a line, not an array of them"),
    ('{"tokens": ["\\ud83d"], "ner_tags": ["O"]}', "half of a character"),
    (b'{"tokens": ["\xe9"], "ner_tags": ["O"]}', "not UTF-8"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_bad_rows_are_named_or_left_out(tmp_path, row, message):
    row = row if isinstance(row, bytes) else row.encode()
    (tmp_path / "train.jsonl").write_bytes(b'{"tokens": ["a"], "ner_tags": ["O"]}\n\n' + row + b"\n" + lines().encode())
    with pytest.raises(ValueError, match=r"train.jsonl:3: .*" + message) as error:
        read(tmp_path, NAMES)
    assert "on_bad_row='skip'" in str(error.value)
    assert len(str(error.value)) < 1000
    rows, _, bad_rows = read(tmp_path, NAMES, on_bad_row="skip")
    assert [place for place, _, _ in rows] == [0, 2, 3, 4]
    assert bad_rows.count == 1


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (("O", "B-Rate", "X-Rate"), "'X-Rate' is not in the IOB scheme"),
        (("B-X",), "lack 'O'"),
        (("O", "B-X", "B-X"), "have 'B-X' twice"),
    ],
)
def test_wrong_names_are_refused(declared, message):
    with pytest.raises(ValueError, match=message):
        TagIds(declared)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".zip"])
def test_a_file_that_is_cut_short(tmp_path, suffix):
    text = "".join(json.dumps({"tokens": [str(n)], "ner_tags": ["O"]}) + "\n" for n in range(5000)).encode()
    if suffix == ".zip":
        stored = io.BytesIO()
        with zipfile.ZipFile(stored, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("train.jsonl", text)
        damaged = bytearray(stored.getvalue())
        damaged[2000:2400] = bytes(400)
        path = tmp_path / "corpus.zip"
    else:
        damaged, path = gzip.compress(text)[:-3000], tmp_path / "train.jsonl.gz"
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"damaged or cut short|not JSON|not UTF-8|expected an object"):
        read(tmp_path)


def test_a_bad_row_in_a_zip_is_named_with_its_file_there(tmp_path):
    with zipfile.ZipFile(tmp_path / "corpus.zip", "w") as archive:
        archive.writestr("train.jsonl", lines())
        archive.writestr("test.jsonl", lines() + "{\n")
    with pytest.raises(ValueError, match=r"corpus\.zip:test\.jsonl:4: not JSON"):
        read(tmp_path)


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"PK\x01\x02"])
def test_a_zip_whose_directory_is_damaged(tmp_path, start):
    path = tmp_path / "corpus.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train.jsonl", lines())
    path.write_bytes(path.read_bytes().replace(start, b"junk"))
    with pytest.raises(ValueError, match=r"corpus\.zip.*Fetch it again"):
        read(tmp_path)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "zip"])
def test_the_progress_ends_at_the_size_of_the_file(tmp_path, suffix):
    text = lines().encode() * 3000
    if suffix == "zip":
        with zipfile.ZipFile(tmp_path / "corpus.zip", "w") as archive:
            archive.writestr("train.jsonl", text)
    else:
        (tmp_path / f"train.{suffix}").write_bytes(gzip.compress(text) if suffix == "jsonl.gz" else text)
    (file,) = find_tagged_source(tmp_path).files
    shown = []
    progress = tqdm(disable=True)
    progress.update = shown.append
    list(tagged_rows(file, TagIds(None), BadRows("error"), progress))
    assert sum(shown) == file.path.stat().st_size
    assert min(shown) > 0
    if suffix == "jsonl":
        assert len(shown) == 5


GOOD = b'{"tokens": ["EU", "rejects"], "tags": [1, 0]}'


def test_byte_order_mark_line_ends_and_blank_lines_are_no_rows(tmp_path):
    path = tmp_path / "train.json"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\r\n\r\n  \n" + GOOD + b"\n\n\n")
    assert [tags for _, _, tags in read(path, NAMES)[0]] == [[1, 0]] * 2


def test_a_huge_line_is_a_row_and_its_error_is_short(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"tokens": ["a"] * 300_000, "tags": [0] * 300_000}))
    assert len(read(path, NAMES)[0][0][1]) == 300_000
    path.write_text(json.dumps({"tokens": ["a"] * 300_000, "tags": [0]}))
    with pytest.raises(ValueError, match="300000 tokens but 1 tags") as error:
        read(path, NAMES)
    assert len(str(error.value)) < 500


TAGGED = st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 2)), min_size=1)


@given(st.lists(TAGGED, min_size=1), st.booleans())
def test_what_is_written_is_read(tmp_path_factory, rows, ensure_ascii):
    path = tmp_path_factory.mktemp("tner") / "train.json"
    rows = [([word for word, _ in row], [tag for _, tag in row]) for row in rows]
    lines = [json.dumps({"tokens": w, "tags": t}, ensure_ascii=ensure_ascii) for w, t in rows]
    path.write_bytes("\n".join(lines).encode())
    assert [row[1:] for row in read(path, NAMES)[0]] == rows


@given(st.binary(max_size=200).filter(lambda content: not content.startswith(b"\x1f\x8b")))  # gzip is unpacked
def test_no_bytes_raise_anything_but_a_named_row(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "train.json"
    path.write_bytes(content)
    rows, _, bad_rows = read(path, NAMES, on_bad_row="skip")
    assert len(rows) + bad_rows.count == sum(bool(line.strip()) for _, line in numbered_lines(path))
