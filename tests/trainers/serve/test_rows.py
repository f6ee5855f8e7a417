"""Tables and rows given to a pipeline in Python: the columns of training are read, or those of usual names."""

import numpy as np
import pytest

import trainers
from trainers.data.reading import AS_FOUND, Reading
from trainers.serve import pipeline
from trainers.serve.rows import InputRows, choose_inputs

TEXTS = [
    f"{text} {number % 5}" for number, text in enumerate(["il2 binds gene", "the promoter of junb", "gene and il2"] * 8)
]
ROWS = [{"nr": n, "what": text, "verdict": "yes" if "gene" in text else "no"} for n, text in enumerate(TEXTS)]


class Frame:
    """What a DataFrame of pandas can do, as far as it is asked for."""

    def __init__(self, rows):
        self.rows, self.columns = rows, list(rows[0])

    def __iter__(self):
        return iter(self.columns)

    def to_dict(self, orient):
        assert orient == "records"
        return self.rows

    def __getitem__(self, column):
        return [row[column] for row in self.rows]


class HubDataset(list):
    """What a datasets.Dataset can do."""

    @property
    def column_names(self):
        return list(self[0])


TABLES = {
    "pandas": Frame,
    "datasets": HubDataset,
    "list of dicts": list,
    "dict of lists": lambda rows: {name: [row[name] for row in rows] for name in rows[0]},
}


@pytest.fixture(scope="module")
def trained(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows") / "run"
    return trainers.train(Frame(ROWS), task="text-classification", model=str(checkpoint), output_dir=folder, epochs=1,
                          fresh_head=True, text_column="what", label_column="verdict")  # fmt: skip


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_table_that_trained_a_model_is_predicted_from(table, trained):
    expected = trained.predict([row["what"] for row in ROWS])
    assert trained.predict(table(ROWS)) == expected
    without_labels = [{"what": row["what"]} for row in ROWS]
    assert pipeline(model=trained.folder)(table(without_labels)) == expected


def test_one_row_and_a_stream_of_rows(trained):
    classify = pipeline(model=trained.folder)
    assert classify(ROWS[0]) == classify(ROWS[0]["what"])
    stream = classify(row for row in ROWS)
    assert not isinstance(stream, list)
    assert list(stream) == classify(TEXTS)


def test_tables_of_words(finished):
    ner = pipeline("ner", finished["full"])
    words = [["the", "junb", "gene"], ["il2"]]
    rows = [{"tokens": sentence, "ner_tags": [0] * len(sentence)} for sentence in words]
    for table in TABLES.values():
        assert ner(table(rows)) == ner(words)
    arrays = [{"tokens": np.array(sentence, dtype=object)} for sentence in words]  # as pandas reads parquet
    assert ner(Frame(arrays)) == ner(words)
    assert ner(rows[0]) == ner(words)[0]
    assert ner(Frame([{"text": "the junb gene"}])) == [ner("the junb gene")]


def test_tables_of_pictures(finished_image, tmp_path):
    from PIL import Image

    classify = pipeline(model=finished_image)
    picture = Image.new("RGB", (20, 16), (200, 100, 50))
    picture.save(tmp_path / "one.png")
    expected = classify([picture] * 3)
    content = {"bytes": (tmp_path / "one.png").read_bytes(), "path": None}
    rows = [{"image": value, "label": 0} for value in (picture, str(tmp_path / "one.png"), content)]
    for name in ("pandas", "datasets", "list of dicts", "dict of lists"):
        assert classify(TABLES[name](rows)) == expected
    with pytest.raises(ValueError, match=r"input 0: expected a column image, got \['x'\]"):
        classify([{"x": picture}])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"what": None}, "input 1: what is None, expected a string"),
        ({"what": float("nan")}, "input 1: what is nan, expected a string"),
        ({"who": "il2"}, "input 1: expected a JSON object with 'text', got"),
    ],
)
def test_a_row_without_a_text_is_named(row, message, trained):
    with pytest.raises(ValueError, match=message):
        trained.predict([{"what": "il2"}, row])


@pytest.mark.parametrize(
    ("names", "given", "trained", "expected"),
    [
        (["text", "review"], AS_FOUND, AS_FOUND, "text"),
        (["text", "review"], AS_FOUND, Reading(text_column="review"), "review (as in training)"),
        (["text", "id"], AS_FOUND, Reading(text_column="review"), "text"),
        (["text", "review"], Reading(text_column="text"), Reading(text_column="review"), "text"),
        (["Review", "text_pair"], AS_FOUND, Reading(text_column="review"), "Review (as in training)"),
        (["text", "text_pair"], AS_FOUND, AS_FOUND, "text with text_pair"),
        (["premise", "hypothesis"], AS_FOUND, AS_FOUND, "premise with hypothesis"),
        (["a", "b"], Reading(pair_column="b"), Reading(text_column="a", pair_column="x"), "a with b"),
        (["a", "b"], AS_FOUND, Reading(text_column="a", pair_column="x"), "None"),
        (["title", "body"], AS_FOUND, Reading(text_column="title,body"), "title, body (as in training)"),
    ],
)
def test_which_columns_are_taken(names, given, trained, expected):
    assert str(choose_inputs(names, ("text",), given, trained)) == expected


def test_two_inputs_in_a_row_are_refused():
    rows = InputRows(("text", "tokens"), AS_FOUND, AS_FOUND)
    with pytest.raises(ValueError, match="got both"):
        rows.input_of({"text": "a", "tokens": ["a"]})


def test_the_real_libraries(trained, finished):
    datasets, pandas = pytest.importorskip("datasets"), pytest.importorskip("pandas")
    expected = trained.predict(TEXTS)
    assert trained.predict(pandas.DataFrame(ROWS)) == expected
    assert trained.predict(datasets.Dataset.from_list(ROWS)) == expected
    words = [["the", "junb", "gene"], ["il2"]]
    ner = pipeline("ner", finished["full"])
    assert ner(datasets.Dataset.from_dict({"tokens": words, "ner_tags": [[0, 1, 0], [1]]})) == ner(words)
