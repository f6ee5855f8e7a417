"""Tables in memory to a model that predicts and is saved."""

import dataclasses
import logging
import re
from typing import ClassVar

import pytest

import trainers
from trainers.notebook import _held_out, _keywords_for_flags

PATTERNS = [
    (["il2", "binds"], ["B-protein", "O"]),
    (["the", "gene"], ["O", "B-DNA"]),
    (["gene", "binds", "il2"], ["B-DNA", "O", "B-protein"]),
    (["the", "il2"], ["O", "B-protein"]),
]
WORDS = [[*PATTERNS[number % 4][0], f"w{number}"] for number in range(40)]
TAGS = [[*PATTERNS[number % 4][1], "O"] for number in range(40)]
ROWS = [{"tokens": words, "ner_tags": tags} for words, tags in zip(WORDS, TAGS, strict=True)]


class Frame:
    """What a DataFrame of pandas can do, as far as it is asked for."""

    def __init__(self, rows):
        self.rows, self.columns = rows, list(rows[0])

    def to_dict(self, orient):
        assert orient == "records"
        return self.rows

    def __getitem__(self, column):
        return [row[column] for row in self.rows]


@dataclasses.dataclass
class ClassLabel:
    names: list[str]


@dataclasses.dataclass
class Sequence:
    feature: ClassLabel


class HubDataset(list):
    """What a datasets.Dataset can do: rows of ids, whose names are in its features."""

    features: ClassVar = {"ner_tags": Sequence(ClassLabel(["O", "B-DNA", "B-protein"])), "tokens": None}


