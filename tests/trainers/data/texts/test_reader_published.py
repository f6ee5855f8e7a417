"""Files of texts in the layouts in which well known data sets are published."""

import csv
import gzip
import json
import logging

import pytest

from trainers.data.reading import Reading
from trainers.data.texts.reader import load_text_datasets

ACCENTS = "caf\xe9 na\xefve d\xe9j\xe0"


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)


def write(path, lines, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(f"{line}\n" for line in lines).encode(encoding)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def read(folder, **reading):
    """{Split: {text: label}}, with the pair behind the text."""
    found = load_text_datasets(folder, reading=Reading(**reading))
    return {
        split: {
            " | ".join(filter(None, parts)): data.labels[target]
            for *parts, target in zip(data.texts, data.pairs or [""] * len(data), data.targets, strict=True)
        }
        for split, data in found.items()
    }


def merged(found):
    return {text: label for rows in found.values() for text, label in rows.items()}


def test_sms_spam_collection(tmp_path):
    """Tabs part columns, and not the comma that happens to stand once in each text."""
    write(tmp_path / "SMSSpamCollection", [f'{"ham" if n % 3 else "spam"}\tGo {n}, "crazy"..' for n in range(30)])
    write(tmp_path / "readme", ["what this is"])
    assert merged(read(tmp_path)) == {f'Go {n}, "crazy"..': "ham" if n % 3 else "spam" for n in range(30)}


def test_amazon_reviews(tmp_path):
    rows = [{"reviewerID": f"A{n}", "asin": "1", "helpful": [0, 0], "reviewText": f"good, {n}", "overall": n % 5 + 1.0,
             "verified": True, "unixReviewTime": 1} for n in range(40)]  # fmt: skip
    write(tmp_path / "reviews_Music_5.json.gz", map(json.dumps, rows))
    assert merged(read(tmp_path)) == {f"good, {n}": str(n % 5 + 1) for n in range(40)}


def test_columns_of_1_alone_are_no_labels(tmp_path):
    write(tmp_path / "test.csv", ["text,seen,toxic,threat,True", *(f"t {n},1,{n % 2},0,True" for n in range(20))])
    assert load_text_datasets(tmp_path)["test"].labels == ("toxic", "threat")


def test_20_newsgroups(tmp_path):
    for number in range(40):
        for split in ("train", "test"):
            folder = tmp_path / f"20news-bydate-{split}" / ["alt.atheism", "sci.med"][number % 2]
            write(
                folder / str(49960 + number),
                [f"From: a@b {split} {number}", "", "caf\xe9 na\xefve d\xe9j\xe0"],
                "latin-1",
            )
    found = read(tmp_path)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 36, "validation": 4, "test": 40}
    assert set(found["test"].values()) == {"alt.atheism", "sci.med"}
    assert "café" in next(iter(found["test"]))


def test_microsoft_paraphrases(tmp_path):
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    for split in ("train", "test"):
        rows = [f'{n % 2}\t70{n}\t71{n}\tHe "said {n}.\tReferring to {n}.' for n in range(30)]
        write(tmp_path / f"msr_paraphrase_{split}.txt", [header, *rows], "utf-8-sig")
    assert read(tmp_path)["test"]['He "said 1. | Referring to 1.'] == "1"


def test_snli_leaves_out_pairs_without_a_gold_label(tmp_path, caplog):
    labels = ["neutral", "entailment", "-", "contradiction"]
    for split in ("train", "dev", "test"):
        rows = [
            {"gold_label": labels[n % 4], "sentence1": f"A {n}", "sentence1_parse": "(R)", "sentence2": f"B {n}"}
            for n in range(40)
        ]
        write(tmp_path / f"snli_1.0_{split}.jsonl", map(json.dumps, rows))
    found = read(tmp_path)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 30, "validation": 30, "test": 30}
    assert set(found["train"].values()) == {"neutral", "entailment", "contradiction"}
    assert "30 pairs have the gold label '-'" in caplog.text


