import string

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing, TemplateProcessing

from trainers.data.texts.encode import CHUNK, encode_texts, mean_of_windows
from trainers.data.tokens.windows import IGNORED_LABEL

PAD = 3


def letter_tokenizer() -> Tokenizer:
    """A word of n letters becomes n pieces."""
    letters = string.ascii_lowercase
    tokens = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return tokenizer


TOKENIZER = letter_tokenizer()
texts_of_letters = st.lists(st.text("abcxyz  -", max_size=40), max_size=6)


def parts(data):
    return np.split(data.input_ids, data.offsets[1:-1]) if len(data) else []


@given(texts=texts_of_letters, max_length=st.integers(3, 45))
def test_head_is_the_tokenizers_own_truncation(texts, max_length):
    data = encode_texts(texts, np.zeros(len(texts)), TOKENIZER, max_length, PAD)
    oracle = letter_tokenizer()
    whole = [len(encoding.ids) for encoding in oracle.encode_batch(texts)]
    oracle.enable_truncation(max_length)
    assert [part.tolist() for part in parts(data)] == [encoding.ids for encoding in oracle.encode_batch(texts)]
    assert data.shortened == sum(length > max_length for length in whole)
    assert data.lengths.tolist() == [min(length, max_length) for length in whole]


@given(texts=texts_of_letters, max_length=st.integers(3, 45))
def test_head_tail_keeps_both_ends_and_the_special_tokens(texts, max_length):
    data = encode_texts(texts, np.zeros(len(texts)), TOKENIZER, max_length, PAD, "head_tail")
    left, right = letter_tokenizer(), letter_tokenizer()
    tail = (max_length - 2) // 2
    left.enable_truncation(max_length - tail)
    for text, part in zip(texts, parts(data), strict=True):
        whole = TOKENIZER.encode(text).ids
        if len(whole) <= max_length:
            assert part.tolist() == whole
            continue
        if tail:
            right.enable_truncation(tail + 2, direction="left")
        behind = right.encode(text).ids[1:] if tail else [2]
        assert part.tolist() == left.encode(text).ids[:-1] + behind
        assert len(part) == max_length


@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=8), data=st.data())
def test_a_batch_is_its_texts_and_padding(lengths, data):
    texts = ["a" * length for length in lengths]
    targets = np.arange(len(texts)) % 3
    encoded = encode_texts(texts, targets, TOKENIZER, 10, PAD)
    indices = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1))
    inputs, labels = encoded.collate(indices)
    assert labels.tolist() == targets[indices].tolist()
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (len(indices), encoded.lengths[indices].max())
    for index, ids, mask in zip(indices, inputs["input_ids"], inputs["attention_mask"], strict=True):
        own = parts(encoded)[index].tolist()
        assert ids.tolist() == own + [PAD] * (len(ids) - len(own))
        assert mask.tolist() == [1] * len(own) + [0] * (len(ids) - len(own))
    assert all(tensor.dtype == labels.dtype for tensor in inputs.values())
    assert encoded.label_counts.tolist() == [1] * len(texts)


def test_more_texts_than_a_chunk():
    texts = ["ab " * (number % 5) + "z" for number in range(2 * CHUNK + 7)]
    data = encode_texts(texts, np.arange(len(texts)), TOKENIZER, 8, PAD)
    assert [part.tolist() for part in parts(data)][-8:] == [
        [*TOKENIZER.encode(text).ids[:7], 2] if len(TOKENIZER.encode(text).ids) > 8 else TOKENIZER.encode(text).ids
        for text in texts[-8:]
    ]
    assert len(data) == len(texts)


def test_special_tokens_of_any_number():
    tokenizer = letter_tokenizer()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] [CLS] $A", special_tokens=[("[CLS]", 1)])
    data = encode_texts(["abcdef"], [0], tokenizer, 5, PAD, "head_tail")
    a = TOKENIZER.token_to_id
    assert data.input_ids.tolist() == [1, 1, a("a"), a("##b"), a("##f")]


@pytest.mark.parametrize(
    ("texts", "targets", "max_length", "message"),
    [
        (["a"], [0], 2, "max_length=2 leaves no room for text: the special tokens alone take 2"),
        (["a"], [0, 1], 9, r"targets of shape \(2,\) for 1 texts"),
        (["a", None], [0, 1], 9, "text 1 is NoneType, expected a string"),
        (["\ud800"], [0], 9, "half of a character"),
    ],
)
def test_what_is_refused(texts, targets, max_length, message):
    with pytest.raises(ValueError, match=message):
        encode_texts(texts, targets, TOKENIZER, max_length, PAD)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least one text"):
        encode_texts(["a"], [0], TOKENIZER, 9, PAD).collate([])


@given(texts=texts_of_letters, max_length=st.integers(3, 45))
def test_windows_hold_every_token_once(texts, max_length):
    texts = [*texts, "abc xyz " * 20]
    data = encode_texts(texts, np.arange(len(texts)), TOKENIZER, max_length, PAD, "windows")
    assert data.shortened == 0
    inputs, labels = data.collate(np.arange(len(texts)))
    text = np.cumsum(labels.numpy() != IGNORED_LABEL) - 1
    assert labels[labels != IGNORED_LABEL].tolist() == list(range(len(texts)))
    for index, original in enumerate(texts):
        whole = TOKENIZER.encode(original).ids
        rows = [
            inputs["input_ids"][row][inputs["attention_mask"][row] == 1].tolist()
            for row in np.flatnonzero(text == index)
        ]
        assert [token for row in rows for token in row[1:-1]] == whole[1:-1]
        assert all((row[0], row[-1]) == (1, 2) and len(row) <= max_length for row in rows)
        assert len(rows) == max(1, -(-(len(whole) - 2) // (max_length - 2)))
        assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_a_texts_logits_are_the_mean_of_its_windows():
    logits = torch.tensor([[1.0, 0.0], [3.0, 4.0], [5.0, 5.0], [1.0, 1.0], [0.0, 3.0]])
    labels = torch.tensor([1, IGNORED_LABEL, 0, 1, IGNORED_LABEL])
    assert mean_of_windows(logits, labels).tolist() == [[2.0, 2.0], [5.0, 5.0], [0.5, 2.0]]
