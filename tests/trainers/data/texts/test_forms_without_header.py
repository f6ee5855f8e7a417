"""Files of texts without a header line, as they are published: no row is lost, and columns are named by number."""

import logging

import pytest

from trainers.data.reading import Reading
from trainers.data.texts.reader import load_text_datasets

COLA = [
    "gj04\t1\t\tOur friends won't buy this analysis, let alone the next one we propose.",
    "gj04\t1\t\tOne more pseudo generalization and I'm giving up.",
    "gj04\t0\t*\tThey drank the pub.",
    "bc01\t1\t\tThe sailors rode the breeze clear of the rocks.",
]
STSB = [
    "main-captions\tMSRvid\t2012test\t0001\t5.000\tA plane is taking off.\tAn air plane is taking off.",
    "main-captions\tMSRvid\t2012test\t0004\t3.800\tA man plays a large flute.\tA man is playing a flute.",
    'main-news\tMSRpar\t2012train\t0005\t2.250\tHe said "no".\tHe refused.',
]
SENTIMENT140 = [
    '"0","1467810369","Mon Apr 06 22:19:45 PDT 2009","NO_QUERY","_Special_","@switch http://t.co - Awww, that\'s bad"',
    '"4","1467810672","Mon Apr 06 22:19:49 PDT 2009","NO_QUERY","scott","is happy, and \xe9lated, tr\xe8s \xe9mu"',
    '"0","1467810917","Mon Apr 06 22:19:53 PDT 2009","NO_QUERY","mattycus","I dived many times for the ball."',
]
SMS = ["ham\tGo until jurong point, crazy..", "spam\tFree entry in 2 a wkly comp", "ham\tU dun say so early hor"]


def write(path, lines, encoding="utf-8"):
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
    return path.parent


def rows_of(folder, split="test", **reading):
    found = load_text_datasets(folder, reading=Reading(**reading))[split]
    targets = found.targets.tolist()
    return found.texts, targets if found.problem_type == "regression" else [found.labels[t] for t in targets]


@pytest.mark.parametrize(
    ("lines", "columns", "first"),
    [
        (COLA, {"text_column": "4", "label_column": "2"}, (COLA[0].split("\t")[3], "1")),
        (COLA[1:], {"text_column": "4", "label_column": "2"}, (COLA[1].split("\t")[3], "1")),
        (COLA, {"text_column": "-1", "label_column": "-3"}, (COLA[0].split("\t")[3], "1")),
        (STSB, {"text_column": "6", "pair_column": "7", "label_column": "5"}, ("A plane is taking off.", 5.0)),
        (SENTIMENT140, {"text_column": "6", "label_column": "1"}, ("@switch http://t.co - Awww, that's bad", "0")),
    ],
    ids=["cola", "cola-2", "cola-from-the-end", "sts-b", "sentiment140"],
)
def test_columns_by_number(tmp_path, caplog, lines, columns, first):
    folder = write(tmp_path / "test.csv", lines, "latin-1")
    with pytest.raises(ValueError, match=r"the columns 1 \('.*and no header line.*--text-column.*by number, from 1"):
        load_text_datasets(folder)
    texts, labels = rows_of(folder, **columns)
    assert len(texts) == len(lines)
    assert (texts[0], labels[0]) == first
    assert "no header line: the first row is data, and columns have numbers; text" in caplog.text


def test_two_columns_tell_themselves(tmp_path, caplog):
    folder = write(tmp_path / "test.tsv", SMS)
    assert rows_of(folder) == ([line.split("\t")[1] for line in SMS], ["ham", "spam", "ham"])
    assert "no header line" in caplog.text


def test_a_number_of_the_row_is_no_label(tmp_path):
    folder = write(tmp_path / "test.csv", [f"{n},{'pn'[n % 2]},text {n}" for n in range(1, 10)])
    with pytest.raises(ValueError, match=r"columns 1 \('1'\), 2 \('n'\), 3 \('text 1'\) and no header line"):
        load_text_datasets(folder)


