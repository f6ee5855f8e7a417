import gzip
import json
import shutil
import zipfile
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from trainers.corpus.prepare import Preparation, prepare
from trainers.corpus.statistics import statistics
from trainers.data.rows import BadRows
from trainers.data.tokens.files import find_tagged_source
from trainers.data.tokens.reader import load_token_datasets
from trainers.data.tokens.scan import scan

TYPES = ["Rate", "Cap", "Face", "Rare"]
SHARES = [0.5, 0.3, 0.15, 0.05]


def sentence(generator, number):
    """Four in ten have an entity; one in ten repeats an earlier sentence."""
    number = int(generator.integers(number + 1)) if generator.random() < 0.1 else number
    words, tags = [f"w{number}", "of", "$", str(number), "million"], ["O"] * 5
    own = np.random.default_rng(number)
    if own.random() < 0.4:
        kind = own.choice(TYPES, p=SHARES)
        tags[3] = f"B-{kind}"
        tags[4] = f"I-{kind}" if kind == "Cap" else "O"
    return {"id": number, "tokens": words, "ner_tags": tags}


def write_corpus(folder, splits, ids=None):
    generator, number = np.random.default_rng(0), 0
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in splits.items():
        rows = []
        for _ in range(count):
            row = sentence(generator, number)
            row["ner_tags"] = [ids.index(tag) for tag in row["ner_tags"]] if ids else row["ner_tags"]
            rows.append(json.dumps(row) + "\n")
            number += 1
        (folder / f"{split}.jsonl").write_text("".join(rows))
    return folder


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """test_statistics.py looks at them; here each test would draw two or more."""
    if "done_is_done" not in request.node.name:
        monkeypatch.setattr("trainers.corpus.statistics.plot_statistics", lambda counted, path: path.touch())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"train": 800, "validation": 100, "test": 100})


def prepared(corpus, folder, **settings):
    return load_token_datasets(prepare(corpus, folder, Preparation(**settings)))


def pairs(dataset):
    return [
        (words, [dataset.labels[tag] for tag in tags]) for words, tags in zip(dataset.words, dataset.tags, strict=True)
    ]


def source_pairs(folder, split):
    rows = map(json.loads, (folder / f"{split}.jsonl").read_text().splitlines())
    return [(row["tokens"], row["ner_tags"]) for row in rows]


def entities(sentences):
    return Counter(tag[2:] for _, tags in sentences for tag in tags if tag[0] == "B")


def only(kinds, tags):
    return [tag if tag[2:] in kinds else "O" for tag in tags]


def test_own_splits_named_types_no_empty_sentences(corpus, tmp_path):
    found = prepared(corpus, tmp_path / "out", types=("Cap", "Rate"))
    assert found["train"].labels == ("O", "B-Cap", "I-Cap", "B-Rate")
    for split in ("train", "validation", "test"):
        expected = [(words, only(("Cap", "Rate"), tags)) for words, tags in source_pairs(corpus, split)]
        assert pairs(found[split]) == [(words, tags) for words, tags in expected if set(tags) != {"O"}]


def test_the_most_frequent_types_in_order(corpus, tmp_path):
    assert prepared(corpus, tmp_path / "out", top=2)["train"].labels == ("O", "B-Rate", "B-Cap", "I-Cap")
    every = ("O", "B-Rate", "B-Cap", "I-Cap", "B-Face", "B-Rare")
    assert prepared(corpus, tmp_path / "all")["train"].labels == every


def test_a_share_of_the_empty_sentences_stays(corpus, tmp_path):
    everything = sum(map(len, prepared(corpus, tmp_path / "all", keep_empty=1.0).values()))
    assert everything == 1000
    half = prepared(corpus, tmp_path / "half", keep_empty=0.5)
    empty = sum(not any(tags) for dataset in half.values() for tags in dataset.tags)
    full = sum(bool(any(tags)) for dataset in half.values() for tags in dataset.tags)
    assert full == sum(map(len, prepared(corpus, tmp_path / "none").values()))
    assert abs(empty - (everything - full) / 2) < 60


