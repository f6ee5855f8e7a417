import os
import string

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing, TemplateProcessing

from trainers.data.tokens.reader import load_token_datasets
from trainers.data.tokens.windows import IGNORED_LABEL, TokenWindows, encode_tokens

UNKNOWN, OPEN, CLOSE, PAD = 0, 1, 2, 3


def letter_tokenizer() -> Tokenizer:
    """A word of n letters becomes n pieces; '-' is a word of its own; a control character leaves nothing."""
    letters = string.ascii_lowercase
    tokens = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "-", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", CLOSE), ("[CLS]", OPEN))
    return tokenizer


TOKENIZER = letter_tokenizer()
WORD = st.text(string.ascii_lowercase, min_size=1, max_size=12) | st.sampled_from(
    ["a-b", "\x00", "", "\u200b", "é", "漢"]
)
SENTENCES = st.lists(st.lists(WORD, max_size=25), min_size=1, max_size=6)
MAX_LENGTH = st.integers(3, 20)


def parts(windows: TokenWindows, flat: np.ndarray) -> list[np.ndarray]:
    return np.split(flat, windows.offsets[1:-1])


def expected_pieces(sentence: list[str], max_length: int) -> list[list[int]]:
    """Pieces per word of a sentence that is tokenised as a whole."""
    encoding = TOKENIZER.encode(sentence, is_pretokenized=True, add_special_tokens=False)
    pieces: list[list[int]] = [[] for _ in sentence]
    for token, word in zip(encoding.ids, encoding.word_ids, strict=True):
        pieces[word].append(token)
    return [(of_word or [UNKNOWN])[: max_length - 2] for of_word in pieces]


@given(SENTENCES, MAX_LENGTH)
def test_every_word_is_predicted_once_at_its_first_piece_inside_its_own_context(sentences, max_length):
    tags = [[7 * index % 5 for index in range(len(sentence))] for sentence in sentences]
    windows = encode_tokens(sentences, tags, TOKENIZER, max_length, PAD)
    predicted = []
    for number, (ids, labels, words) in enumerate(
        zip(
            *(parts(windows, flat) for flat in (windows.input_ids, windows.labels, windows.word_ids)),
            strict=True,
        )
    ):
        sentence = int(windows.sentence[number])
        assert len(ids) <= max_length
        assert (ids[0], ids[-1]) == (OPEN, CLOSE)
        pieces = expected_pieces(sentences[sentence], max_length)
        flat = [token for of_word in pieces for token in of_word]
        first = np.cumsum([0, *map(len, pieces)])
        positions = np.flatnonzero(words >= 0)
        for position in positions:
            word = words[position]
            begin = first[word] - (position - 1)  # where the window begins in the sentence, seen from this word
            assert ids[1:-1].tolist() == flat[begin : begin + len(ids) - 2]
            assert {begin, begin + len(ids) - 2} <= set(first.tolist())  # cut on word borders
            assert labels[position] == tags[sentence][word]
            predicted.append((sentence, int(word)))
        assert (np.delete(labels, positions) == IGNORED_LABEL).all()
    assert predicted == [(number, word) for number, words in enumerate(sentences) for word in range(len(words))]


@given(SENTENCES, MAX_LENGTH, st.integers(0, 3))
def test_words_from_gives_each_word_its_own_prediction(sentences, max_length, extra):
    tags = [[index % 5 for index in range(len(sentence))] for sentence in sentences]
    windows = encode_tokens(sentences, tags, TOKENIZER, max_length, PAD)
    padded = [np.pad(labels, (0, extra), constant_values=99) for labels in parts(windows, windows.labels)]
    assert [words.tolist() for words in windows.words_from(padded)] == tags
    scores = [np.stack([labels, labels + 1], axis=1) for labels in padded]  # (T, 2)
    assert [words[:, 1].tolist() for words in windows.words_from(scores)] == [[t + 1 for t in row] for row in tags]


@given(SENTENCES, MAX_LENGTH, st.data())
def test_collate_pads_to_the_longest_window(sentences, max_length, data):
    windows = encode_tokens(sentences, [[1] * len(s) for s in sentences], TOKENIZER, max_length, PAD)
    indices = data.draw(st.lists(st.integers(0, len(windows) - 1), min_size=1, max_size=5))
    inputs, labels = windows.collate(indices)
    ids_of, labels_of = parts(windows, windows.input_ids), parts(windows, windows.labels)
    longest = max(len(ids_of[index]) for index in indices)
    for row, index in enumerate(indices):
        gap = longest - len(ids_of[index])
        assert inputs["input_ids"][row].tolist() == ids_of[index].tolist() + [PAD] * gap
        assert inputs["attention_mask"][row].tolist() == [1] * len(ids_of[index]) + [0] * gap
        assert labels[row].tolist() == labels_of[index].tolist() + [IGNORED_LABEL] * gap
        assert windows.lengths[index] == len(ids_of[index])
        assert windows.label_counts[index] == (labels_of[index] != IGNORED_LABEL).sum()
    assert {tensor.dtype for tensor in (*inputs.values(), labels)} == {torch.int64}
    assert windows.label_counts.sum() == sum(map(len, sentences))


