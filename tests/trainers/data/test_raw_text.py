import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.data.raw_text import split_text


def words(text):
    return [text[start:end] for start, end in split_text(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\t\u00a0\u2003", []),
        ("IL-2 gene expression.", ["IL-2", "gene", "expression", "."]),
        ("(IL-2)-dependent, NF-kappa B/Rel", ["(", "IL-2", ")", "-dependent", ",", "NF-kappa", "B/Rel"]),
        ("CD4+/CD8+ and Ca2+-bound", ["CD4+/CD8+", "and", "Ca2+-bound"]),
        ("the 5'-flanking region, 3' end", ["the", "5'-flanking", "region", ",", "3'", "end"]),
        ("patient’s don't 'quoted'", ["patient’s", "don't", "'", "quoted", "'"]),
        ("anti- and pro-drug -- or not", ["anti-", "and", "pro-drug", "--", "or", "not"]),
        ("$1,000.50 at 4.25% (.5)", ["$", "1,000.50", "at", "4.25", "%", "(", ".5", ")"]),
        ("3,4,5 12:30 a:b 1:200", ["3,4,5", "12:30", "a", ":", "b", "1:200"]),
        ("the U.S., e.g. u.v v1.2 ended.Next", ["the", "U.S.", ",", "e.g.", "u.v", "v1.2", "ended", ".", "Next"]),
        ("a_b and/or C++...", ["a_b", "and/or", "C++", "..."]),
        ("-5 to 10–20", ["-5", "to", "10", "–", "20"]),
        ("东京 Tōkyō 2024年", ["东", "京", "Tōkyō", "2024", "年"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("שָׁלוֹם עולם!", ["שָׁלוֹם", "עולם", "!"]),
        ("می‌خواهم مرحبا", ["می‌خواهم", "مرحبا"]),
        ("ok👍🏽👩‍⚕️🇫🇷", ["ok", "👍🏽", "👩‍⚕️", "🇫", "🇷"]),
        ("zero\u200bwidth e\u0301te\u0301", ["zero\u200bwidth", "e\u0301te\u0301"]),
        ("\u200f\u0301 x", ["x"]),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


def test_many_marks_cost_no_more_than_their_number():
    marks = "\u0301" * 1_000_000
    assert words(f"a.b{marks}c.") == ["a", ".", f"b{marks}c", "."]


ALPHABET = st.one_of(
    st.characters(),
    st.sampled_from("aB1.,-'/+()%$ \n’\u0301\u200b\u200d\u200f\ufe0f\U0001f3fd👩⚕🇫東אשمر\u0940\ud800\x00\ufeff"),
)


@given(st.text(ALPHABET, max_size=60))
def test_every_visible_character_is_in_exactly_one_word(text):
    covered = [0] * len(text)
    previous = 0
    for start, end in split_text(text):
        assert previous <= start < end
        previous = end
        assert not any(character.isspace() for character in text[start:end])
        for place in range(start, end):
            covered[place] += 1
    for character, count in zip(text, covered, strict=True):
        loose = unicodedata.category(character) in ("Mn", "Mc", "Me", "Cc", "Cf") or "🏻" <= character <= "🏿"
        assert count == 1 or character.isspace() or (loose and count == 0)


TOKENS = st.sampled_from(["IL-2", "gene", "CD4+", "(", ")", ",", "4.25", "%", "été", "東", "👍🏽", "x/y"])


@given(st.lists(TOKENS, max_size=9))
def test_words_with_spaces_between_come_back(tokens):
    assert words(" ".join(tokens)) == tokens


@given(st.text(st.sampled_from("aé ñö.-"), max_size=30))
def test_decomposed_accents_change_no_word(text):
    assert [unicodedata.normalize("NFC", word) for word in words(unicodedata.normalize("NFD", text))] == words(text)