def test_twitter_airlines(tmp_path, caplog):
    names = "tweet_id,airline_sentiment,airline_sentiment_confidence,airline,airline_sentiment_gold,name,text"
    labels = ["neutral", "positive", "negative"]
    write(tmp_path / "Tweets.csv", [names, *(f'57{n},{labels[n % 3]},1.0,Virgin,,x,"@V {n}, yes."' for n in range(30))])
    with caplog.at_level(logging.INFO):
        assert merged(read(tmp_path)) == {f"@V {n}, yes.": labels[n % 3] for n in range(30)}
    assert "NOT used: tweet_id, airline_sentiment_confidence, airline, airline_sentiment_gold" in caplog.text


def test_spam_csv_of_kaggle(tmp_path):
    rows = [f'{"ham" if n % 3 else "spam"},"Ok {n}, na\xefve r\xe9sum\xe9",,,' for n in range(30)]
    write(tmp_path / "spam.csv", ["v1,v2,,,", *rows], "latin-1")
    assert merged(read(tmp_path))["Ok 1, naïve résumé"] == "ham"


def test_germeval_2018_says_its_columns(tmp_path):
    for split in ("training", "test"):
        rows = [f"@c {n} Meine\t{['OTHER', 'OFFENSE'][n % 2]}\t{['OTHER', 'INSULT'][n % 2]}" for n in range(30)]
        write(tmp_path / f"germeval2018.{split}.txt", rows)
    with pytest.raises(ValueError, match=r"1 \('@c 0 Meine'\), 2 \('OTHER'\), 3 \('OTHER'\) and no header line"):
        load_text_datasets(tmp_path)
    assert read(tmp_path, text_column="1", label_column="3")["test"]["@c 1 Meine"] == "INSULT"


def test_toxic_comments(tmp_path, caplog):
    kinds = "toxic,severe_toxic,obscene,threat,insult,identity_hate"
    rows = [f'00{n},"Why {n}\n, the",{n % 2},0,{n // 2 % 2},0,0,0' for n in range(40)]
    write(tmp_path / "train.csv", [f"id,comment_text,{kinds}", *rows])
    write(tmp_path / "test.csv", ["id,comment_text", "1,hello"])
    write(tmp_path / "test_labels.csv", [f"id,{kinds}", "1,-1,-1,-1,-1,-1,-1"])
    found = load_text_datasets(tmp_path)
    assert list(found) == ["train", "validation"]
    assert found["train"].labels == tuple(kinds.split(","))
    assert "one that has its file" in caplog.text
    assert "test_labels.csv" in caplog.text


def test_an_object_for_each_id(tmp_path):
    rows = {f"id{n}": {"text": f"t {n}", "label": "ab"[n % 2]} for n in range(8)}
    write(tmp_path / "test.json", [json.dumps(rows)])
    assert read(tmp_path)["test"] == {f"t {n}": "ab"[n % 2] for n in range(8)}


@pytest.mark.parametrize("labels", ["0,5 1,5 2,5 3,7", "1 1,5 2 2,5 3 5", "27 5 2,7", "1,000 2,500 3,000"])
def test_numbers_with_a_comma_that_may_be_several_labels_are_asked_for(tmp_path, labels):
    rows = [f"Der Film, {n};{label}" for n, label in enumerate(labels.split() * 4)]
    write(tmp_path / "test.csv", ["text;label", *rows])
    with pytest.raises(ValueError, match=r"labels such as '.*' can be numbers with a comma.*--problem-type regression"):
        load_text_datasets(tmp_path)
    several = load_text_datasets(tmp_path, problem_type="multi_label_classification")["test"]
    assert set(several.labels) == {part for label in labels.split() for part in label.split(",")}
    if "000" in labels:
        with pytest.raises(ValueError, match=r"test\.csv:2: the label is '1,000', a decimal or thousands"):
            load_text_datasets(tmp_path, problem_type="regression")
    else:
        numbers = load_text_datasets(tmp_path, problem_type="regression")["test"].targets
        assert numbers[:3].tolist() == pytest.approx([float(s.replace(",", ".")) for s in labels.split()[:3]])


