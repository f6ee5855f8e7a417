import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.data.rows import BadRows
from trainers.data.tokens.files import TaggedFile, find_tagged_source
from trainers.data.tokens.forms import tagged_rows
from trainers.data.tokens.tag_ids import TagIds


def read_all(path, bad_rows):
    """Words and tag names of all usable sentences."""
    source = find_tagged_source(path)
    tag_ids = TagIds(None, source.notation)
    rows = list(tagged_rows(source.files[0], tag_ids, bad_rows))
    return [words for _, words, _ in rows], [[tag_ids.names[tag] for tag in tags] for _, _, tags in rows]


EXPECTED = ([["EU", "rejects"], ["Peter"]], [["B-ORG", "O"], ["B-PER"]])


@pytest.mark.parametrize(
    "content",
    [
        b"EU B-ORG\nrejects O\n\nPeter B-PER\n",
        b"EU\tB-ORG\nrejects\tO\n\nPeter\tB-PER",
        b"EU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\n\n\n\n",
        b"\xef\xbb\xbfEU B-ORG\r\nrejects O\r\n\r\nPeter B-PER\r\n",
        b"-DOCSTART- -X- -X- O\n\nEU B-ORG\nrejects O\n \t\n-DOCSTART- O\n\n\nPeter B-PER\n",
        b"EU B-ORG\nrejects O\n-DOCSTART-\nPeter B-PER\n",
        b"\n\n EU  NNP   B-ORG \nrejects  VBZ O\n\nPeter NNP B-PER\n",
        b"EU\t \tB-ORG \nrejects\t\tO\n\t\nPeter\t_\tB-PER\r\n",
    ],
)
def test_column_files_are_read(tmp_path, content):
    path = tmp_path / "train.txt"
    path.write_bytes(content)
    assert read_all(path, BadRows("error")) == EXPECTED


def test_words_may_hold_any_white_space_but_tab_and_newline(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("no\u00a0break O\nline\u2028sep\x85 B-X\nNew York\tI-X\n", encoding="utf-8")
    words, _ = read_all(path, BadRows("error"))
    assert words == [["no\u00a0break", "line\u2028sep\x85", "New York"]]


BAD_LINES = [
    (b"alone", r"train.txt:3: expected a word and a tag, parted by spaces, got 'alone'"),
    (b"word\t", "expected a word and a tag"),
    (b"\tO", "expected a word and a tag"),
    (b"\xe9t\xe9 O", "train.txt:3: not UTF-8"),
    (b"word X-PER", r"train.txt:3: tag 'X-PER' of 'word' is not in the IOB scheme"),
    (b"word PER", "tag 'PER'"),
    (b"word B-", "tag 'B-'"),
    (b"id domain=en", "tag 'domain=en'"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_bad_lines_are_named(tmp_path, line, message):
    path = tmp_path / "train.txt"
    path.write_bytes(b"EU B-ORG\n\n" + line + b"\n")
    with pytest.raises(ValueError, match=message):
        read_all(path, BadRows("error"))


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_bad_line_takes_its_whole_sentence_along_and_no_other(tmp_path, line, message, place):
    sentences = [b"EU B-ORG\nrejects O\n", b"Peter B-PER\n"]
    sentences.insert({"first": 0, "middle": 1, "last": 2}[place], b"one O\n" + line + b"\nbad bad\ntwo O\n")
    path = tmp_path / "train.txt"
    path.write_bytes(b"\n".join(sentences))
    bad_rows = BadRows("skip")
    assert read_all(path, bad_rows) == EXPECTED
    assert bad_rows.count == 1


@given(
    st.lists(
        st.lists(st.tuples(st.text("ab\u00e9\u4e2d", min_size=1), st.sampled_from(["O", "B-X"])), min_size=1),
        min_size=1,
    )
)
def test_what_is_written_is_read(tmp_path_factory, sentences):
    path = tmp_path_factory.mktemp("conll") / "train.txt"
    text = "\n".join("".join(f"{word}\t{tag}\n" for word, tag in sentence) for sentence in sentences)
    path.write_text(text, encoding="utf-8")
    words, tags = read_all(path, BadRows("error"))
    assert [list(zip(*pair, strict=True)) for pair in zip(words, tags, strict=True)] == sentences


def test_a_bad_line_is_named_and_its_sentence_keeps_its_place(tmp_path):
    (tmp_path / "train.conll").write_text("a O\n\nb O\nc X-Rate\n\nd O\n")
    file = TaggedFile(tmp_path / "train.conll", "", "train", "conll")
    with pytest.raises(ValueError, match=r"train.conll:4: tag 'X-Rate' of 'c' is not in the IOB scheme"):
        list(tagged_rows(file, TagIds(None), BadRows("error")))
    assert [place for place, _, _ in tagged_rows(file, TagIds(None), BadRows("skip"))] == [0, 2]
