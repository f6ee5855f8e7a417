"""Tags of every scheme are the entities that they mark; seqeval reads those with letters independently."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOBES, IOE2, Entities

from trainers.corpus.prepare import Preparation, prepare
from trainers.corpus.statistics import statistics
from trainers.data.rows import BadRows
from trainers.data.tokens.bio import find_entities
from trainers.data.tokens.files import find_tagged_source
from trainers.data.tokens.reader import completed, load_token_datasets, token_files
from trainers.data.tokens.scan import scan
from trainers.data.tokens.schemes import from_brackets, notation_of, scheme_of
from trainers.data.tokens.tag_ids import TagIds

LETTERS = {"IOBES": "BIES", "BILOU": "BILU", "BMEWO": "BMEW", "BMES": "BMES"}
SENTENCES = st.lists(st.tuples(st.sampled_from(["", "X", "Y-Z"]), st.integers(1, 4)), min_size=1)


def written(entities, scheme, form="{letter}-{kind}"):
    """The tags of entities, (type, length), in a scheme; those without a type are words outside."""
    begin, inside, end, single = LETTERS[scheme]
    tags = []
    for kind, length in entities:
        letters = [single] if length == 1 else [begin, *[inside] * (length - 2), end]
        tags += [form.format(letter=letter, kind=kind) if kind else "O" for letter in letters]
    return tags


def read(tags, notation=None):
    tag_ids = TagIds(None, notation)
    ids = tag_ids.ids(tags)
    return [tag_ids.names[index] for index in ids]


def spans(entities):
    found, place = set(), 0
    for kind, length in entities:
        if kind:
            found.add((kind, place, place + length))
        place += length
    return found


@given(
    SENTENCES,
    st.sampled_from(list(LETTERS)),
    st.sampled_from(["{letter}-{kind}", "{letter}_{kind}", "{kind}-{letter}"]),
)
def test_entities_are_those_that_were_written(entities, scheme, form):
    tags = written(entities, scheme, form)
    notation = {"{letter}-{kind}": "B-X", "{letter}_{kind}": "B_X", "{kind}-{letter}": "X-B"}[form]
    assert find_entities(read(tags, notation), strict=True) == spans(entities)


@pytest.mark.parametrize("scheme", [IOBES, BILOU])
@given(SENTENCES)
def test_entities_are_those_of_seqeval(scheme, entities):
    tags = written(entities, scheme.__name__)
    expected = {(e.tag, e.start, e.end) for e in Entities([tags], scheme).entities[0]}
    assert find_entities(read(tags), strict=True) == expected


@given(st.lists(st.sampled_from(["O", "I-X", "E-X"]), min_size=1).filter(lambda tags: "E-X" in tags))
def test_ends_of_entities_part_them(tags):
    valid = all(not (a == "I-X" and b == "O") for a, b in zip(tags, [*tags[1:], "O"], strict=True))
    if valid:
        expected = {(e.tag, e.start, e.end) for e in Entities([tags], IOE2).entities[0]}
        assert find_entities(read(tags), strict=True) == expected


@given(st.lists(st.sampled_from(["O", "PER", "LOC"]), min_size=1))
def test_types_alone_are_one_entity_as_long_as_they_last(tags):
    if notation_of(dict.fromkeys(tags, 1)):
        expected = {(k, a, b + 1) for k, a, b in get_entities([t if t == "O" else f"I-{t}" for t in tags])}
        assert find_entities(read(tags, "X"), strict=True) == expected


def test_scheme_names():
    assert [scheme_of(letters, "B-X") for letters in ("BI", "BIES", "BLU", "BMW", "IE", "I", "BES")] == [
        "IOB", "IOBES", "BILOU", "BMEWO", "IOE", "IO", "IOBES",
    ]  # fmt: skip
    assert scheme_of("SU", "B-X") is None


@pytest.mark.parametrize("tags", [["(X*", "*)", "*", "(Y)", "(X*", "*", "*)"]])
def test_brackets(tags):
    assert from_brackets(tags) == ["B-X", "I-X", "O", "B-Y", "B-X", "I-X", "I-X"]


@pytest.mark.parametrize("tags", [["*)"], ["(X*", "(Y)"], ["X"], [""]])
def test_brackets_that_do_not_close(tags):
    with pytest.raises(ValueError, match="does not belong here"):
        from_brackets(tags)


def test_a_scheme_is_that_of_all_splits_and_every_verb_reads_it(tmp_path, caplog):
    (tmp_path / "train.txt").write_text("a B-X\nb I-X\nc O\n\nd B-X\n\ne O\n")
    (tmp_path / "dev.txt").write_text("a S-X\nb S-X\nc O\n")
    (tmp_path / "test.txt").write_text("a B-X\nb E-X\nc B-Y\nd I-Y\ne E-Y\n")
    found = load_token_datasets(tmp_path)
    labels = ("O", "B-X", "I-X", "B-Y", "I-Y")
    assert {data.labels for data in found.values()} == {labels}
    assert [data.tags for data in found.values()] == [[[1, 2, 0], [1], [0]], [[1, 1, 0]], [[1, 2, 3, 4, 4]]]
    assert "its tags are of the scheme IOBES; they are read as BIO (IOB2)" in caplog.text
    scanned = scan(find_tagged_source(tmp_path), BadRows("error"))
    assert "The tags are of the scheme IOBES" in statistics(scanned).warnings[0]
    assert scanned.types == ("X", "Y")
    assert [scanned.types[kind] for kind in scanned.entity_types] == ["X", "X", "X", "X", "X", "Y"]
    assert not any(label[0] in "SE" for label in scanned.labels)
    out = load_token_datasets(prepare(tmp_path, tmp_path / "out", Preparation(types=("X", "Y"), keep_empty=1.0)))
    assert [data.tags for data in out.values()] == [data.tags for data in found.values()]


@pytest.mark.parametrize(
    ("names", "tags", "labels", "ids"),
    [
        (["O", "S-X", "B-X", "I-X", "E-X"], [1, 2, 3, 4, 0, 4], ("O", "B-X", "I-X"), [1, 1, 2, 2, 0, 1]),
        (["O", "PER", "LOC"], [1, 1, 2, 0, 1], ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"), [1, 2, 3, 0, 1]),
        (["O", "I-PER"], [1, 1, 0], ("O", "B-PER", "I-PER"), [1, 2, 0]),
        (["PER-B", "PER-I", "O"], [0, 1, 2], ("B-PER", "I-PER", "O"), [0, 1, 2]),
    ],
)
def test_declared_names_of_other_schemes(tmp_path, names, tags, labels, ids):
    (tmp_path / "label.json").write_text(json.dumps({name: index for index, name in enumerate(names)}))
    row = json.dumps({"tokens": [str(tag) for tag in tags], "tags": tags})
    (tmp_path / "train.json").write_text(row + "\n")
    found = load_token_datasets(tmp_path)["train"]
    assert (found.labels, found.tags) == (labels, [ids])
    (tmp_path / "train.json").write_text("".join(row.replace('"0"', f'"{n}"') + "\n" for n in range(30)))
    assert {file.labels for file in completed(token_files(tmp_path)).values()} == {labels}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a S-X\nb O\n\nc O\nd U-X\n", r"train.txt:5: tag 'U-X' of 'd' does not go with tags of the letters S"),
        ("a B-X\nb O\nc I-X\nd PER\n", r"train.txt:4: tag 'PER' of 'd' is not in the IOB scheme"),
        ("a PER\nb O\nc O\nd X-Rate\n", r"train.txt:4: tag 'X-Rate' of 'd' is not like the others"),
        ("a B-X\nb O\nc B_X\n", r"train.txt:3: tag 'B_X' of 'c' is not in the IOB scheme"),
    ],
)
def test_schemes_that_do_not_mix(tmp_path, text, message):
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_token_datasets(tmp_path)
    with pytest.raises(ValueError, match=message):
        scan(find_tagged_source(tmp_path), BadRows("error"))
