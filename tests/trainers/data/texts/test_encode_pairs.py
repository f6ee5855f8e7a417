"""Pairs of texts in a model's tokens; transformers' tokenizers are the oracle."""

import json

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from trainers.data.texts.encode import encode_pairs

LETTERS = "abcdefgh"
texts = st.text("abch  ", max_size=20)


def bert():
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    tokenizer = Tokenizer(models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def roberta():
    names = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def oracle(tokenizer, pad_token):
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad_token)


FAMILIES = {"bert": (bert, "[PAD]", 0, 2), "roberta": (roberta, "<pad>", 1, 1)}


@pytest.mark.parametrize("family", FAMILIES)
@given(pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=4), max_length=st.integers(8, 30))
def test_pairs_are_those_of_transformers(family, pairs, max_length):
    make, pad_token, pad_id, segments = FAMILIES[family]
    tokenizer = make()
    first, second = map(list, zip(*pairs, strict=True))
    expected = oracle(make(), pad_token)(
        first, second, truncation="longest_first", max_length=max_length, padding=True, return_token_type_ids=True
    )
    data = encode_pairs(first, second, np.zeros(len(first), dtype=np.int64), tokenizer, max_length, pad_id, segments)
    inputs, _ = data.collate(np.arange(len(first)))
    assert inputs["input_ids"].tolist() == expected["input_ids"]
    assert inputs["attention_mask"].tolist() == expected["attention_mask"]
    if segments > 1:
        assert inputs["token_type_ids"].tolist() == expected["token_type_ids"]
    else:
        assert "token_type_ids" not in inputs
    whole = [len(ids) for ids in oracle(make(), pad_token)(first, second)["input_ids"]]
    assert data.shortened == sum(length > max_length for length in whole)
    assert json.loads(tokenizer.to_str())["truncation"] is None


def test_separators_stand_between_the_texts():
    data = encode_pairs(["a b"], ["c"], [0], bert(), 20, 0, 2)
    assert [bert().id_to_token(number) for number in data.input_ids] == ["[CLS]", "a", "b", "[SEP]", "c", "[SEP]"]
    assert data.token_type_ids.tolist() == [0, 0, 0, 0, 1, 1]
    data = encode_pairs(["a"], ["c"], [0], roberta(), 20, 1)
    assert [roberta().id_to_token(number) for number in data.input_ids] == ["<s>", "a", "</s>", "</s>", "c", "</s>"]


@pytest.mark.parametrize(
    ("first", "second", "max_length", "message"),
    [
        (["a"], ["b"], 4, "max_length=4 leaves no room for two texts beside 3 special tokens"),
        (["a"], [None], 9, "pair 0 holds NoneType, expected two strings"),
        (["a"], ["b", "c"], 9, "got 1 targets for 1 texts and 2 second texts"),
        (["a"], ["\ud800"], 9, "half of a character"),
    ],
)
def test_what_is_refused(first, second, max_length, message):
    with pytest.raises(ValueError, match=message):
        encode_pairs(first, second, [0], bert(), max_length, 0)
