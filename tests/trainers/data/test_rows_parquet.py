import sys

import pytest

from trainers.data.rows import BadRows
from trainers.data.tokens.files import find_tagged_source
from trainers.data.tokens.forms import tagged_rows
from trainers.data.tokens.tag_ids import TagIds

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
datasets = pytest.importorskip("datasets")

NAMES = ["O", "B-Rate", "I-Rate"]
ROWS = {"id": [0, 1, 2], "tokens": [["5", "%"], ["None"], ["three", "quarters"]], "ner_tags": [[1, 0], [0], [1, 2]]}


def read(folder, on_bad_row="error"):
    source = find_tagged_source(folder)
    tag_ids, bad_rows = TagIds(source.names), BadRows(on_bad_row)
    rows = [row for file in source.files for row in tagged_rows(file, tag_ids, bad_rows)]
    return rows, source.names, bad_rows


def test_what_the_datasets_library_writes(tmp_path):
    """The hub's own conversion: ids, named in the metadata, in shards of a folder per split."""
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "tokens": datasets.Sequence(datasets.Value("string")),
            "ner_tags": datasets.Sequence(datasets.ClassLabel(names=NAMES)),
        }
    )
    for shard in range(2):
        (tmp_path / "train").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(ROWS, features).to_parquet(tmp_path / "train" / f"000{shard}.parquet")
    rows, names, _ = read(tmp_path)
    assert names == tuple(NAMES)
    assert [(words, tags) for _, words, tags in rows] == list(zip(ROWS["tokens"], ROWS["ner_tags"], strict=True)) * 2


def write(path, **columns):
    parquet.write_table(pyarrow.table(columns), path)


def test_tags_by_name_and_many_batches(tmp_path):
    tokens = [[str(number), "%"] for number in range(3000)]
    write(tmp_path / "train.parquet", tokens=tokens, tags=[["B-Rate", "O"]] * 3000)
    rows, names, _ = read(tmp_path)
    assert names is None
    assert [words for _, words, _ in rows] == tokens
    assert [place for place, _, _ in rows] == list(range(3000))
    assert {tuple(tags) for _, _, tags in rows} == {(1, 0)}


def test_missing_lists_are_bad_rows(tmp_path):
    write(tmp_path / "train.parquet", tokens=[["a"], None, ["b"]], ner_tags=[["O"], ["O"], None])
    with pytest.raises(ValueError, match=r"train.parquet:2: tokens is None, expected a list"):
        read(tmp_path)
    rows, _, bad_rows = read(tmp_path, "skip")
    assert ([place for place, _, _ in rows], bad_rows.count) == ([0], 2)


def test_wrong_columns_and_damaged_files(tmp_path):
    write(tmp_path / "train.parquet", tokens=[["a"]])
    with pytest.raises(ValueError, match=r"has the columns \['tokens'\], but lacks \['ner_tags'\]"):
        read(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1" + bytes(50))
    with pytest.raises(ValueError, match=r"train.parquet is not a parquet file, or is cut short"):
        read(tmp_path)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    write(tmp_path / "train.parquet", tokens=[["a"]], ner_tags=[["O"]])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs pyarrow: pip install 'lora-core\[parquet\]'"):
        read(tmp_path)
