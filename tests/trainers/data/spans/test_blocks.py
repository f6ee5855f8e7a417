"""PubTator and WebAnno TSV 3 as their tools write them, and BioC's JSON; what is not read says how to export it."""

import json

import pytest

from trainers.data.rows import BadRows, OnBadRow
from trainers.data.tokens.files import find_tagged_source
from trainers.data.tokens.forms import tagged_rows
from trainers.data.tokens.tag_ids import TagIds

PUBTATOR = """\
227508|t|Naloxone reverses the antihypertensive effect of clonidine.
227508|a|In rats, naloxone reversed it.
227508\t0\t8\tNaloxone\tChemical\tD009270
227508\t49\t58\tclonidine\tChemical\tD003000
227508\t69\t77\tnaloxone\tChemical\tD009270
227508\tCID\tD003000\tD007022

354896|t|Lidocaine and hypotension
354896|a|
354896\t0\t9\tLidocaine\tChemical\tD008012
354896\t14\t25\thypotension\tDisease\tD007022

"""
WEBANNO = """\
#FORMAT=WebAnno TSV 3.3
#T_SP=de.tudarmstadt.ukp.dkpro.core.api.lexmorph.type.pos.POS|PosValue
#T_SP=de.tudarmstadt.ukp.dkpro.core.api.ner.type.NamedEntity|identifier|value
#T_RL=webanno.custom.Relation|kind|BT_de.tudarmstadt.ukp.dkpro.core.api.ner.type.NamedEntity


#Text=Anna lives in New York .
1-1\t0-4\tAnna\tNNP\t_\tPER\t_\t_\t
1-2\t5-10\tlives\tVBZ\t_\t_\t_\t_\t
1-3\t11-13\tin\tIN\t_\t_\t_\t_\t
1-4\t14-17\tNew\tNNP\t*[1]\tLOC[1]\t_\t_\t
1-5\t18-22\tYork\tNNP\t*[1]|*[2]\tLOC[1]|O\\_TH[2]\t_\t_\t
1-6\t23-24\t.\t.\t_\t_\t_\t_\t

#Text=Uni-Ulm ruft
2-1\t25-32\tUni-Ulm\tNN\t_\t_\t_\t_\t
2-1.1\t29-32\tUlm\t_\t_\tLOC\t_\t_\t
2-2\t33-37\truft\tVB\t_\t*\t_\t_\t
"""
BIOC = {
    "source": "PubTator",
    "documents": [
        {
            "id": "1",
            "passages": [
                {"offset": 0, "infons": {"type": "title"}, "text": "EU bans aspirin.", "annotations": [
                    {"text": "aspirin", "infons": {"type": "Chemical"}, "locations": [{"offset": 8, "length": 7}]}]},
                {"offset": 17, "infons": {}, "text": "It was acetyl acid.", "annotations": [
                    {"text": "acetyl acid", "infons": {"type": "Chemical"},
                     "locations": [{"offset": 24, "length": 6}, {"offset": 31, "length": 4}]}]},
                {"offset": 37, "infons": {}, "text": "No more.", "annotations": []},
            ],
        }
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)


def read(path, on_bad_row: OnBadRow = "error"):
    """[(Split, the entities of a row as "word word TYPE", number of words)], and what there was to say."""
    tag_ids, bad_rows, found = TagIds(None), BadRows(on_bad_row), []
    for file in find_tagged_source(path).files:
        assert file.format == "spans"
        for _, words, ids in tagged_rows(file, tag_ids, bad_rows):
            tags = [tag_ids.names[index] for index in ids]
            entities = [f"{word}/{tag}" for word, tag in zip(words, tags, strict=True) if tag != "O"]
            found.append((file.split, " ".join(entities), len(words)))
    return found, bad_rows


PUBTATOR_READ = [
    ("Naloxone/B-Chemical clonidine/B-Chemical naloxone/B-Chemical", 15),
    ("Lidocaine/B-Chemical hypotension/B-Disease", 3),
]


@pytest.mark.parametrize("name", ["corpus.PubTator", "corpus.txt"])
@pytest.mark.parametrize("change", [("", ""), ("\n\n", "\n"), ("\n", "\r\n")], ids=["plain", "no blank lines", "crlf"])
def test_pubtator(tmp_path, name, change):
    content = PUBTATOR.replace(*change) if change[0] else PUBTATOR
    (tmp_path / name).write_bytes(content.encode())
    for source in (tmp_path, tmp_path / name):
        found, bad_rows = read(source)
        assert [row[1:] for row in found] == PUBTATOR_READ
        assert {what: count for what, (count, _) in bad_rows.changed.items()} == {
            "lines of PubTator that are no span, such as relations, were passed over": 1
        }


def test_pubtator_in_splits(tmp_path):
    for split in ("Training", "Development", "Test"):
        (tmp_path / f"CDR_{split}Set.PubTator.txt").write_text(PUBTATOR)
    (tmp_path / "readme.txt").write_text("what this is\n")
    assert [split for split, _, _ in read(tmp_path)[0]] == ["train"] * 2 + ["validation"] * 2 + ["test"] * 2


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("227508\t1\t8\tNaloxone\tChemical", "line 3: span 1-8 'Chemical' 'aloxone' should be 'Naloxone'"),
        ("227508\tno columns", "line 3: expected PMID<TAB>START<TAB>END<TAB>TEXT<TAB>TYPE, got '227508"),
        ("227508\t90\t99\tNaloxone\tChemical", "line 3: span 90-99 'Chemical' .* lies outside of the text"),
    ],
)
def test_a_damaged_line_of_pubtator_is_named(tmp_path, line, problem):
    lines = PUBTATOR.splitlines()
    path = tmp_path / "train.txt"
    path.write_text("\n".join([*lines[:2], line, *lines[3:]]))
    with pytest.raises(ValueError, match=rf"train.txt:1: {problem}"):
        read(path)
    found, bad_rows = read(path, "skip")
    assert [row[1:] for row in found] == PUBTATOR_READ[1:]
    assert bad_rows.count == 1


