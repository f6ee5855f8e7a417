"""Columns of public data sets, by the names that they have there."""

import pytest

from trainers.data.reading import Reading
from trainers.data.texts.columns import Ambiguous, Columns, choose_columns


def test_columns_are_found_in_any_case_and_keep_their_spelling():
    assert choose_columns(["Class Index", "Title", "Description"]) == Columns(
        ("Title", "Description"), (), ("Class Index",)
    )
    assert choose_columns(["label", "title", "TEXT"]) == Columns(("TEXT",), (), ("label",))
    assert choose_columns(["text"]) is None
    assert choose_columns(["label"]) is None


@pytest.mark.parametrize(
    ("names", "text", "pair", "label"),
    [
        ("idx sentence label", "sentence", "", "label"),
        ("sentence1 sentence2 label idx", "sentence1", "sentence2", "label"),
        ("premise hypothesis label", "premise", "hypothesis", "label"),
        ("question sentence label idx", "question", "sentence", "label"),
        ("id qid1 qid2 question1 question2 is_duplicate", "question1", "question2", "is_duplicate"),
        ("text text_pair label", "text", "text_pair", "label"),
        ("text_a text_b labels", "text_a", "text_b", "labels"),
        ("query passage label", "query", "passage", "label"),
        ("annotator_labels captionID gold_label sentence1 sentence2", "sentence1", "sentence2", "gold_label"),
        ("id keyword location text target", "text", "", "target"),
        ("PhraseId SentenceId Phrase Sentiment", "Phrase", "", "Sentiment"),
        ("v1 v2", "v2", "", "v1"),
        (
            "id airline_sentiment airline_sentiment_gold negativereason text",
            "text",
            "",
            "airline_sentiment",
        ),
        ("Id Score Summary Text", "Text", "", "Score"),
        ("is_sarcastic headline article_link", "headline", "", "is_sarcastic"),
        ("utterance intent", "utterance", "", "intent"),
        ("text label label_text", "text", "", "label"),
        ("review stars", "review", "", "stars"),
        ("label content", "content", "", "label"),
        ("category message", "message", "", "category"),
        ("text spam", "text", "", "spam"),
        ("words label", "words", "", "label"),
    ],
)
def test_columns_of_public_data_sets(names, text, pair, label):
    columns = choose_columns(names.split())
    assert columns == Columns((text,), (pair,) if pair else (), (label,))
    unused = set(names.split()) - columns.used
    assert (" NOT used: " in columns.said(names.split())) == bool(unused)
    assert all(name in columns.said(names.split()).split("NOT used: ")[-1] for name in unused)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ("title body label", ("title", "body")),
        ("title content label", ("title", "content")),
        ("title label", ("title",)),
    ],
)
def test_a_title_is_a_part_of_the_text(names, text):
    assert choose_columns(names.split()).text == text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("review comment label", "several columns could be the text: review, comment"),
        ("text sentence1 sentence2 label", "several columns could be the text: sentence1 with sentence2, text"),
        ("text coarse_label fine_label", "several columns could be the label: coarse_label, fine_label"),
        ("text stars rating", "several columns could be the label"),
    ],
)
def test_several_readings_are_refused(names, message):
    with pytest.raises(Ambiguous, match=message):
        choose_columns(names.split())


def test_what_the_user_names_is_read():
    names = ["title", "body", "Other Text", "text", "fine", "label"]
    reading = Reading(text_column="title,body", pair_column="other_text", label_column="fine")
    assert choose_columns(names, reading) == Columns(("title", "body"), ("Other Text",), ("fine",))
    assert choose_columns(names, Reading(text_column="2", label_column="5")) == Columns(("body",), (), ("fine",))
    assert choose_columns(names, Reading(label_column="fine")) == Columns(("text",), (), ("fine",))
    with pytest.raises(ValueError, match=r"there is no column 'gold' \(--label-column\) among 'title', 'body'"):
        choose_columns(names, Reading(label_column="gold"))


def test_a_table_without_a_label_has_none():
    assert choose_columns(["id", "text"]) is None
    assert choose_columns(["id", "text"], unlabelled=True) == Columns(("text",))
    assert choose_columns(["text", "gold"], Reading(label_column="x"), unlabelled=True) == Columns(("text",))
