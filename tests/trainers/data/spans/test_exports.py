"""One row of every tool's layout, as the tool writes it."""

import re

import pytest

from trainers.data.spans.align import Document, words_and_tags
from trainers.data.spans.exports import LeftOut, documents, is_span_row, read_row

TEXT = "EU rejects German call"
WORDS = ["EU", "rejects", "German", "call"]
TAGS = ["B-ORG", "O", "B-MISC", "O"]


def studio_result(start, end, text, label):
    return {
        "value": {"start": start, "end": end, "text": text, "labels": [label]},
        "id": f"r{start}", "from_name": "label", "to_name": "text", "type": "labels", "origin": "manual",
    }  # fmt: skip


STUDIO_RESULTS = [studio_result(0, 2, "EU", "ORG"), studio_result(11, 17, "German", "MISC")]
OFFSETS = {
    "ORG": {"start_offset": 0, "end_offset": 2},
    "MISC": {"start_offset": 11, "end_offset": 17},
}


def studio_task(*annotations, **more):
    return {
        "id": 1, "annotations": list(annotations), "file_upload": "a.txt", "drafts": [], "predictions": [],
        "data": {"text": TEXT}, "meta": {}, "created_at": "2021-03-09T21:52:49.513742Z", "project": 83, **more,
    }  # fmt: skip


def annotation(result, **more):
    return {"id": 9, "completed_by": 1, "result": result, "was_cancelled": False, "ground_truth": False, **more}


PRODIGY_TOKENS = [
    {"text": "EU", "start": 0, "end": 2, "id": 0, "ws": True},
    {"text": "rejects", "start": 3, "end": 10, "id": 1, "ws": True},
    {"text": "German", "start": 11, "end": 17, "id": 2, "ws": True},
    {"text": "call", "start": 18, "end": 22, "id": 3, "ws": False},
]
LAYOUTS = {
    "doccano label": {"id": 1, "text": TEXT, "label": [[0, 2, "ORG"], [11, 17, "MISC"]]},
    "doccano labels": {"text": TEXT, "labels": [[0, 2, "ORG"], [11, 17, "MISC"]]},
    "doccano data": {"id": 1, "data": TEXT, "label": [[0, 2, "ORG"], [11, 17, "MISC"]]},
    "doccano numbers": {
        "id": 15, "text": TEXT, "meta": {}, "annotation_approver": None,
        "annotations": [{"label": 7, **OFFSETS["ORG"], "user": 1}, {"label": 6, **OFFSETS["MISC"], "user": 1}],
    },
    "doccano relations": {
        "id": 6400, "text": TEXT, "Comments": [], "relations": [{"id": 1, "from_id": 1, "to_id": 2, "type": "of"}],
        "entities": [{"id": 1, "label": "ORG", **OFFSETS["ORG"]}, {"id": 2, "label": "MISC", **OFFSETS["MISC"]}],
    },
    "prodigy": {
        "text": TEXT, "_input_hash": 1, "_task_hash": 2, "_view_id": "ner_manual", "tokens": PRODIGY_TOKENS,
        "spans": [
            {"start": 0, "end": 2, "token_start": 0, "token_end": 0, "label": "ORG"},
            {"start": 11, "end": 17, "token_start": 2, "token_end": 2, "label": "MISC"},
        ],
        "answer": "accept",
    },
    "spacy simple": [TEXT, {"entities": [[0, 2, "ORG"], [11, 17, "MISC"]]}],
    "spacy json": {
        "raw": TEXT,
        "sentences": [
            {"tokens": [{"id": 0, "orth": "EU", "tag": "NNP", "ner": "U-ORG"}, {"orth": "rejects", "ner": "O"}]},
            {"tokens": [{"orth": "German", "ner": "U-MISC"}, {"orth": "call", "ner": "O"}], "brackets": []},
        ],
    },
    "studio": studio_task(annotation(STUDIO_RESULTS)),
    "studio old": {"id": 1, "data": {"text": TEXT}, "completions": [{"result": STUDIO_RESULTS}]},
    "studio min": {
        "id": 1, "text": TEXT, "annotator": 1, "annotation_id": 9, "created_at": "2021-03-09", "lead_time": 2.5,
        "label": [result["value"] for result in STUDIO_RESULTS],
    },
    "studio min of another key": {
        "id": 1, "body": TEXT, "annotator": 1, "annotation_id": 9, "created_at": "2021-03-09T21:52:49.513742Z",
        "ner": [result["value"] for result in STUDIO_RESULTS],
    },
    "start, end, type": {
        "text": TEXT, "entities": [{"start": 0, "end": 2, "type": "ORG"}, {"start": 11, "end": 17, "type": "MISC"}],
    },
    "start, end, label": {
        "text": TEXT, "entities": [{"start": 0, "end": 2, "label": "ORG"}, {"start": 11, "end": 17, "label": "MISC"}],
    },
    "spacy's docs": {
        "text": TEXT, "ents": [{"start": 0, "end": 2, "label": "ORG"}, {"start": 11, "end": 17, "label": "MISC"}],
        "sents": [{"start": 0, "end": 22}],
        "tokens": [{"id": number, "start": token["start"], "end": token["end"]}
                   for number, token in enumerate(PRODIGY_TOKENS)],
    },
    "lists": {"text": TEXT, "entities": [[0, 2, "ORG"], [11, 17, "MISC"]]},
    "gliner": {"tokenized_text": WORDS, "ner": [[0, 0, "ORG"], [2, 2, "MISC"]]},
    "cluener": {"text": TEXT, "label": {"ORG": {"EU": [[0, 1]]}, "MISC": {"German": [[11, 16]]}}},
    "snips": {"data": [{"text": "EU", "entity": "ORG"}, {"text": " rejects "}, {"text": "German", "entity": "MISC"},
                       {"text": " call"}]},
}  # fmt: skip


