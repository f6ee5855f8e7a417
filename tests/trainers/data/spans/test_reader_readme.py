"""Each row of the table of spans in trainers/README.md, read as it stands there."""

import json
import re
from pathlib import Path

import pytest

from trainers.data.rows import BadRows
from trainers.data.tokens.files import find_tagged_source
from trainers.data.tokens.forms import tagged_rows
from trainers.data.tokens.tag_ids import TagIds

README = Path(__file__).parents[4] / "trainers" / "README.md"
BEFORE = {"PubTator": "1|t|IL-2 binds\n1|a|\n", "WebAnno": "#FORMAT=WebAnno TSV 3.3\n#T_SP=x.NamedEntity|value\n\n"}
"""What stands before the row in a file."""
MORE = {"spaCy, training JSON": ("tokens", '{"orth": "binds", "ner": "O"}'),
        "Prodigy": ("tokens", '{"text": "binds", "start": 5, "end": 10, "id": 1}')}  # fmt: skip
"""What the row says with dots."""


def table():
    """{Form: (files, row)} of every line of the table."""
    part = README.read_text(encoding="utf-8").split("**Texts with labelled spans**")[1].split("**Texts**")[0]
    lines = [line.strip("|") for line in part.splitlines() if line.startswith("| ")][1:]
    cells = [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)] for line in lines]
    return {form: (files, row) for form, files, row in cells}


@pytest.mark.parametrize("form", table())
def test_every_row_of_the_table_is_read(tmp_path, form, monkeypatch):
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)
    files, cell = table()[form]
    if form == "spaCy, binary":
        spacy = pytest.importorskip("spacy")
        doc = spacy.blank("en")("IL-2 binds")
        doc.ents = [doc.char_span(0, 4, "protein")]
        spacy.tokens.DocBin(docs=[doc]).to_disk(tmp_path / "train.spacy")
    else:
        match = re.match(r"`(.+?)`", cell)
        assert match
        row = match[1].replace("<TAB>", "\t").replace(", ...", f", {MORE[form][1]}" if form in MORE else "")
        if row[0] in "{[":
            json.loads(row)
        path = tmp_path / re.split(r",? (?:or|with) |, ", files)[0]
        path.parent.mkdir(exist_ok=True)
        if form == "brat":
            path.write_text("IL-2 binds")
            path = path.with_suffix(".ann")
        before = next((text for name, text in BEFORE.items() if form.startswith(name)), "")
        path.write_text(f"{before}{row}\n")
    (file,) = find_tagged_source(tmp_path).files
    tag_ids, bad_rows = TagIds(None), BadRows("error")
    ((_, words, ids),) = tagged_rows(file, tag_ids, bad_rows)
    assert file.format == "spans"
    assert words[0] == "IL-2"
    assert [tag_ids.names[index] for index in ids] == ["B-protein", "O"][: len(words)]
