import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.processors import TemplateProcessing

from trainers.data.tokens import pieces as pieces_module
from trainers.data.tokens.pieces import WordTable, split_words
from trainers.show import progress_bar


def word_level(vocabulary: list[str], **special: str) -> Tokenizer:
    return Tokenizer(WordLevel({token: index for index, token in enumerate(vocabulary)}, **special))


def test_special_tokens_are_those_of_the_tokenizer_whatever_their_number():
    tokenizer = word_level(["a", "[X]", "[Y]", "[Z]", "[UNK]"], unk_token="[UNK]")
    assert split_words([["a"]], tokenizer, 5).prefix == []
    tokenizer.post_processor = TemplateProcessing(
        single="[X] [Y] $A [Z]", special_tokens=[("[X]", 1), ("[Y]", 2), ("[Z]", 3)]
    )
    pieces = split_words([["a"]], tokenizer, 5)
    assert (pieces.prefix, pieces.suffix, pieces.capacity) == ([1, 2], [3], 2)


def test_words_of_the_text_share_the_pieces_of_distinct_words():
    pieces = split_words([["a", "b", "a"], [], ["b"]], word_level(["a", "b"], unk_token="a"), 4)
    np.testing.assert_array_equal(pieces.ids[pieces.first], [0, 1, 0, 1])
    np.testing.assert_array_equal(pieces.counts, [1, 1, 1, 1])
    np.testing.assert_array_equal(pieces.sentence_offsets, [0, 3, 3, 4])
    assert len(pieces.ids) == 2


def test_many_distinct_words_are_tokenised_in_chunks_with_a_progress_bar(monkeypatch, capsys):
    monkeypatch.setattr("trainers.data.tokens.pieces.CHUNK", 3)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("trainers.data.tokens.pieces.progress_bar",
                        lambda *arguments, delay, **more: progress_bar(*arguments, mininterval=0, **more))  # fmt: skip
    vocabulary = [chr(97 + index) for index in range(10)]
    pieces = split_words([vocabulary], word_level(vocabulary, unk_token="a"), 4)
    np.testing.assert_array_equal(pieces.ids[pieces.first], range(10))
    shown = capsys.readouterr().err
    assert all(f"{done}/10" in shown for done in (0, 3, 6, 9))


def test_small_inputs_show_no_progress_bar(capsys):
    split_words([["a"]], word_level(["a"], unk_token="a"), 4)
    assert capsys.readouterr().err == ""


def test_a_word_without_pieces_needs_an_unknown_token():
    with pytest.raises(ValueError, match="makes no token of the word 'z'"):
        split_words([["a", "z"]], Tokenizer(BPE({"a": 0}, [])), 4)


def test_a_tokenizer_that_tokenises_nothing_is_refused():
    with pytest.raises(ValueError, match="no token at all"):
        split_words([["a"]], Tokenizer(BPE({"b": 0}, [])), 4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a b"], r"sentence 0 is the string 'a b', expected a list of words, such as \['a', 'b'\]"),
        ([["a", 1]], "got 1 of type int"),
        ([["a", None]], "got None of type NoneType"),
        ([["a", ["b"]]], "unhashable type: 'list'"),
        ([["a", "\ud800"]], r"'\\ud800', half of a character"),
    ],
)
def test_words_that_are_no_strings_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        split_words(words, word_level(["a"], unk_token="a"), 4)


def test_a_table_tokenises_a_word_once_for_all_texts(monkeypatch):
    tokenised = []
    plain = pieces_module._tokenise
    monkeypatch.setattr(pieces_module, "_tokenise", lambda words, *args: tokenised.append(words) or plain(words, *args))
    table = WordTable(word_level(["a", "b", "c"], unk_token="a"), 4)
    for text, ids in ((["b", "a"], [1, 0]), (["a", "c", "b"], [0, 2, 1]), ([], [])):
        pieces = table.split([text])
        assert pieces.ids[pieces.first].tolist() == ids
    assert tokenised == [["b", "a"], ["c"], []]


def test_a_full_table_is_emptied_and_the_pieces_stay_right(monkeypatch):
    monkeypatch.setattr(pieces_module, "MOST_WORDS", 2)
    table = WordTable(word_level(["a", "b", "c", "d"], unk_token="a"), 4)
    for text, ids in (("abc", [0, 1, 2]), ("dc", [3, 2]), ("ad", [0, 3])):
        pieces = table.split([list(text)])
        assert pieces.ids[pieces.first].tolist() == ids


@pytest.mark.parametrize("bad", [[["b", 1]], [["b"], "c"], [["b", ["c"]]], [["b", "\ud800"]]])
def test_a_table_survives_words_that_it_refuses(bad):
    table = WordTable(word_level(["a", "b"], unk_token="a"), 4)
    with pytest.raises(ValueError, match=r"expected|half of a character"):
        table.split(bad)
    pieces = table.split([["b", "a"]])
    assert pieces.ids[pieces.first].tolist() == [1, 0]