def read(row, seen=None):
    """Words, tags, and what was noted."""
    noted = []

    def note(what, where):
        noted.append(what)

    found = read_row(row, {7: "ORG", 6: "MISC"}, note, set() if seen is None else seen)
    return *(words_and_tags(found, note) if isinstance(found, Document) else found), noted


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_words_and_tags(layout):
    assert read(LAYOUTS[layout]) == (WORDS, TAGS, [])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_told_by_its_keys(layout):
    assert is_span_row(LAYOUTS[layout]) is True


def test_of_label_studios_annotations_the_ground_truth_is_taken():
    """Else the first that is not cancelled."""
    other = annotation([studio_result(3, 10, "rejects", "VERB")])
    kept = annotation(STUDIO_RESULTS, ground_truth=True)
    words, tags, noted = read(studio_task(other, kept))
    assert (words, tags) == (WORDS, TAGS)
    assert noted == ["annotations of tasks that have several were left out: taken is the ground truth, or the first "
                     "not cancelled"]  # fmt: skip
    assert read(studio_task(other, annotation(STUDIO_RESULTS)))[1] == ["O", "B-VERB", "O", "O"]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"ORG": {"EU": [0, 1]}}, "a place of 'EU' is 0"),
        ({"ORG": {"EU": {}}}, "the places of 'EU' is {}, expected a list"),
    ],
)
def test_damaged_places_of_cluener(label, message):
    with pytest.raises(ValueError, match=message):
        read({"text": TEXT, "label": label})


def test_spacy_documents_hold_paragraphs():
    document = {"id": 0, "paragraphs": [LAYOUTS["spacy json"], LAYOUTS["spacy json"]]}
    assert is_span_row(document)
    assert documents(document) == document["paragraphs"]


@pytest.mark.parametrize(
    "row",
    [
        {"tokens": ["a"], "ner_tags": ["O"]},
        {"tokens": ["a"], "tags": [0]},
        {"text": "fine", "label": "pos"},
        ["a", "b"],
        3,
    ],
)
def test_rows_of_other_forms_are_not_taken(row):
    assert is_span_row(row) is False


@pytest.mark.parametrize("row", [{"text": "a"}, {"text": "a", "label": []}, {"text": "a", "labels": ["news"]}, None])
def test_rows_that_do_not_tell(row):
    assert is_span_row(row) is None


def test_an_empty_list_of_spans_is_not_sought_elsewhere():
    row = {"text": TEXT, "ents": [], "sents": [{"start": 0, "end": 22, "label": "S"}]}
    assert read(row) == (WORDS, ["O"] * 4, [])


def test_prodigys_own_tokens_are_the_words():
    text = "don't"
    tokens = [{"text": "do", "start": 0, "end": 2, "id": 0}, {"text": "n't", "start": 2, "end": 5, "id": 1}]
    words, tags, noted = read({"text": text, "tokens": tokens, "spans": [{"start": 0, "end": 2, "label": "X"}]})
    assert (words, tags, noted) == (["do", "n't"], ["B-X", "O"], [])


@pytest.mark.parametrize("answer", ["reject", "ignore"])
def test_what_prodigy_does_not_accept_is_left_out_and_said(answer):
    noted = []
    with pytest.raises(LeftOut):
        read_row({**LAYOUTS["prodigy"], "answer": answer}, {}, lambda what, _: noted.append(what), set())
    assert noted == ["texts that Prodigy's answer rejects or ignores were left out"]


