"""SentencePiece models read without the sentencepiece package, which is the oracle here: models that it trains, in the
layouts of published checkpoints, on usual and unusual texts.
"""

import json
import random
import shutil
import unicodedata

import pytest
import sentencepiece

from trainers.data.sentencepiece import LAYOUTS
from trainers.data.tokenizer import check_vocabulary, load_tokenizer

TEXTS = (
    "The tyrosine kinase JAK2 phosphorylates STAT5 in primary human T cells (2.5-fold, P<0.05).",
    "Ein schönes Mädchen aß Äpfel; le garçon naïf préfère l'été à Noël, señor!",
    "Съешь ещё этих мягких французских булок, да выпей же чаю.",
    "日本語のテキストはカタカナとひらがなと漢字で書かれています。ガギグゲゴ パピプペポ",
    "한국어 텍스트는 자모로 나뉠 수 있습니다. 대한민국",
    "Ο Σωκράτης είπε: ἓν οἶδα ὅτι οὐδὲν οἶδα. ᾅδης",
    "مُحَمَّدٌ رَسُولُ اللَّهِ بِسْمِ اللّٰهِ",
    "בְּרֵאשִׁית בָּרָא אֱלֹהִים אֵת הַשָּׁמַיִם",
    "नमस्ते दुनिया क़लम ज़मीन",
    "Tiếng Việt có dấu: ường, ễ, ợ, ẩ",
)
UNUSUAL = (
    "",
    "   ",
    "\ttabs\tand\nnew lines\r\n and  several   blanks ",
    "ＦＵＬＬ　ｗｉｄｔｈ １２３，ﬁne ﬂow oﬃce ½ ² ㎏ ㍿ ①",
    "ﾊﾞｽ ﾊﾟﾝ ｶﾞｷﾞ ｳﾞ half-width",
    "👍🏽 👨‍👩‍👧 🇩🇪 ☎️ ❤️",
    "zero\u200bwidth\u200djoin\ufeffbom\u00adhyphen no\u00a0break",
    "مَّ shadda before its vowel, and after it مّ َ",
    "a\u0301\u0302\u0327 e\u0327\u0301 o\u0302\u0301 stacked marks",
    "▁ already ▁marked ▁▁",
    "\x00\x07\x1b control \x7f",
    "\U000e0041 tag 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚 𐍈",
)


def trained(folder, name, **options):
    """A model of 600 pieces and the byte-identical file that a checkpoint would carry."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(TEXTS * 4), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "m"),
        vocab_size=600,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"model_type": "unigram", **options},
    )
    (folder / "m.model").rename(folder / name)
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / name))


FAMILIES = {
    "deberta-v2": (
        "spm.model",
        {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "pad_piece": "[PAD]", "bos_piece": "[CLS]",
         "eos_piece": "[SEP]", "unk_piece": "[UNK]"},
    ),
    "xlm-roberta": ("sentencepiece.bpe.model", {}),
    "camembert": ("sentencepiece.bpe.model", {}),
    "albert": (
        "spiece.model",
        {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": ["[CLS]", "[SEP]", "[MASK]"],
         "user_defined_symbols": ["(", ")", '"', "-", ".", "£"]},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    """(folder, family, sentencepiece's own processor)."""
    folder = tmp_path_factory.mktemp(request.param)
    name, options = FAMILIES[request.param]
    oracle = trained(folder, name, **options)
    (folder / "config.json").write_text(json.dumps({"model_type": request.param}))
    return folder, request.param, oracle


def expected_ids(family, oracle, text):
    """The ids inside the special tokens, as the checkpoint's authors number the pieces of the oracle."""
    if family == "albert":  # lower case, no accents: done before SentencePiece
        text = text.replace("``", '"').replace("''", '"')
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c)[0] != "M").lower()
    ids = oracle.encode(text)
    shift = {"xlm-roberta": 1, "camembert": 4}.get(family, 0)
    return [3 if shift and number == oracle.unk_id() else number + shift for number in ids]


def sentences():
    """Usual and unusual texts, in each Unicode form, and the characters of each in any order."""
    draw = random.Random(0)
    mixed = ["".join(draw.choices(text + " ", k=12)) for text in (*TEXTS, *UNUSUAL[2:7]) for _ in range(10)]
    decomposed = [unicodedata.normalize(form, text) for form in ("NFD", "NFKD", "NFC", "NFKC") for text in TEXTS]
    return [*TEXTS, *UNUSUAL, *decomposed, *mixed]


def test_pieces_are_those_of_sentencepiece(checkpoint):
    folder, family, oracle = checkpoint
    tokenizer = load_tokenizer(folder)
    for text in sentences():
        assert tokenizer.encode(text).ids[1:-1] == expected_ids(family, oracle, text), ascii(text)


def test_mixtures_of_scripts_and_marks_that_nobody_writes_differ_rarely(checkpoint):
    folder, family, oracle = checkpoint
    tokenizer = load_tokenizer(folder)
    draw = random.Random(0)
    texts = ["".join(draw.choices("".join(TEXTS + UNUSUAL), k=12)) for _ in range(400)]
    different = [text for text in texts if tokenizer.encode(text).ids[1:-1] != expected_ids(family, oracle, text)]
    assert len(different) < 0.08 * len(texts)