def test_splits_agree_on_it_and_a_header_of_usual_names_is_one_all_the_same(tmp_path, caplog):
    """CoLA's test split names its columns, and has no labels; a split of few rows may look as if it had a header."""
    write(tmp_path / "train.tsv", COLA * 5)
    write(tmp_path / "dev.tsv", ["bc02\tyes\t\tHe left.", "cd03\tno\t\tShe did."])
    write(tmp_path / "test.tsv", ["index\tsentence", "0\tBill whistled past the house.", "1\tThe car honked."])
    with caplog.at_level(logging.INFO):
        found = load_text_datasets(tmp_path, reading=Reading(text_column="4", label_column="2"))
    assert {split: len(part) for split, part in found.items()} == {"train": 20, "validation": 2}
    assert "none of its 2 texts has a label: the test split is left out" in caplog.text


@pytest.mark.parametrize(
    ("header", "text", "label"), [("phrase_id,opinion,verdict", "2", "3"), ("0,1,2", "1", "2"), (",0,1", "0", "1")]
)
def test_what_names_columns_is_no_data(tmp_path, header, text, label):
    """Names come before numbers, also where they are numbers."""
    folder = write(tmp_path / "test.csv", [header, *(f"{n},text {n},{'pn'[n % 2]}" for n in range(8))])
    texts, labels = rows_of(folder, text_column=text, label_column=label)
    assert texts == [f"text {n}" for n in range(8)]
    assert set(labels) == {"p", "n"}


TREC = [
    "DESC:manner How did serfdom develop in and then leave Russia ?",
    "ENTY:cremat What films featured the character Popeye Doyle ?",
    "DESC:manner How can I find a list of celebrities ' real names ?",
    "ENTY:cremat What fowl grabs the spotlight after the Chinese Year of the Monkey ?",
]
STSA = ["1 a stirring , funny and finally transporting re-imagining", "0 apparently reassembled from the cutting-room",
        "1 they presume their audience", "0 so exaggerated and broad"]  # fmt: skip


@pytest.mark.parametrize("lines", [TREC, STSA], ids=["trec", "stsa"])
def test_a_label_before_the_text(tmp_path, caplog, lines):
    with caplog.at_level(logging.INFO):
        texts, labels = rows_of(write(tmp_path / "TREC_test.label", lines * 5))
    whole = [f"{label} {text}" for text, label in zip(texts, labels, strict=True)]
    assert set(whole) == set(lines)
    assert "the first word of each line is its label" in caplog.text


def test_a_damaged_line_among_labels_before_texts_is_named(tmp_path):
    (tmp_path / "test.txt").write_text("\n".join([*TREC * 600, "no label here"]))
    with pytest.raises(ValueError, match=r"test.txt:2401: expected a label, a blank and a text, got 'no label here'"):
        load_text_datasets(tmp_path)


def test_texts_without_anything_between_say_what_to_put_there(tmp_path):
    folder = write(tmp_path / "test.txt", ["pos a fine film", "neg a dull film"])
    with pytest.raises(ValueError, match=r"nothing parts them: put a tab between, or say what does: --delimiter"):
        load_text_datasets(folder)


@pytest.mark.parametrize("line", ["{0} {1}", "{1} {0}", "{0} , {1}"])
def test_fasttext_labels_anywhere(tmp_path, line):
    lines = [line.format(f"__label__{'pn'[n % 2]}", f"film {n}") for n in range(6)]
    texts, labels = rows_of(write(tmp_path / "test.txt", lines))
    assert [text.strip(" ,") for text in texts] == [f"film {n}" for n in range(6)]
    assert labels == ["p", "n"] * 3


def test_line_numbers_behind_the_line_for_excel_and_lines_of_commas(tmp_path):
    folder = write(tmp_path / "test.csv", ["sep=;", "text;label", "a;x", ";", "b;y", "c;x;z", ";;"])
    with pytest.raises(ValueError, match=r"test.csv:6: 3 columns, expected 2"):
        load_text_datasets(folder)


def test_a_split_that_lacks_the_header_of_the_others_is_said(tmp_path, caplog):
    write(tmp_path / "train.tsv", ["label\ttext", *(f"{'ab'[n % 2]}\ttext {n}" for n in range(20))])
    write(tmp_path / "test.tsv", [f"{'ab'[n % 2]}\ttext {n}" for n in range(20, 30)])
    assert rows_of(tmp_path) == ([f"text {n}" for n in range(20, 30)], ["a", "b"] * 5)
    assert "test.tsv: no header line, unlike the files before it: its first row is data" in caplog.text