@pytest.mark.parametrize("labels", ["0,75 2,05 3", "-0,5 1,5 0", "1,25 2,08 3,5"])
def test_decimals_with_a_comma(tmp_path, labels, caplog):
    rows = [f"Der Film, {n};{label}" for n, label in enumerate(labels.split() * 4)]
    write(tmp_path / "test.csv", ["text;label", *rows])
    found = load_text_datasets(tmp_path)["test"]
    assert found.problem_type == "regression"
    assert found.targets[:3].tolist() == pytest.approx([float(s.replace(",", ".")) for s in labels.split()])
    assert "are taken for decimals with a comma: regression. --problem-type says otherwise" in caplog.text


def test_goemotions(tmp_path):
    """Ids in one cell, also of labels that never stand alone."""
    cells = ["27", "2,7", "5", "3,9,14", "25,14"]
    for split in ("train", "dev", "test"):
        rows = [f"That is {n} {split}\t{cells[n % 5]}\teew{n}" for n in range(20)]
        write(tmp_path / f"{split}.tsv", rows)
    found = load_text_datasets(tmp_path, reading=Reading(text_column="1", label_column="2"))
    assert found["train"].labels == ("2", "3", "5", "7", "9", "14", "25", "27")
    assert found["test"].targets[:5].sum(1).tolist() == [1, 2, 1, 3, 2]


def test_labels_that_differ_in_case_only_are_said(tmp_path, caplog):
    write(tmp_path / "test.csv", ["text,label", *(f"t {n},{['Pos', 'pos', 'neg'][n % 3]}" for n in range(9))])
    assert load_text_datasets(tmp_path)["test"].labels == ("Pos", "neg", "pos")
    assert "the labels 'Pos' and 'pos' differ only in case or blanks" in caplog.text


def test_labels_with_blanks_that_may_be_several_are_said(tmp_path, caplog):
    kinds = ["art", "politics", "art politics", "sport", "sport art"]
    write(tmp_path / "test.csv", ["text,label", *(f"t {n},{kinds[n % 5]}" for n in range(10))])
    load_text_datasets(tmp_path)
    assert "labels such as 'art politics' are made of words that are labels themselves" in caplog.text
    found = load_text_datasets(tmp_path, problem_type="multi_label_classification")["test"]
    assert found.labels == ("art", "politics", "sport")


def test_adversarial_nli(tmp_path):
    row = '{{"uid": "{0}", "context": "c {0}", "hypothesis": "h", "label": "{1}", "model_label": "n", "reason": ""}}'
    write(tmp_path / "R1" / "train.jsonl", [row.format(n, "enc"[n % 3]) for n in range(30)])
    assert merged(read(tmp_path)) == {f"c {n} | h": "enc"[n % 3] for n in range(30)}


@pytest.mark.parametrize("form", ["['{}']|['{}', '{}']|[]", '["{}"]|["{}", "{}"]|[]', "['{}']|['{}' '{}']|[]"])
def test_lists_that_pandas_spelled_in_cells(tmp_path, form, caplog):
    cells = [cell.format("joy", "love, deep") for cell in form.split("|")]
    with (tmp_path / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *([f"t {n}", cells[n % 3]] for n in range(9))])
    found = load_text_datasets(tmp_path)["test"]
    assert found.labels == ("joy", "love, deep")
    assert found.targets[:3].tolist() == [[1, 0], [1, 1], [0, 0]]
    assert "cells hold lists such as" in caplog.text


def test_ids_that_numpy_spelled_in_cells(tmp_path):
    write(tmp_path / "test.csv", ["text,labels", *(f"t {n},{['[27]', '[2 7]', '[14]'][n % 3]}" for n in range(9))])
    found = load_text_datasets(tmp_path)["test"]
    assert found.labels == ("2", "7", "14", "27")
    assert found.targets[1].tolist() == [1, 1, 0, 0]


def test_a_column_of_splits_that_is_not_used_is_said(tmp_path, caplog):
    """As in SICK.txt."""
    kinds, sets = ("NEUTRAL", "ENTAILMENT"), ("TRAIN", "TRIAL", "TEST")
    rows = [f"{n}\ta {n}\tb\t{kinds[n % 2]}\t{sets[n % 3]}" for n in range(30)]
    write(tmp_path / "SICK.txt", ["pair_ID\tsentence_A\tsentence_B\tentailment_label\tSemEval_set", *rows])
    assert len(merged(read(tmp_path))) == 30
    assert "the column 'SemEval_set' names splits, and is NOT used" in caplog.text