NAMES = HubDataset.features["ner_tags"].feature.names
TABLES = {
    "list of dicts": ROWS,
    "dict of lists": {"tokens": WORDS, "ner_tags": TAGS},
    "pandas": Frame(ROWS),
    "datasets": HubDataset(row | {"ner_tags": [NAMES.index(tag) for tag in row["ner_tags"]]} for row in ROWS),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_table_trains_a_model_that_predicts_and_is_saved(table, checkpoint, tmp_path, caplog):
    trained = trainers.train(
        table, model=str(checkpoint), output_dir=str(tmp_path / "run"), epochs=30, learning_rate=0.02, batch_size=4,
        fresh_head=True, target_modules=["all-linear"],
    )  # fmt: skip
    assert "training examples stay" in caplog.text
    assert trained.result["validation"]["f1"] == 1.0
    found = trained.predict("il2 binds")
    assert [entity["entity_group"] for entity in found] == ["protein"]
    saved = trainers.pipeline("ner", model=trained.save(tmp_path / "model"))("il2 binds")
    assert [(entity["word"], entity["entity_group"]) for entity in saved] == [("il2", "protein")]
    assert saved[0]["score"] == pytest.approx(found[0]["score"], abs=1e-5)


def test_what_is_no_table_is_refused_with_its_columns(tmp_path):
    with pytest.raises(ValueError, match=r"the train split has the columns \['a'\]: expected one of tokens, words"):
        trainers.train([{"a": 1}], output_dir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="the train split is 'corpus', expected a data set, a DataFrame"):
        trainers.train("corpus", output_dir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"its columns differ in length: {'tokens': 1, 'ner_tags': 0}"):
        trainers.train({"train": {"tokens": [["a"]], "ner_tags": []}}, output_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train", "heldout"], "'heldout' is no split; there are train, validation, test"),
        (["Validation", "test"], "there is no train split among Validation, test"),
        (["train", "val", "dev"], "several splits mean validation: val, dev"),
    ],
)
def test_names_of_splits_that_mean_none_are_refused(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        trainers.train(dict.fromkeys(names, TABLES["list of dicts"]), output_dir=str(tmp_path / "run"))


def test_splits_may_have_the_names_that_files_have(checkpoint, tmp_path, caplog):
    trained = trainers.train(
        dict.fromkeys(("Train", "dev", "testing"), TABLES["list of dicts"]), model=str(checkpoint), epochs=0,
        output_dir=str(tmp_path / "run"), fresh_head=True, quiet=True,
    )  # fmt: skip
    assert "test" in trained.result
    assert "no validation split" not in caplog.text


def test_a_data_set_of_another_task_says_which(tmp_path):
    texts = trainers.TextDataset.from_lists(["a", "b"], ["x", "y"])
    with pytest.raises(ValueError, match=r"is a TextDataset, but task is 'token.*Pass task='text-class"):
        trainers.train({"train": texts}, output_dir=str(tmp_path / "run"))


def test_a_tag_without_its_prefix_is_named_as_it_was_written():
    with pytest.raises(ValueError, match=r"the tag 'DRINK' is not in BIO\. Write B-DRINK"):
        trainers.TokenDataset.from_lists([["tea", "please"]], [["DRINK", "O"]])


def test_equal_sentences_are_never_on_both_sides(tmp_path):
    words = [[f"w{number % 30}", "il2"] for number in range(90)]
    sides = _held_out(trainers.TokenDataset.from_lists(words, [["O", "B-protein"]] * 90))
    train, validation = ({tuple(sentence) for sentence in side.words} for side in sides)
    assert not train & validation
    assert len(train | validation) == 30
    assert 6 <= len(sides[1]) <= 12
    with pytest.raises(ValueError, match="holds 1 different sentences, too few"):
        trainers.train({"tokens": [["a"]] * 9, "ner_tags": [["O"]] * 9}, output_dir=str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Add --resume auto to continue it or --overwrite to begin anew, or choose another --output-dir.",
         'Add resume="auto" to continue it or overwrite=True to begin anew, or choose another output_dir.'),
        ("leave such rows out: --on-bad-row skip (in Python on_bad_row='skip').",
         'leave such rows out: on_bad_row="skip".'),
        ("--columns is '7', expected two numbers", "columns is '7', expected two numbers"),
        ("Say which columns are the word and the tag: --columns 1,2.",
         'Say which columns are the word and the tag: columns="1,2".'),
        ("Say so: --label-column NAME.", 'Say so: label_column="NAME".'),
        ("try --max-length 128 with --no-train-head", "try max_length=128 with train_head=False"),
        ("did you forget --task text-classification or image-classification?",
         'did you forget task="text-classification" or image-classification?'),
        ("Name them: --text-column, --label-column and, for pairs, --pair-column.",
         "Name them: text_column, label_column and, for pairs, pair_column."),
        ("fetch it with --local-dir FOLDER", "fetch it with --local-dir FOLDER"),
    ],
)  # fmt: skip
def test_errors_speak_of_keywords_where_the_user_wrote_python(message, expected):
    with pytest.raises(ValueError, match="^" + re.escape(expected) + "$"), _keywords_for_flags():
        raise ValueError(message)


def test_what_is_logged_speaks_of_keywords_too(caplog):
    logger = logging.getLogger("trainers.data.texts.targets")
    with _keywords_for_flags():
        logger.warning("%s labels are decimals. --problem-type says otherwise.", 3)
        logging.getLogger("other").warning("--problem-type %s", "as it stands")
    logger.warning("--problem-type says otherwise.")
    assert caplog.messages == [
        "3 labels are decimals. problem_type says otherwise.",
        "--problem-type as it stands",
        "--problem-type says otherwise.",
    ]


def test_a_finished_training_says_its_score_and_how_to_go_on(checkpoint, tmp_path):
    settings = {"model": str(checkpoint), "output_dir": str(tmp_path / "run"), "epochs": 1, "fresh_head": True}
    trained = trainers.train(ROWS, **settings)
    f1 = trained.result["validation"]["f1"]
    assert re.fullmatch(
        rf"validation: F1 {100 * f1:.2f}, precision \S+, recall \S+ \(in percent\); all figures in .*metrics.jsonl",
        f"{trained}",
    )
    with pytest.raises(ValueError, match='Add resume="auto" to continue it or overwrite=True to begin anew'):
        trainers.train(ROWS, **settings)
    assert repr(trainers.train(ROWS, **settings, resume="auto")) == repr(trained)
