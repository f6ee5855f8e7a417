import gzip
import json
import zipfile

import pytest

from trainers.data.reading import Reading
from trainers.data.tokens.files import TaggedFile, find_tagged_source
from trainers.data.tokens.reader import load_token_datasets

LINE = '{"id": "0", "tokens": ["5", "%"], "ner_tags": [1, 0]}\n'
NAMES = ("O", "B-Rate", "I-Rate")
FEATURE = {"feature": {"names": list(NAMES), "_type": "ClassLabel"}, "_type": "Sequence"}


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)


def found(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return find_tagged_source(folder)


def splits(source):
    return [(file.split, file.format, file.path.name, file.member) for file in source.files]


def test_the_hub_zip_is_read_where_it_lies(tmp_path):
    with zipfile.ZipFile(tmp_path / "finer139.zip", "w") as archive:
        for name in ("test.jsonl", "train.jsonl", "validation.jsonl", "__MACOSX/._train.jsonl", "readme.txt"):
            archive.writestr(name, LINE)
    (tmp_path / "finer-139.py").write_text("")
    source = find_tagged_source(tmp_path)
    assert splits(source) == [
        (split, "json", "finer139.zip", f"{split}.jsonl") for split in ("train", "validation", "test")
    ]
    assert source.names is None
    assert find_tagged_source(tmp_path / "finer139.zip") == source
    assert str(source.files[0]) == f"{tmp_path}/finer139.zip:train.jsonl"


@pytest.mark.parametrize(
    "names",
    [
        ["train.json", "valid.json", "test.json"],
        ["train.jsonl", "dev.jsonl", "test.jsonl"],
        ["train.jsonl.gz", "validation.jsonl.gz", "test.jsonl.gz"],
        ["deep/er/train.conll", "deep/er/val.conll", "deep/er/test.conll"],
    ],
)
def test_files_of_splits(tmp_path, names):
    source = found(tmp_path, **dict.fromkeys(names, LINE), **{"label.txt": "", "train_config.json": "{}"})
    assert [file.split for file in source.files] == ["train", "validation", "test"]
    assert [file.path.name for file in source.files] == [name.split("/")[-1] for name in names]


def test_shards_in_order_by_name_or_by_folder(tmp_path):
    source = found(tmp_path / "a", **{f"data__train-0000{n}-of-00002_dot_jsonl": LINE for n in (1, 0)})
    assert [file.path.name for file in source.files] == ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"]
    source = found(tmp_path / "b", train__0001_dot_jsonl=LINE, train__0000_dot_jsonl=LINE, test__0_dot_jsonl=LINE)
    assert [(file.split, file.path.name) for file in source.files] == [
        ("train", "0000.jsonl"),
        ("train", "0001.jsonl"),
        ("test", "0.jsonl"),
    ]


def test_one_file_is_not_split(tmp_path):
    (tmp_path / "sentences.jsonl").write_text(LINE)
    (tmp_path / "label.json").write_text('{"O": 0, "B-Rate": 1}')
    source = find_tagged_source(tmp_path / "sentences.jsonl")
    assert source.files == (TaggedFile(tmp_path / "sentences.jsonl", "", "all", "json"),)
    assert source.names == ("O", "B-Rate")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"notes_dot_md": "x", "other_dot_py": LINE}, "holds no tagged sentences: expected files of the splits"),
        ({"a_dot_jsonl": LINE, "b_dot_jsonl": LINE}, "holds a.jsonl, b.jsonl, but no name tells the split of one"),
        (
            {"train_dot_jsonl": LINE, "train_dot_conll": LINE},
            "holds train.conll, train.jsonl for the train split. Keep one",
        ),
        (
            {"a__test_dot_json": LINE, "b__test_dot_json": LINE},
            r"holds .*/a/test.json, .*/b/test.json for the test split. Keep one",
        ),
        (
            {"dev_dot_json": LINE, "validation_dot_json": LINE},
            "holds dev.json, validation.json for the validation split. Keep one",
        ),
        ({"train_dot_zip": "PK"}, "train.zip is not a zip file"),
    ],
)
def test_what_is_no_corpus_or_two(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        found(tmp_path, **files)


def test_a_zip_beside_its_own_content_counts_nothing_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "finer139.zip", "w") as archive:
        archive.writestr("train.jsonl", LINE)
    with pytest.raises(
        ValueError, match=r"holds the train split in several places: .*finer139.zip:train.jsonl, .*/train.jsonl\. Keep"
    ):
        found(tmp_path, train_dot_jsonl=LINE)