def test_every_character_is_normalised_as_sentencepiece_does(checkpoint):
    folder, family, oracle = checkpoint
    if family != "deberta-v2":
        pytest.skip("the same table as DeBERTa's; ALBERT normalises before it, too")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.normalizer is not None
    different = [
        code
        for code in range(0x110000)
        if not 0xD800 <= code < 0xE000
        and tokenizer.normalizer.normalize_str(f"a{chr(code)}b")
        != oracle.normalize(f"a{chr(code)}b")[1:].replace("▁", " ")
    ]
    assert different == [0x344, 0xFFFF]  # two marks as one, which the table takes apart; and the barrier, no character


def test_special_tokens_stand_where_the_checkpoints_have_them(checkpoint):
    folder, family, _ = checkpoint
    tokenizer = load_tokenizer(folder)
    start, end = (tokenizer.token_to_id(token) for token in (LAYOUTS[family].start, LAYOUTS[family].end))
    numbers = {
        "deberta-v2": {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3},
        "xlm-roberta": {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3},
        "camembert": {"<pad>": 1, "<unk>": 3, "<s>": 5, "</s>": 6},
        "albert": {"<pad>": 0, "<unk>": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4},
    }[family]
    assert {token: tokenizer.token_to_id(token) for token in numbers} == numbers
    pair = tokenizer.encode("one", "two")
    assert pair.ids[0] == start
    assert pair.ids.count(end) == (3 if LAYOUTS[family].twice_between else 2)
    assert set(pair.type_ids) == ({0} if LAYOUTS[family].twice_between else {0, 1})
    assert tokenizer.encode(f"a {LAYOUTS[family].mask}").ids[-2] == tokenizer.token_to_id(LAYOUTS[family].mask)


def test_offsets_are_those_of_the_text_as_given(checkpoint):
    folder, _, _ = checkpoint
    text = "  Ein ﬁnes Ma\u0308dchen, ｶﾞ "
    encoding = load_tokenizer(folder).encode(text)
    places = [
        place for place, special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True) if not special
    ]
    assert places[0][0] in (0, 1, 2)
    assert max(end for _, end in places) >= len(text) - 3  # of a composed character the first mark's place is told
    assert [start for start, _ in places] == sorted(start for start, _ in places)
    assert any(start <= text.index("Ma") < end for start, end in places)


def test_words_each_begin_with_a_blank(checkpoint):
    folder, family, oracle = checkpoint
    words = ["JAK2", "schönes", "(", "ﬁne", "булок"]
    encoding = load_tokenizer(folder).encode(words, is_pretokenized=True)
    expected = [number for word in words for number in expected_ids(family, oracle, word)]
    assert encoding.ids[1:-1] == expected
    assert set(encoding.word_ids[1:-1]) == set(range(len(words)))


def test_it_is_saved_as_a_tokenizer_json_that_gives_the_same(checkpoint, tmp_path):
    folder, _, _ = checkpoint
    tokenizer = load_tokenizer(folder)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    again = load_tokenizer(tmp_path)
    for text in sentences():
        assert again.encode(text).ids == tokenizer.encode(text).ids


def test_the_mask_comes_after_the_pieces_and_other_tokens_after_it(tmp_path):
    name, options = FAMILIES["deberta-v2"]
    oracle = trained(tmp_path, name, **options)
    (tmp_path / "config.json").write_text('{"model_type": "deberta-v2"}')
    count = oracle.vocab_size()
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.token_to_id("[MASK]") == count
    check_vocabulary(tokenizer, count + 1)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[GENE]": count + 1, "[MASK]": count}))
    tokenizer = load_tokenizer(tmp_path)
    assert [tokenizer.token_to_id(token) for token in ("[MASK]", "[GENE]")] == [count, count + 1]
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[GENE]": count + 7}))
    with pytest.raises(ValueError, match=rf"gives '\[GENE\]' the id {count + 7}, expected {count}"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "options", [{"model_type": "bpe"}, {"treat_whitespace_as_suffix": True}], ids=lambda options: next(iter(options))
)
def test_other_kinds_of_models_are_refused(tmp_path, options):
    trained(tmp_path, "spm.model", **FAMILIES["deberta-v2"][1], **options)
    (tmp_path / "config.json").write_text('{"model_type": "deberta-v2"}')
    with pytest.raises(ValueError, match="is not a unigram model"):
        load_tokenizer(tmp_path)


def test_damaged_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "spm.model"
    path.write_bytes(b"\xff\xff not a message")
    with pytest.raises(ValueError, match=r"config\.json beside it"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "deberta-v2"}')
    with pytest.raises(ValueError, match=r"spm\.model is not a SentencePiece model"):
        load_tokenizer(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="holds no pieces"):
        load_tokenizer(tmp_path)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    trained(tmp_path, "spm.model")
    (tmp_path / "config.json").write_text('{"model_type": "deberta-v2"}')
    with pytest.raises(ValueError, match=r"lacks the pieces .* of deberta-v2 models"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="how 'bert' models number the pieces"):
        load_tokenizer(tmp_path)