def test_webanno(tmp_path):
    (tmp_path / "admin.tsv").write_text(WEBANNO, encoding="utf-8")
    found, bad_rows = read(tmp_path)
    assert [row[1:] for row in found] == [("Anna/B-PER New/B-LOC York/I-LOC", 6), ("Uni-Ulm/B-LOC", 2)]
    changed = {what: count for what, (count, _) in bad_rows.changed.items()}
    assert changed == {
        "spans share words with a longer or an earlier one, which stays, and were left out": 1,
        "spans began or ended inside a word and were widened to the words that they touch": 1,
        "spans of WebAnno have no value (*) and were passed over": 1,
    }


def changed(*pairs):
    content = WEBANNO
    for old, new in pairs:
        assert old in content
        content = content.replace(old, new)
    return content


TWO_LAYERS = ("NamedEntity|identifier|value\n", "X|a\n#T_SP=webanno.custom.Y|b\n")


def test_the_only_layer_with_values_is_that_of_the_entities_whatever_it_is_called(tmp_path):
    (tmp_path / "admin.tsv").write_text(changed(TWO_LAYERS))
    assert read(tmp_path)[0][0][1] == "Anna/B-PER New/B-LOC York/I-LOC"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (changed(("TSV 3.3", "TSV 2.0")), "is an older TSV of WebAnno. Export the project again as WebAnno TSV v3.3"),
        (
            changed(TWO_LAYERS, ("\t_\tPER", "\tz\tPER")),
            r"several layers .*X\|a, webanno.custom.Y\|b. Export .* with one",
        ),
        (changed(("LOC", "*"), ("PER", "_"), ("O\\_TH", "*")), "no layer of spans has a value. Export"),
        (changed(("1-4\t14-17", "1:4")), r"admin.tsv:8: line 11: expected a word with 6 columns, got '1:4"),
    ],
)
def test_what_is_damaged_or_unclear_in_webanno(tmp_path, content, problem):
    (tmp_path / "admin.tsv").write_text(content)
    with pytest.raises(ValueError, match=problem):
        read(tmp_path)


@pytest.mark.parametrize("form", ["object", "lines", "sentences"])
def test_bioc_json(tmp_path, form):
    value = json.loads(json.dumps(BIOC))
    if form == "sentences":
        for passage in value["documents"][0]["passages"]:
            passage["sentences"] = [dict(passage)]
            passage |= {"text": "", "annotations": []}
    lines = [json.dumps(document) for document in value["documents"]] if form == "lines" else [json.dumps(value)]
    (tmp_path / "abstracts.json").write_text("\n".join(lines * (2 if form == "lines" else 1)))
    found = [row[1:] for row in read(tmp_path / "abstracts.json")[0]]
    assert found[:3] == [("aspirin/B-Chemical", 4), ("acetyl/B-Chemical acid/I-Chemical", 5), ("", 3)]


@pytest.mark.parametrize("folder", [False, True])
def test_xml_says_what_is_read_instead(tmp_path, folder):
    path = tmp_path / "corpus.xml"
    path.write_text('<?xml version="1.0"?>\n<!DOCTYPE collection SYSTEM "BioC.dtd">\n<collection></collection>\n')
    with pytest.raises(ValueError, match=r"corpus.xml is XML, which is not read. Of BioC take its JSON or PubTator"):
        find_tagged_source(tmp_path if folder else path)


def test_the_encoding_that_the_user_says_reaches_spans(tmp_path):
    from trainers.data.reading import Reading

    text = json.dumps({"text": "Müller kam", "label": [[0, 6, "PER"]]}, ensure_ascii=False)
    for name in ("a.jsonl", "b.json"):
        path = tmp_path / name
        path.write_bytes((f"{text}\n" * 3 if name == "a.jsonl" else f"[{text}]").encode("cp437"))
        tag_ids = TagIds(None)
        (file,) = find_tagged_source(path, reading=Reading(encoding="cp437")).files
        _, words, _ = next(iter(tagged_rows(file, tag_ids, BadRows("error"))))
        assert words == ["Müller", "kam"]
    (tmp_path / "1.txt").write_bytes("Müller kam".encode("cp437"))
    (tmp_path / "1.ann").write_bytes("T1\tPER 0 6\tMüller\n".encode("cp437"))
    (file,) = find_tagged_source(tmp_path / "1.ann", reading=Reading(encoding="cp437")).files
    assert next(iter(tagged_rows(file, TagIds(None), BadRows("error"))))[1] == ["Müller", "kam"]