def test_a_file_without_tags(tmp_path):
    (tmp_path / "sentences.csv").write_text("label,text\n1,A fine film\n0,A dull film\n")
    with pytest.raises(ValueError, match=r"sentences.csv: no column holds tags .* --columns 1,2"):
        find_tagged_source(tmp_path / "sentences.csv")


CARD = """---
license: other
dataset_info:
{dash} features:
  - name: id
    dtype: int64
  - name: ner_tags
    {kind}:
      class_label:
        names:
          '0': O
          '2': I-Rate
          '1': B-Rate
---
# A card
"""


@pytest.mark.parametrize(
    "files",
    [
        {"label_dot_json": '{"B-Rate": 1, "O": 0, "I-Rate": 2}'},
        {"dataset__label_dot_json": '{"B-Rate": 1, "O": 0, "I-Rate": 2}'},
        {"dataset_infos_dot_json": json.dumps({"finer-139": {"features": {"id": {}, "ner_tags": FEATURE}}})},
        {"README_dot_md": CARD.format(dash=" ", kind="sequence")},
        {"README_dot_md": CARD.format(dash="-", kind="list")},
    ],
)
def test_names_from_the_corpus_itself(tmp_path, files):
    assert found(tmp_path, train_dot_jsonl=LINE, **files).names == NAMES


@pytest.mark.parametrize("card", ["# No head", "---\nlicense: other\n---\n", "---\n---"])
def test_no_names_where_nothing_tells_them(tmp_path, card):
    assert found(tmp_path, train_dot_jsonl=LINE, README_dot_md=card).names is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "O\nB-Rate\nI-Rate\n"),
        ("names.json", json.dumps(NAMES)),
        ("n.json", '{"I-Rate": 2, "O": 0, "B-Rate": 1}'),
    ],
)
def test_names_from_a_file_that_the_user_names_come_first(tmp_path, name, content):
    found(tmp_path, train_dot_jsonl=LINE, label_dot_json='{"O": 0, "B-Other": 1}')
    (tmp_path / name).write_text(content)
    assert find_tagged_source(tmp_path, tmp_path / name).names == NAMES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON in UTF-8"),
        ("[", "is not JSON in UTF-8"),
        ("[1, 2]", "expected .*O"),
        ("3", "Expected .*O"),
        (None, "does not exist"),
    ],
)
def test_wrong_name_files(tmp_path, content, message):
    found(tmp_path, train_dot_jsonl=LINE)
    if content is not None:
        (tmp_path / "names.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        find_tagged_source(tmp_path, tmp_path / "names.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"O": 0, "B-X": 1, "LOC": 2}', r"outside the IOB scheme: \['LOC'\]"),
        ('{"O": 0, "X-Y": 1}', r"outside the IOB scheme: \['X-Y'\]"),
    ],
)
def test_labels_of_another_scheme_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        found(tmp_path, train_dot_json=LINE, label_dot_json=content)


def test_the_nearest_files_count(tmp_path):
    found(tmp_path, deep__er__train_dot_json=LINE, deep__er__test_dot_json=LINE)
    assert [file.path.parent.name for file in find_tagged_source(tmp_path).files] == ["er", "er"]
    assert splits(found(tmp_path, dataset__train_dot_json=LINE)) == [("train", "json", "train.json", "")]
    source = found(tmp_path, test_dot_conll="a O")
    assert splits(source) == [("test", "conll", "test.conll", "")]


def test_files_of_several_forms_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"mixes files of several forms: train.jsonl, test.conll. Keep one form"):
        found(tmp_path, train_dot_jsonl=LINE, test_dot_conll="a O")


def test_a_card_that_is_no_yaml(tmp_path):
    with pytest.raises(ValueError, match=r"the head of .*README.md is not YAML"):
        found(tmp_path, train_dot_jsonl=LINE, README_dot_md="---\na: [\n---\n")