def test_new_splits_are_stratified_and_leak_nothing(corpus, tmp_path):
    found = prepared(corpus, tmp_path / "out", resplit=True, keep_empty=1.0)
    every = [pair for split in ("train", "validation", "test") for pair in source_pairs(corpus, split)]
    assert sorted(pair for dataset in found.values() for pair in pairs(dataset)) == sorted(every)
    for split, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert abs(len(found[split]) - share * len(every)) < 15
        for kind, count in entities(every).items():
            assert abs(entities(pairs(found[split]))[kind] - share * count) <= 3
    words = [{tuple(sentence) for sentence in dataset.words} for dataset in found.values()]
    assert all(one.isdisjoint(other) for one, other in combinations(words, 2))
    counted = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert counted["splits"]["train"]["repeated"] > 50
    assert counted["splits"]["test"]["seen_in_train"] == 0
    source = json.loads((tmp_path / "out" / "source_statistics.json").read_text())
    assert source["splits"]["test"]["seen_in_train"] > 0


def test_one_file_is_always_split(corpus, tmp_path):
    (tmp_path / "sentences.jsonl").write_text((corpus / "train.jsonl").read_text())
    found = prepared(tmp_path / "sentences.jsonl", tmp_path / "out", keep_empty=1.0, shares=(0.5, 0.25, 0.25))
    assert [round(len(dataset) / 8) for dataset in found.values()] == [50, 25, 25]


def test_rare_types_are_repeated_in_training_only(corpus, tmp_path):
    plain = prepared(corpus, tmp_path / "plain", resplit=True)
    found = prepared(corpus, tmp_path / "more", resplit=True, oversample=0.4)
    assert pairs(found["test"]) == pairs(plain["test"])
    assert pairs(found["validation"]) == pairs(plain["validation"])
    assert {str(pair) for pair in pairs(found["train"])} == {str(pair) for pair in pairs(plain["train"])}
    before, after = entities(pairs(plain["train"])), entities(pairs(found["train"]))
    assert after["Rate"] == before["Rate"]
    assert before["Rare"] < 0.2 * before["Rate"]
    assert after["Rare"] >= 0.4 * before["Rate"]


def test_the_seed_decides_and_the_form_of_the_files_does_not(corpus, tmp_path):
    names = ["O", "B-Rare", "B-Cap", "I-Cap", "B-Rate", "B-Face"]
    by_id = write_corpus(tmp_path / "ids", {"train": 800, "validation": 100, "test": 100}, names)
    (by_id / "label.json").write_text(json.dumps({name: index for index, name in enumerate(names)}))
    with zipfile.ZipFile(tmp_path / "corpus.zip", "w") as archive:
        for split in ("train", "validation", "test"):
            archive.writestr(f"{split}.jsonl", (corpus / f"{split}.jsonl").read_text())
    zipped = tmp_path / "gz"
    zipped.mkdir()
    for path in corpus.glob("*.jsonl"):
        (zipped / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    settings = {"top": 3, "resplit": True, "keep_empty": 0.3, "oversample": 0.5, "seed": 7}
    expected = prepared(corpus, tmp_path / "a", **settings)
    for index, other in enumerate((corpus, by_id, tmp_path / "corpus.zip", zipped)):
        found = prepared(other, tmp_path / f"b{index}", **settings)
        assert {split: pairs(dataset) for split, dataset in found.items()} == {
            split: pairs(dataset) for split, dataset in expected.items()
        }
    other = prepared(corpus, tmp_path / "c", **{**settings, "seed": 8})
    assert pairs(other["test"]) != pairs(expected["test"])


def test_stray_tags_open_an_entity_and_the_written_tags_are_iob2(tmp_path):
    rows = [("B-Face I-Cap I-Cap O I-Cap", "O B-Cap I-Cap O B-Cap"), ("B-Cap I-Cap B-Cap", "B-Cap I-Cap B-Cap")] * 5
    tokens = [[f"{number}-{place}" for place, _ in enumerate(tags.split())] for number, (tags, _) in enumerate(rows)]
    pairs_of = zip(tokens, rows, strict=True)
    text = [json.dumps({"tokens": words, "ner_tags": tags.split()}) + "\n" for words, (tags, _) in pairs_of]
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(text))
    found = prepared(tmp_path, tmp_path / "out", types=("Cap",))
    assert pairs(found["train"]) == [(words, tags.split()) for words, (_, tags) in zip(tokens, rows, strict=True)]


