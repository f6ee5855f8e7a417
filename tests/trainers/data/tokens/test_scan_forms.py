"""Whatever the form of the files, training and check-data read the same sentences and labels."""

import gzip
import json
import zipfile
from collections import Counter

import pytest

from trainers.corpus.prepare import Preparation, prepare
from trainers.data.rows import BadRows
from trainers.data.tokens.bio import find_entities
from trainers.data.tokens.files import find_tagged_source
from trainers.data.tokens.reader import completed, load_token_datasets, token_files
from trainers.data.tokens.scan import scan

LABELS = ("O", "B-Day", "I-Day", "B-Rate", "I-Rate")
SPLITS = {
    "train": [
        (["5", "%"], ["B-Rate", "O"]),
        (["None"], ["O"]),
        (["three", "quarters", "é\u2028"], ["B-Rate", "I-Rate", "B-Day"]),
        (["May", "1"], ["B-Day", "I-Day"]),
    ],
    "validation": [(["on", "Friday"], ["O", "B-Day"]), (["6", "%"], ["B-Rate", "I-Rate"])],
    "test": [(["7"], ["B-Rate"]), (["June", "2"], ["B-Day", "I-Day"])],
}


def rows(sentences, column="ner_tags", ids=False):
    found = [(words, [LABELS.index(tag) for tag in tags] if ids else tags) for words, tags in sentences]
    return "".join(json.dumps({"tokens": words, column: tags}) + "\n" for words, tags in found).encode()


def ids(sentences):
    return rows(sentences, "tags", ids=True)


def columns(sentences):
    blocks = ["".join(f"{word}\t_\t{tag}\n" for word, tag in zip(*sentence, strict=True)) for sentence in sentences]
    return "\n".join(["-DOCSTART- O\n", *blocks]).encode()


def files(folder, name, write, pack=bytes):
    """A file for each split; ``name`` says where, with {} for the split."""
    for split, sentences in SPLITS.items():
        path = folder / name.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pack(write(sentences)))


def shards(folder, write, name):
    for split, sentences in SPLITS.items():
        for number, part in enumerate((sentences[:1], sentences[1:])):
            path = folder / name.format(split, number)
            path.parent.mkdir(exist_ok=True)
            write(path, part)