def test_padding_is_not_labelled_when_the_tokenizer_has_no_special_tokens():
    tokenizer = letter_tokenizer()
    tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    windows = encode_tokens([["a", "b"], ["c"]], [[1, 2], [3]], tokenizer, 9, PAD)
    inputs, labels = windows.collate([0, 1])
    assert inputs["input_ids"].tolist() == [[5, 6], [7, PAD]]
    assert labels.tolist() == [[1, 2], [3, IGNORED_LABEL]]


def test_a_sentence_that_just_fits_is_one_window_and_one_piece_more_makes_two():
    sentence = ["abc", "d", "ef"]
    assert len(encode_tokens([sentence], None, TOKENIZER, 8, PAD)) == 1
    assert len(encode_tokens([sentence], None, TOKENIZER, 7, PAD)) == 2


def test_words_without_pieces_and_words_longer_than_a_window():
    windows = encode_tokens([["\x00", "abcdefgh", "c"]], [[1, 2, 3]], TOKENIZER, 5, PAD)
    a = 5
    ids = [part.tolist() for part in parts(windows, windows.input_ids)]
    assert ids == [[OPEN, UNKNOWN, CLOSE], [OPEN, a, a + 27, a + 28, CLOSE], [OPEN, a + 2, CLOSE]]
    assert [words.tolist() for words in windows.words_from(parts(windows, windows.labels))] == [[1, 2, 3]]


def test_text_without_tags_still_knows_its_words():
    windows = encode_tokens([["ab", "c"], []], None, TOKENIZER, 9, PAD)
    assert windows.word_ids.tolist() == [-1, 0, -1, 1, -1, -1, -1]
    assert windows.label_counts.tolist() == [0, 0]
    predictions = [np.arange(5), np.arange(2)]
    assert [words.tolist() for words in windows.words_from(predictions)] == [[1, 3], []]


def test_a_tag_of_minus_100_leaves_its_word_out_of_the_score_but_not_of_the_prediction():
    windows = encode_tokens([["a", "b"]], [[IGNORED_LABEL, 4]], TOKENIZER, 9, PAD)
    assert windows.label_counts.tolist() == [1]
    assert windows.words_from([np.arange(4)])[0].tolist() == [1, 2]


def test_no_sentences_give_no_windows():
    windows = encode_tokens([], [], TOKENIZER, 9, PAD)
    assert len(windows) == 0
    assert windows.words_from([]) == []
    assert windows.lengths.shape == windows.label_counts.shape == (0,)


def test_the_windows_are_frozen_and_of_the_documented_types():
    windows = encode_tokens([["a"]], [[0]], TOKENIZER, 9, PAD)
    types = [getattr(windows, name).dtype for name in ("input_ids", "labels", "word_ids", "offsets", "sentence")]
    assert types == [np.int32, np.int64, np.int32, np.int64, np.int32]
    with pytest.raises(AttributeError):
        windows.pad_token_id = 1


@pytest.mark.parametrize(
    ("words", "tags", "max_length", "message"),
    [
        ([["a"]], [[1], [2]], 9, "tags for 2 sentences, but 1 sentences of words"),
        ([["a"], ["a", "b"]], [[1], [2]], 9, "sentence 1 has 2 words but 1 tags"),
        ([["a"]], [[-1]], 9, "tag -1 is no label id"),
        ([["a"]], [[1]], 2, "max_length=2 leaves no room"),
    ],
)
def test_what_does_not_fit_is_refused(words, tags, max_length, message):
    with pytest.raises(ValueError, match=message):
        encode_tokens(words, tags, TOKENIZER, max_length, PAD)


def test_predictions_that_do_not_fit_are_refused():
    windows = encode_tokens([["a"], ["b", "c"]], None, TOKENIZER, 9, PAD)
    with pytest.raises(ValueError, match="predictions for 1 windows, expected 2"):
        windows.words_from([np.zeros(3)])
    with pytest.raises(ValueError, match="3 predictions for window 1, which has 4 positions"):
        windows.words_from([np.zeros(3), np.zeros(3)])
    with pytest.raises(ValueError, match="at least one window"):
        windows.collate([])


@pytest.mark.skipif("LORA_DATA_DIR" not in os.environ, reason="needs bionlp2004 under LORA_DATA_DIR")
@pytest.mark.parametrize("max_length", [4096, 24])
def test_real_sentences_come_back_whole(max_length):
    dataset = load_token_datasets("bionlp2004")["validation"]
    windows = encode_tokens(dataset.words, dataset.tags, TOKENIZER, max_length, PAD)
    assert [words.tolist() for words in windows.words_from(parts(windows, windows.labels))] == dataset.tags
    assert (len(windows) > len(dataset)) == (max_length == 24)
