"""Tagged words in the layouts in which well known corpora are published."""

import pytest

from trainers.data.reading import Reading
from trainers.data.rows import BadRows
from trainers.data.tokens.reader import load_token_datasets, token_files

CORPORA = {
    "wnut17": (["wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"], "",
               "@paul{0}\tO\nEmpire\tB-location\nState\tI-location\n\t\n", ("@paul3", "B-location", "I-location")),
    "germeval14": (["NER-de-train.tsv", "NER-de-dev.tsv", "NER-de-test.tsv"], "2,3",
                   "#\thttp://de.wiki [2009]\n1\tAuf{0}\tO\tO\n2\tAachen\tB-LOC\tB-ORG\n3\tFall\tO\tO\n\n",
                   ("Auf3", "B-LOC", "O")),
    "few-nerd": (["train.txt", "dev.txt", "test.txt"], "", "in{0}\tO\nPaul\tperson-actor\nK\tperson-actor\n\n",
                 ("in3", "B-person-actor", "I-person-actor")),
    "mit-movies": (["train.bio", "valid.bio", "test.bio"], "", "O\twhat{0}\nB-ACTOR\tbruce\nI-ACTOR\twillis\n\n",
                   ("what3", "B-ACTOR", "I-ACTOR")),
    "wikiann": (["train", "dev", "test"], "", "en:R{0}\tO\nen:H\tB-ORG\nen:fo\tI-ORG\n\n", ("en:R3", "B-ORG", "I-ORG")),
    "ncbi": (["train.tsv", "devel.tsv", "test.tsv"], "", "of{0}\tO\nadenoma\tB\npoly\tI\n\n", ("of3", "B", "I")),
    "conll-2012": (["train.v4_gold_conll", "dev.v4_gold_conll", "test.v4_gold_conll"], "",
                   "#begin document (bc/cctv); part 000\nbc/cctv 0 0 In{0} IN (TOP* - - - S * * -\n"
                   "bc/cctv 0 1 Hong NNP (NP* - - - S (GPE* * (12\nbc/cctv 0 2 Kong NNP *) - - - S *) * 12)\n\n"
                   "bc/cctv 0 0 Oh{0} UH * - - - S * (V*) (A* -\nbc/cctv 0 1 Rio NNP * - - - S (GPE) * *) -\n\n",
                   ("In3", "B-GPE", "I-GPE")),
}  # fmt: skip
"""Names of the files, --columns, a sentence, and the first word and the other tags of one."""


@pytest.mark.parametrize("corpus", CORPORA)
def test_published_corpora(tmp_path, monkeypatch, corpus):
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)
    names, columns, sentence, (word, *tags) = CORPORA[corpus]
    for name in names:
        (tmp_path / name).write_text("".join(sentence.format(number) for number in range(8)))
    found = load_token_datasets(tmp_path, reading=Reading(columns=columns))
    assert list(found) == ["train", "validation", "test"]
    for data in found.values():
        sentences = list(data.sentences(BadRows("error")))
        _, ids = next(own for own in sentences if own[0][0] == word)
        assert [data.labels[index] for index in ids] == ["O", *tags]
        assert len(sentences) == (16 if corpus == "conll-2012" else 8)


@pytest.mark.parametrize("asked", ["fine_ner_tags", "2", "tokens,ner_tags,fine_ner_tags", "tokens,"])
def test_keys_of_json_lines_are_two(tmp_path, asked):
    """Few-NERD has two rows of tags; a key that was named alone would be passed over."""
    path = tmp_path / "train.jsonl"
    row = '{"tokens": ["Bonn", "is"], "ner_tags": ["B-location", "O"], "fine_ner_tags": ["B-location-city", "O"]}\n'
    path.write_text(row * 12)
    with pytest.raises(ValueError, match=r"--columns is .*, expected the keys of the words and of the tags"):
        load_token_datasets(path, reading=Reading(columns=asked))


def test_slots_of_snips(tmp_path, monkeypatch):
    """Words and tags on the same lines of two files, in folders of the splits."""
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)
    for split in ("train", "valid", "test"):
        folder = tmp_path / "snips" / split
        folder.mkdir(parents=True)
        (folder / "seq.in").write_text("".join(f"play {split} by x{n} \n" for n in range(5)))
        (folder / "seq.out").write_text("O B-track O B-artist\n" * 5)
        (folder / "label").write_text("PlayMusic\n" * 5)
    found = load_token_datasets(tmp_path / "snips")
    assert list(found) == ["train", "validation", "test"]
    assert found["validation"].words[3] == ["play", "valid", "by", "x3"]
    assert [found["test"].labels[tag] for tag in found["test"].tags[0]] == ["O", "B-track", "O", "B-artist"]
    before = token_files(tmp_path / "snips")["train"].content_key()
    (tmp_path / "snips" / "train" / "seq.out").write_text("O B-track O B-album\n" * 5)
    assert token_files(tmp_path / "snips")["train"].content_key() != before  # so that no old cache is taken
    (tmp_path / "snips" / "train" / "seq.out").write_text("O B-track O B-album\n" * 4)
    with pytest.raises(ValueError, match=r"train/seq.in and seq.out beside it differ in their numbers of lines"):
        load_token_datasets(tmp_path / "snips")


def test_a_split_of_cluener_without_spans_is_named(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)
    row = '{"text": "浙商银行叶老桂博士", "label": {"name": {"叶老桂": [[4, 6]]}, "company": {"浙商银行": [[0, 3]]}}}\n'
    for split in ("train", "dev"):
        (tmp_path / f"{split}.json").write_text(row * 4, encoding="utf-8")
    (tmp_path / "test.json").write_text('{"id": 0, "text": "四川敦煌学"}\n', encoding="utf-8")
    found = load_token_datasets(tmp_path)
    assert list(found) == ["train", "validation"]
    tags = [found["train"].labels[tag] for tag in found["train"].tags[0]]
    assert tags == ["B-company", *["I-company"] * 3, "B-name", "I-name", "I-name", "O", "O"]
    assert f"left out, because its texts have no spans: {tmp_path / 'test.json'}" in caplog.text