def test_the_hub_is_asked_for_the_zip_and_its_like(tmp_path, monkeypatch):
    calls = []

    def snapshot_download(repo_id, **keywords):
        calls.append((repo_id, keywords["allow_patterns"]))
        (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(LINE.encode()))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    assert splits(find_tagged_source("nlpaueb/finer-139")) == [("train", "json", "train.jsonl.gz", "")]
    ((repo_id, patterns),) = calls
    assert repo_id == "nlpaueb/finer-139"
    assert {"*.zip", "*train*.parquet", "README.md"} <= set(patterns)


def test_a_copy_under_the_data_folder_comes_first(tmp_path, monkeypatch):
    found(tmp_path / "finer-139", train_dot_jsonl=LINE)
    monkeypatch.setenv("LORA_DATA_DIR", str(tmp_path))
    assert find_tagged_source("nlpaueb/finer-139").files[0].path == tmp_path / "finer-139" / "train.jsonl"


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet"])
def test_which_of_several_lists_of_tags_is_read_is_said(tmp_path, caplog, form):
    row = {"id": "0", "tokens": ["EU", "rejects"], "pos_tags": ["NNP", "VBZ"], "ner_tags": ["B-ORG", "O"],
           "fine_ner_tags": ["B-ORG-union", "O"]}  # fmt: skip
    path = tmp_path / f"train.{form}"
    if form == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist([row] * 3), path)
    else:
        path.write_text(json.dumps([row] * 3) if form == "json" else f"{json.dumps(row)}\n" * 3)
    with caplog.at_level("INFO"):
        find_tagged_source(tmp_path)
    assert "tags are under 'ner_tags'; not used: pos_tags, fine_ner_tags (--columns tokens,KEY says" in caplog.text
    caplog.clear()
    found = load_token_datasets(tmp_path, reading=Reading(columns="tokens,fine_ner_tags"))["train"]
    assert found.labels == ("O", "B-ORG-union", "I-ORG-union")


def test_types_that_differ_in_case_only_are_said(tmp_path, caplog):
    (tmp_path / "train.txt").write_text("Anna B-PER\nsang O\n\nBob B-per\nsang O\n")
    assert load_token_datasets(tmp_path)["train"].labels == ("O", "B-PER", "I-PER", "B-per", "I-per")
    assert "the types 'PER' and 'per' differ only in case or blanks" in caplog.text


def test_keys_that_are_not_known_are_named_with_the_flag(tmp_path, caplog):
    (tmp_path / "train.jsonl").write_text('{"words": ["Anna", "sang"], "ner": ["B-PER", "O"]}\n' * 3)
    with caplog.at_level("INFO"), pytest.raises(ValueError, match=r"train.jsonl:1: .*tags: --columns words,ner"):
        load_token_datasets(tmp_path)
    assert "tags are under" not in caplog.text
    found = load_token_datasets(tmp_path, reading=Reading(columns="words,ner"))["train"]
    assert found.labels == ("O", "B-PER", "I-PER")


def test_a_table_of_lists_is_refused_as_such(tmp_path):
    rows = "".join(f"Sentence: {n},\"Anna sang\",\"['B-per', 'O']\"\n" for n in range(9))
    (tmp_path / "ner.csv").write_text(f"Sentence #,Sentence,Tag\n{rows}")
    with pytest.raises(ValueError, match=r"ner.csv has lists in its cells, a sentence a row: .* as JSON lines"):
        find_tagged_source(tmp_path / "ner.csv")


@pytest.mark.parametrize("other", ["valid.conll", "test.txt"])
def test_a_split_beside_labelled_spans_in_another_form_is_not_passed_over(tmp_path, other):
    (tmp_path / "train.jsonl").write_text('{"text": "IL-2 binds", "label": [[0, 4, "protein"]]}\n' * 4)
    (tmp_path / other).write_text("IL-2 B-protein\nbinds O\n\n" * 4)
    with pytest.raises(ValueError, match=f"mixes files of several forms: train.jsonl, {other}. Keep one form"):
        find_tagged_source(tmp_path)
    (tmp_path / other).rename(tmp_path / "notes.txt")
    assert [file.split for file in find_tagged_source(tmp_path).files] == ["train"]