def test_bad_rows_are_left_out_when_told_to(corpus, tmp_path):
    for split in ("train", "validation", "test"):
        lines = (corpus / f"{split}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"{split}.jsonl").write_text("".join(["{\n", *lines[:5], '{"tokens": []}\n', *lines[5:], "[]\n"]))
    with pytest.raises(ValueError, match=r"train\.jsonl:1: not JSON"):
        prepare(tmp_path, tmp_path / "out", Preparation())
    found = load_token_datasets(prepare(tmp_path, tmp_path / "out", Preparation(top=2), on_bad_row="skip"))
    expected = prepared(corpus, tmp_path / "clean", top=2)
    assert {split: pairs(dataset) for split, dataset in found.items()} == {
        split: pairs(dataset) for split, dataset in expected.items()
    }


def test_done_is_done_and_another_preparation_needs_another_folder(corpus, tmp_path):
    out = prepare(corpus, tmp_path / "out", Preparation(top=2))
    names = {f"{name}.{suffix}" for name in ("statistics", "source_statistics") for suffix in ("md", "json", "png")}
    names |= {f"{name}.json" for name in ("train", "valid", "test", "label", "preparation")}
    assert {path.name for path in out.iterdir()} == names
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert prepare(corpus, out, Preparation(top=2)) == out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(ValueError, match="holds a preparation with other top, seed: prepare into another folder"):
        prepare(corpus, out, Preparation(top=3, seed=1))
    with pytest.raises(ValueError, match="with other source"):
        prepare(corpus / "train.jsonl", out, Preparation(top=2))
    with pytest.raises(ValueError, match="with other label_file"):
        prepare(corpus, out, Preparation(top=2), label_file="names.txt")


def test_a_source_that_has_changed_is_noticed(corpus, tmp_path):
    source = shutil.copytree(corpus, tmp_path / "corpus")
    out = prepare(source, tmp_path / "out", Preparation(top=2))
    text = (source / "train.jsonl").read_text()
    (source / "train.jsonl").write_text("".join(reversed(text.splitlines(keepends=True))))
    with pytest.raises(ValueError, match=r"has changed since .*out was prepared from it: prepare into another folder"):
        prepare(source, out, Preparation(top=2))
    (source / "train.jsonl").write_text(text)
    assert prepare(source, out, Preparation(top=2)) == out


def test_other_names_of_the_tags_are_noticed(corpus, tmp_path):
    names = tmp_path / "names.txt"
    labels = json.loads((prepare(corpus, tmp_path / "first", Preparation(top=2)) / "label.json").read_text())
    source = tmp_path / "first" / "train.json"
    names.write_text("\n".join(labels))
    out = prepare(source, tmp_path / "out", Preparation(top=1), label_file=names)
    names.write_text("\n".join(labels).replace(list(labels)[1][2:], "Renamed"))
    with pytest.raises(ValueError, match="has changed since"):
        prepare(source, out, Preparation(top=1), label_file=names)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text(path.read_text()[:-9])])
def test_a_preparation_that_is_not_whole_is_not_taken_for_done(corpus, tmp_path, damage):
    out = prepare(corpus, tmp_path / "out", Preparation(top=2))
    damage(out / "train.json")
    with pytest.raises(ValueError, match=r"train\.json is missing or was changed since it was prepared: delete .*out"):
        prepare(corpus, out, Preparation(top=2))