def packed(folder, name, write, pack=bytes):
    with zipfile.ZipFile(folder / "corpus.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for split, sentences in SPLITS.items():
            archive.writestr(name.format(split), pack(write(sentences)))


def parquet(path, sentences, named=False):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    tags = [[LABELS.index(tag) for tag in tags] if named else tags for _, tags in sentences]
    table = pyarrow.table({"ner_tags": tags, "tokens": [words for words, _ in sentences]})
    if named:
        feature = {"feature": {"names": LABELS, "_type": "ClassLabel"}, "_type": "Sequence"}
        metadata = json.dumps({"info": {"features": {"tokens": {}, "ner_tags": feature}}})
        table = table.replace_schema_metadata({"huggingface": metadata})
    write_table(table, path)


def label_file(folder):
    folder.mkdir(exist_ok=True)
    (folder / "label.json").write_text(json.dumps({label: index for index, label in enumerate(LABELS)}))


def tner(folder):
    label_file(folder)
    files(folder, "{}.json", ids)


def tner_in_a_subfolder(folder):
    tner(folder / "dataset")


def ids_gzipped(folder):
    label_file(folder)
    files(folder, "{}.jsonl.gz", ids, gzip.compress)


def ids_in_a_zip(folder):
    label_file(folder)
    packed(folder, "inner/{}.json", ids)


FORMS = {
    "tner": tner,
    "tner in a subfolder": tner_in_a_subfolder,
    "ids, gzipped": ids_gzipped,
    "ids in a zip": ids_in_a_zip,
    "names": lambda folder: files(folder, "{}.jsonl", rows),
    "names and label.json": lambda folder: (label_file(folder), files(folder, "{}.json", rows)),
    "names, gzipped": lambda folder: files(folder, "data/{}.json.gz", rows, gzip.compress),
    "names in a zip": lambda folder: packed(folder, "{}.jsonl", rows),
    "gzip in a zip": lambda folder: packed(folder, "{}.jsonl.gz", rows, gzip.compress),
    "with a byte order mark": lambda folder: files(folder, "{}.jsonl", lambda part: b"\xef\xbb\xbf" + rows(part)),
    "shards": lambda folder: shards(
        folder, lambda path, part: path.write_bytes(rows(part)), "{}-0000{}-of-00002.jsonl"
    ),
    "CoNLL": lambda folder: files(folder, "{}.conll", columns),
    "CoNLL, gzipped": lambda folder: files(folder, "{}.iob2.gz", columns, gzip.compress),
    "CoNLL in a zip": lambda folder: packed(folder, "{}.txt", columns),
    "CoNLL in shards": lambda folder: shards(folder, lambda path, part: path.write_bytes(columns(part)), "{}-{}.bio"),
    "parquet": lambda folder: shards(folder, lambda path, part: parquet(path, part, named=True), "{}/000{}.parquet"),
    "parquet of names": lambda folder: shards(folder, parquet, "{}-{}.parquet"),
}


@pytest.fixture(params=FORMS)
def folder(request, tmp_path):
    FORMS[request.param](tmp_path)
    return tmp_path


def named(sentences, labels):
    return [(words, [labels[tag] for tag in tags]) for words, tags in sentences]


def test_training_reads_every_form(folder, caplog):
    found = token_files(folder)
    assert list(found) == list(SPLITS)
    for split, file in found.items():
        assert file.labels == LABELS
        assert named(file.sentences(BadRows("error")), LABELS) == SPLITS[split]
        relabelled = file.with_labels(LABELS[::-1])
        assert named(relabelled.sentences(BadRows("error")), LABELS[::-1]) == SPLITS[split]
        dataset = file.in_memory()
        assert (dataset.words, dataset.tags) == (
            [s[0] for s in SPLITS[split]],
            [s[1] for s in file.sentences(BadRows("error"))],
        )
    assert len({json.dumps(file.content_key()) for file in found.values()}) == 3
    assert caplog.messages == []


def test_check_data_reads_every_form(folder):
    scanned = scan(find_tagged_source(folder), BadRows("error"))
    assert set(scanned.labels) == set(LABELS)
    assert scanned.splits == tuple(SPLITS)
    every = [sentence for sentences in SPLITS.values() for sentence in sentences]
    assert scanned.lengths.tolist() == [len(words) for words, _ in every]
    entities = Counter(kind for _, tags in every for kind, _, _ in find_entities(tags, strict=True))
    assert Counter(scanned.types[kind] for kind in scanned.entity_types) == entities
    words = dict(zip(scanned.labels, scanned.label_counts.sum(0).tolist(), strict=True))
    assert words == Counter(tag for _, tags in every for tag in tags)


def test_what_is_prepared_from_every_form_trains_alike(folder, tmp_path_factory):
    out = prepare(folder, tmp_path_factory.mktemp("out"), Preparation(types=("Day", "Rate"), keep_empty=1.0))
    datasets = load_token_datasets(out)
    for split, dataset in datasets.items():
        assert named(zip(dataset.words, dataset.tags, strict=True), LABELS) == SPLITS[split]


def test_a_single_file_is_cut_for_a_run(tmp_path, caplog):
    sentences = [([str(number), "%"], ["B-Rate", "O"]) for number in range(100)]
    (tmp_path / "sentences.jsonl").write_bytes(rows(sentences + sentences[:50]))
    files = token_files(tmp_path / "sentences.jsonl")
    assert list(files) == ["all"]
    cut = completed(files)
    assert "no splits; its 150 sentences were cut: train 120, validation 15, test 15" in caplog.text
    words = {split: {tuple(words) for words, _ in file.sentences(BadRows("error"))} for split, file in cut.items()}
    assert list(words) == list(SPLITS)
    assert sum(map(len, words.values())) == len(set.union(*words.values())) == 100  # equal ones are together
    assert len({json.dumps(file.content_key()) for file in cut.values()}) == 3


def test_a_training_split_gives_a_tenth_to_the_validation_split(tmp_path, caplog):
    sentences = [([str(number), "%"], ["B-Rate", "O"]) for number in range(40)]
    (tmp_path / "train.conll").write_bytes(columns(sentences))
    (tmp_path / "test.conll").write_bytes(columns(SPLITS["test"]))
    cut = completed(token_files(tmp_path))
    assert list(cut) == list(SPLITS)
    assert "no validation split; its 40 sentences were cut: train 36, validation 4" in caplog.text
    assert cut["test"].chosen is None


def test_too_few_sentences_to_cut(tmp_path):
    (tmp_path / "sentences.jsonl").write_bytes(rows(SPLITS["train"][:1]))
    with pytest.raises(ValueError, match=r"holds 1 sentences, too few different ones .* Add some, or give files"):
        completed(token_files(tmp_path / "sentences.jsonl"))


def test_a_zip_alone_has_its_splits(tmp_path):
    packed(tmp_path, "{}.jsonl", rows)
    assert list(token_files(tmp_path / "corpus.zip")) == list(SPLITS)
