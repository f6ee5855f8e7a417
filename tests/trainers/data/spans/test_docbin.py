"""spaCy's binary files: read where spaCy is installed; else the message says what to do."""

import sys

import pytest

from trainers.data.spans.docbin import docs, words_and_tags


def test_without_spacy_the_message_has_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ModuleNotFoundError, match="needs spaCy: pip install spacy"):
        list(docs(tmp_path / "train.spacy"))


def test_documents_of_spacy_itself(tmp_path):
    spacy = pytest.importorskip("spacy")
    tokens = pytest.importorskip("spacy.tokens")
    doc = tokens.Doc(spacy.blank("en").vocab, ["Anna", "left", "\n", "New", "York", "."])
    doc.ents = [tokens.Span(doc, 0, 1, "PER"), tokens.Span(doc, 3, 5, "LOC")]
    tokens.DocBin(docs=[doc]).to_disk(tmp_path / "train.spacy")
    (found,) = docs(tmp_path / "train.spacy")
    assert words_and_tags(found) == (
        ["Anna", "left", "New", "York", "."],
        ["B-PER", "O", "B-LOC", "I-LOC", "O"],
    )
    (tmp_path / "train.spacy").write_bytes(b"no")
    with pytest.raises(ValueError, match="or is damaged"):
        list(docs(tmp_path / "train.spacy"))