def test_biluo_of_spacy():
    tokens = [
        {"orth": "New", "ner": "B-LOC"},
        {"orth": "York", "ner": "I-LOC"},
        {"orth": "City", "ner": "L-LOC"},
        {"orth": "\n", "ner": "O"},
        {"orth": "Rome", "ner": "U-LOC"},
        {"orth": "?", "ner": "-"},
    ]
    words, tags, noted = read({"sentences": [{"tokens": tokens}]})
    assert words == ["New", "York", "City", "Rome", "?"]
    assert tags == ["B-LOC", "I-LOC", "I-LOC", "B-LOC", "O"]
    assert noted == ["words have the tag '-', not annotated, and count as O"]


def test_the_first_annotation_that_is_not_cancelled():
    first, second = annotation([STUDIO_RESULTS[0]], was_cancelled=True), annotation([STUDIO_RESULTS[1]])
    _, tags, noted = read(studio_task(first, second, annotation(STUDIO_RESULTS)))
    assert tags == ["O", "O", "B-MISC", "O"]
    assert [what.split(":")[0] for what in noted] == ["annotations of tasks that have several were left out"]


@pytest.mark.parametrize("annotations", [[], [annotation([], was_cancelled=True)]])
def test_tasks_that_are_not_done_are_left_out(annotations):
    with pytest.raises(LeftOut):
        read(studio_task(*annotations))


def test_a_task_without_entities_is_a_text_without_entities():
    assert read(studio_task(annotation([])))[1] == ["O"] * 4


def test_the_second_row_of_a_task_in_json_min_is_left_out():
    seen = set()
    read(LAYOUTS["studio min"], seen)
    with pytest.raises(LeftOut):
        read({**LAYOUTS["studio min"], "annotation_id": 10}, seen)


def test_results_that_are_no_spans_are_counted():
    relation = {"from_id": "r0", "to_id": "r11", "type": "relation", "direction": "right"}
    choice = {"value": {"choices": ["news"]}, "type": "choices", "from_name": "c", "to_name": "text"}
    _, tags, noted = read(studio_task(annotation([relation, choice, *STUDIO_RESULTS])))
    assert tags == TAGS
    assert len(noted) == 2


def test_the_annotated_text_among_several():
    data = {"title": "German news", "body": TEXT, "url": "http://a"}
    assert read(studio_task(annotation(STUDIO_RESULTS), data=data))[:2] == (WORDS, TAGS)
    with pytest.raises(ValueError, match="the text is missing"):
        read(studio_task(annotation([]), data=data))


def test_a_text_without_a_key_of_spans_has_none_and_is_said():
    _, tags, noted = read({"text": TEXT})
    assert (tags, len(noted)) == (["O"] * 4, 1)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "a", "label": [[0, 1, 9]]}, "the label of the span 0-1 is 9, a number that nothing names"),
        ({"text": "a", "label": "pos"}, "label is 'pos', expected spans"),
        ({"text": "a", "label": [[0, 1, "X"], "Y"]}, "a span is 'Y', expected a start, an end and a label"),
        ({"text": "a", "entities": [{"start": 0, "end": 1}]}, "the label of the span 0-1 is None"),
        ({"tokenized_text": ["a"], "ner": [[0, 1, "X"]]}, "the span [0, 1, 'X'] lies outside of the text, which has 1"),
        ({"tokenized_text": ["a", 3], "ner": []}, "token 1 is 3, expected a string"),
        ({"text": "a", "spans": [], "tokens": ["a"]}, "expected objects with a start and an end"),
        (["a", "b"], 'expected ["text", {"entities"'),
        (3, "expected an object with a text and its spans, got 3"),
        ({"sentences": [{"tokens": [{"orth": "a", "ner": "PER"}]}]}, "the tag of 'a' is 'PER', expected BILUO"),
        ({"sentences": [{"tokens": [{"ner": "O"}]}]}, "a token is {'ner': 'O'}"),
        (studio_task(3), "expected objects with a result"),
        (studio_task(annotation([{"type": "hypertextlabels", "value": {}}])), "over HTML or a dialogue"),
    ],
)
def test_damaged_rows(row, problem):
    with pytest.raises(ValueError, match=re.escape(problem)):
        read(row)


@pytest.mark.parametrize("label", [["ORG"], ["ORG", "MISC"], []])
def test_dataturks(label):
    row = {
        "content": TEXT,
        "annotation": [{"label": label, "points": [{"start": 0, "end": 1, "text": "EU "}]}],
        "extras": None,
    }
    assert is_span_row(row)
    read = read_row(row, {}, lambda what, where: None, set())
    assert isinstance(read, Document)
    tags = words_and_tags(read, lambda what, where: None)[1]
    assert tags == [f"B-{label[0]}" if label else "O", "O", "O", "O"]
    assert read_row({"content": TEXT, "annotation": None}, {}, lambda what, where: None, set()) == Document(TEXT, [])
    with pytest.raises(ValueError, match="expected one with a label and points"):
        read_row({"content": TEXT, "annotation": [7]}, {}, lambda what, where: None, set())