def test_an_interrupted_preparation_begins_again_and_foreign_files_are_left_alone(corpus, tmp_path):
    out = prepare(corpus, tmp_path / "out", Preparation(top=2))
    expected = {path.name: path.read_bytes() for path in out.glob("*.json")}
    (out / "preparation.json").unlink()
    (out / "valid.json").rename(out / ".valid.json.4711")  # as a killed process leaves it
    prepare(corpus, out, Preparation(top=2))
    assert {path.name: path.read_bytes() for path in out.glob("*.json")} == expected
    (out / "preparation.json").unlink()
    (out / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="holds other files; prepare into an empty folder"):
        prepare(corpus, out, Preparation(top=2))


def test_what_is_prepared_is_what_the_statistics_count(corpus, tmp_path):
    found = prepared(corpus, tmp_path / "out", top=3, keep_empty=0.2, oversample=0.5)
    counted = statistics(scan(find_tagged_source(tmp_path / "out"), BadRows("error")))
    for split, dataset in found.items():
        assert counted.splits[split].sentences == len(dataset)
        assert {k: v for k, v in counted.splits[split].entities.items() if v} == entities(pairs(dataset))
    text = (tmp_path / "out" / "statistics.md").read_text()
    assert f"{len(found['train']):,}" in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"types": ("Rate",), "top": 3}, "types and top both choose"),
        ({"top": 0}, "top is 0"),
        ({"keep_empty": 1.5}, "keep_empty is 1.5: expected a share"),
        ({"oversample": -0.1}, "oversample is -0.1"),
        ({"shares": (0.5, 0.5)}, "three positive numbers that sum to 1"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Preparation(**settings)


def test_what_the_corpus_cannot_give(corpus, tmp_path):
    with pytest.raises(ValueError, match=r"no entity of type 'Rte'\. Did you mean 'Rate'"):
        prepare(corpus, tmp_path / "a", Preparation(types=("Rte",)))
    (tmp_path / "names.txt").write_text("O B-Rate B-Cap I-Cap B-Face B-Rare B-Never")
    with pytest.raises(ValueError, match="names the type 'Never', but none of its sentences has such an entity"):
        prepare(corpus, tmp_path / "e", Preparation(types=("Never",)), label_file=tmp_path / "names.txt")
    with pytest.raises(ValueError, match="names a type twice"):
        prepare(corpus, tmp_path / "b", Preparation(types=("Rate", "Rate")))
    (tmp_path / "train.jsonl").write_text((corpus / "train.jsonl").read_text())
    with pytest.raises(ValueError, match=r"the validation split would be empty: .* the splits train. Draw new ones"):
        prepare(tmp_path, tmp_path / "c", Preparation())
    (tmp_path / "free.jsonl").write_text('{"tokens": ["a"], "ner_tags": ["O"]}\n')
    with pytest.raises(ValueError, match="the corpus has no entities"):
        prepare(tmp_path / "free.jsonl", tmp_path / "d", Preparation())


def test_the_columns_that_a_user_says_reach_prepare(tmp_path):
    from trainers.data.reading import Reading

    lines = "".join(f"Anna{n} B-X B-PER\nsings O O\n\n" for n in range(30))
    (tmp_path / "two.txt").write_text(lines)
    with pytest.raises(ValueError, match="several columns hold tags"):
        prepare(tmp_path / "two.txt", tmp_path / "out", Preparation())
    out = prepare(tmp_path / "two.txt", tmp_path / "out", Preparation(), reading=Reading(columns="1,3"))
    assert load_token_datasets(out)["train"].labels == ("O", "B-PER")
    with pytest.raises(ValueError, match="holds a preparation with other columns"):
        prepare(tmp_path / "two.txt", out, Preparation(), reading=Reading(columns="1,2"))
