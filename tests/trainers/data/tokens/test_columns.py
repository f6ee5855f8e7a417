"""Well-known corpora in the layouts that they are published in, and how columns are told apart."""

import logging

import pytest

from trainers.data.reading import Reading
from trainers.data.tokens.reader import load_token_datasets


@pytest.fixture(autouse=True)
def all_messages(caplog):
    caplog.set_level(logging.INFO)


def read(folder, text, name="train.txt", **said):
    """Words and tag names of each sentence of a training split."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    found = load_token_datasets(folder, reading=Reading(**said))["train"]
    return [
        list(zip(words, [found.labels[tag] for tag in tags], strict=True))
        for words, tags in zip(found.words, found.tags, strict=True)
    ]


CORPORA = {
    "CoNLL-2003": (
        "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\nGerman JJ B-NP B-MISC\n\nPeter NNP B-NP B-PER\n"
        "Blackburn NNP I-NP I-PER\n",
        [
            [("EU", "B-ORG"), ("rejects", "O"), ("German", "B-MISC")],
            [("Peter", "B-PER"), ("Blackburn", "I-PER")],
        ],
    ),
    "CoNLL-2003 in IOB1": (
        "EU NNP I-NP I-ORG\nrejects VBZ I-VP O\n\nPeter NNP I-NP I-PER\nJack NNP I-NP B-PER\n",
        [[("EU", "B-ORG"), ("rejects", "O")], [("Peter", "B-PER"), ("Jack", "B-PER")]],
    ),
    "CoNLL-2000": (
        "Confidence NN B-NP\nin IN B-PP\nthe DT B-NP\npound NN I-NP\n",
        [[("Confidence", "B-NP"), ("in", "B-PP"), ("the", "B-NP"), ("pound", "I-NP")]],
    ),
    "CoNLL-2002": ("Melbourne NP B-LOC\n( Fpa O\n\nEl DA O\n", [[("Melbourne", "B-LOC"), ("(", "O")], [("El", "O")]]),
    "WNUT-17": (
        "@paulwalk\tO\nEmpire\tB-location\nState\tI-location\n#NYC\tO\n\n#\tO\nfun\tO\n\n#TGIF\tO\n",
        [
            [("@paulwalk", "O"), ("Empire", "B-location"), ("State", "I-location"), ("#NYC", "O")],
            [("#", "O"), ("fun", "O")],
            [("#TGIF", "O")],
        ],
    ),
    "BC5CDR as BioBERT has it": (
        "Selegiline\tB\n-\tO\ninduced\tO\n\npostural\tB\nhypotension\tI\n",
        [[("Selegiline", "B"), ("-", "O"), ("induced", "O")], [("postural", "B"), ("hypotension", "I")]],
    ),
    "NCBI-disease": (
        "the\tO\nadenomatous\tB-Disease\npolyposis\tI-Disease\n\n",
        [[("the", "O"), ("adenomatous", "B-Disease"), ("polyposis", "I-Disease")]],
    ),
    "JNLPBA": (
        "###MEDLINE:95369245\n\nIL-2\tB-DNA\ngene\tI-DNA\nexpression\tO\n\n",
        [[("IL-2", "B-DNA"), ("gene", "I-DNA"), ("expression", "O")]],
    ),
    "UNER": (
        "# sent_id = n01\n# text = Du Bois ran\n1-2\tDubois\t_\t-\t-\n"
        "1\tDu\tB-PER\t-\tann\n2\tBois\tI-PER\t-\tann\n3\tran\tO\t-\tann"
        "\n\n# sent_id = n02\n1\tOslo\tB-LOC\t-\tann\n",
        [[("Du", "B-PER"), ("Bois", "I-PER"), ("ran", "O")], [("Oslo", "B-LOC")]],
    ),
    "CoNLL-U with tags in MISC": (
        "# text = Anna swam\n1\tAnna\tAnna\tPROPN\tNNP\t_\t2\tnsubj\t_\tNER=B-PER\n"
        "2\tswam\tswim\tVERB\tVBD\t_\t0\troot\t_"
        "\tNER=O|SpaceAfter=No\n2.1\tx\t_\t_\t_\t_\t_\t_\t_\t_\n3\t.\t.\tPUNCT\t.\t_\t2\tpunct\t_\tSpaceAfter=No\n\n",
        [[("Anna", "B-PER"), ("swam", "O"), (".", "O")]],
    ),
    "MultiCoNER": (
        "# id 8d1d1a1e-5d0c\tdomain=en\nrobert _ _ B-OtherPER\ngottschalk _ _ I-OtherPER\nwas _ _ O\n\n"
        "# id 22\tdomain=en\nin _ _ O\n",
        [[("robert", "B-OtherPER"), ("gottschalk", "I-OtherPER"), ("was", "O")], [("in", "O")]],
    ),
    "MultiCoNER with spaces": (
        "# id 22 domain=en\nin _ _ O\nrome _ _ B-LOC\n\n# id 23 domain=en\nto _ _ O\n",
        [[("in", "O"), ("rome", "B-LOC")], [("to", "O")]],
    ),
    "Few-NERD": (
        "Paul\tperson-actor\nInternational\tperson-actor\nairport\tO\nis\tO\n\nit\tO\n",
        [
            [("Paul", "B-person-actor"), ("International", "I-person-actor"), ("airport", "O"), ("is", "O")],
            [("it", "O")],
        ],
    ),
    "wikigold": (
        "-DOCSTART- O\n010 I-MISC\nis O\nthe O\n\nTen I-ORG\n",
        [[("010", "B-MISC"), ("is", "O"), ("the", "O")], [("Ten", "B-ORG")]],
    ),
    "a table of sentences": (
        "Sentence #,Word,POS,Tag\nSentence: 1,Thousands,NNS,O\n,of,IN,O\n,London,NNP,B-geo\n"
        'Sentence: 2,",",",",O\n,Iraq,NNP,B-geo\n',
        [[("Thousands", "O"), ("of", "O"), ("London", "B-geo")], [(",", "O"), ("Iraq", "B-geo")]],
    ),
    "simple tables": (
        "sentence_id,words,labels\n0,Harry,B-PER\n0,ran,O\n1,Oslo,B-LOC\n",
        [[("Harry", "B-PER"), ("ran", "O")], [("Oslo", "B-LOC")]],
    ),
    "OntoNotes in columns": (
        "bc/cctv/00\t0\tWhat\tWP\tO\nbc/cctv/00\t1\tJapan\tNNP\tB-GPE\n\nbc/cctv/00\t0\tOne\tCD\tB-CARDINAL\n",
        [[("What", "O"), ("Japan", "B-GPE")], [("One", "B-CARDINAL")]],
    ),
    "a header line": ("word tag\nEU B-ORG\nof O\n\nin O\n", [[("EU", "B-ORG"), ("of", "O")], [("in", "O")]]),
    "numbers that begin anew": (
        "1 EU B-ORG\n2 ran O\n1 in O\n2 it O\n",
        [[("EU", "B-ORG"), ("ran", "O")], [("in", "O"), ("it", "O")]],
    ),
    "semicolons": ("EU;B-ORG\nran;O\n\nin;O\n", [[("EU", "B-ORG"), ("ran", "O")], [("in", "O")]]),
    "words that are numbers": (
        "1 B-NUM\n2 O\n\n3 B-NUM\n7 O\n",
        [[("1", "B-NUM"), ("2", "O")], [("3", "B-NUM"), ("7", "O")]],
    ),
    "a tab behind each line": ("EU\tB-ORG\t\nran\tO\t\n", [[("EU", "B-ORG"), ("ran", "O")]]),
}


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("ends", ["unix", "windows with a byte order mark", "utf-16"])
def test_corpora_are_read_at_the_first_try(tmp_path, name, ends):
    text, expected = CORPORA[name]
    content = text.encode()
    if ends == "utf-16":
        content = text.encode("utf-16")
    elif ends != "unix":
        content = b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()
    assert read(tmp_path, content) == expected


GERMEVAL = (
    "#\thttp://de.wikipedia.org/wiki/Manfred_Korfmann [2009-10-17]\n1\tAufgrund\tO\tO\n2\tMartin\tB-PER\tO\n"
    "3\tUniversity\tB-ORG\tB-PERpart\n\n#\thttp://de [2009]\n1\tOslo\tB-LOC\tO\n"
)


def test_nested_tags_are_refused_with_columns_that_work(tmp_path):
    with pytest.raises(ValueError, match=r"several columns hold tags: column 3 .*: --columns 2,3 or --columns 2,4"):
        read(tmp_path, GERMEVAL, "NER-de-train.tsv")
    outer = [[("Aufgrund", "O"), ("Martin", "B-PER"), ("University", "B-ORG")], [("Oslo", "B-LOC")]]
    assert read(tmp_path, GERMEVAL, "NER-de-train.tsv", columns="2,3") == outer
    inner = [[("Aufgrund", "O"), ("Martin", "O"), ("University", "B-PERpart")], [("Oslo", "O")]]
    assert read(tmp_path, GERMEVAL, "NER-de-train.tsv", columns="2,4") == inner


def test_conll_2012_is_read_with_and_without_its_columns(tmp_path):
    text = (
        "#begin document (bc/cctv/00); part 000\n"
        "bc/cctv/00 0 0 John NNP (TOP(S(NP* - - - Speaker#1 (PERSON* * (0\n"
        "bc/cctv/00 0 1 Smith NNP *) - - - Speaker#1 *) (V*) 0)\n"
        "bc/cctv/00 0 2 saw VBD (VP* see 01 1 Speaker#1 * * -\n"
        "bc/cctv/00 0 3 Rome NNP (NP*)) - - - Speaker#1 (GPE) * -\n\n#end document\n"
    )
    expected = [[("John", "B-PERSON"), ("Smith", "I-PERSON"), ("saw", "O"), ("Rome", "B-GPE")]]
    assert read(tmp_path, text) == expected
    assert read(tmp_path, text, columns="4,11") == expected


def test_what_is_not_used_is_said(tmp_path, caplog):
    read(tmp_path, CORPORA["CoNLL-2003"][0])
    assert "words are in column 1, tags in column 4; not used: 2 (NNP, VBZ, JJ), 3 (B-NP, B-VP, I-NP)" in caplog.text


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("2", "expected the columns of the word and of the tag"),
        ("1,9", "expected two numbers from 1 to 4. .* has 4 columns: 'EU | NNP"),
        ("0,1", "expected two numbers from 1 to 4"),
        ("word,tag", "the first line names no column 'word'"),
    ],
)
def test_columns_that_are_not_there(tmp_path, columns, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, CORPORA["CoNLL-2003"][0], columns=columns)


def test_columns_by_name_separator_and_encoding(tmp_path):
    text = "wort|etikett|x\nCaf\u00e9|B-LOC|O\nist|O|O\n"
    said = {"columns": "wort,etikett", "delimiter": "|", "encoding": "latin-1"}
    assert read(tmp_path, text.encode("latin-1"), **said) == [[("Caf\u00e9", "B-LOC"), ("ist", "O")]]


def test_a_line_with_a_column_too_many_is_no_word(tmp_path):
    with pytest.raises(ValueError, match=r"train.txt:2: expected a word and a tag, .*'New York O' \(3 columns\)"):
        read(tmp_path, "EU B-ORG\nNew York O\nin O\n")


@pytest.mark.parametrize("blank", ["_", "-1"])
def test_a_split_whose_tags_are_withheld_is_left_out(tmp_path, caplog, blank):
    (tmp_path / "test.txt").write_text(f"a _ _ {blank}\nb _ _ {blank}\n")
    read(tmp_path, CORPORA["MultiCoNER"][0])
    assert f"left out, because the words have no tags: {tmp_path}/test.txt" in caplog.text
    assert list(load_token_datasets(tmp_path)) == ["train"]


def test_a_split_of_words_alone_is_left_out(tmp_path, caplog):
    (tmp_path / "test.txt").write_text("a\nb\n\nc\n")
    read(tmp_path, "EU B-ORG\nin O\n")
    assert f"left out, because the words have no tags: {tmp_path}/test.txt" in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        ("eng.train", "eng.testa", "eng.testb"),
        ("NER-train.txt", "NER-dev.txt", "NER-test.txt"),
        ("train_set.conll", "devel_set.conll", "test_set.conll"),
        ("TRAIN", "DEVEL", "TEST"),
        ("train.iob", "dev.ner", "test.csv"),
    ],
)
def test_names_of_splits(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("EU B-ORG\nin O\n")
    datasets = load_token_datasets(tmp_path)
    assert [(split, data.source) for split, data in datasets.items()] == [
        (split, str(tmp_path / name)) for split, name in zip(("train", "validation", "test"), names, strict=True)
    ]


def test_data_that_no_split_takes_is_named(tmp_path, caplog):
    for name in ("train.txt", "train_dev.txt", "more.conll", "NER-train.txt"):
        (tmp_path / name).write_text("EU B-ORG\nin O\n")
    (tmp_path / "notes.txt").write_text("hello\n")
    assert list(load_token_datasets(tmp_path)) == ["train"]
    assert "one that has its file: NER-train.txt, more.conll, train_dev.txt" in caplog.text
    assert "notes" not in caplog.text
