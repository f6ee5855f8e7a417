import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from trainers.config import RunConfig
from trainers.data.texts.augment import WordAugmentation, changed
from trainers.data.texts.encode import encode_texts
from trainers.experiment import run

TEXTS = [
    "nfkb binds gene aa ab abc in cells",
    "gene",
    "",
    "the of and a il2 site promoter enhancer junb receptor cd",
    *["abc de fgh a bc def gh ab cde f"] * 40,
]


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return Tokenizer.from_file(str(checkpoint / "tokenizer.json"))


def encoded(tokenizer, share=0.3, seed=1, max_length=24, long_text="head"):
    augmentation = WordAugmentation(share, seed, max_length)
    return encode_texts(TEXTS, np.zeros(len(TEXTS)), tokenizer, max_length, 0, long_text, augmentation)


def rows(data, epoch=None, indices=range(44)):
    return [data.collate([index], epoch)[0]["input_ids"][0].tolist() for index in indices]


def words_of(row, tokenizer):
    """The words of a row of tokens, without special tokens."""
    return tokenizer.decode(row).replace(" ##", "").split()


@given(size=st.integers(0, 30), share=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_what_a_change_does_to_words(size, share, seed):
    times = max(1, round(share * size))
    orders = {
        name: changed(size, share, name, np.random.default_rng(seed)) for name in ("none", "swap", "delete", "insert")
    }
    before = list(range(size))
    assert orders["none"] == before
    if size < 2:
        assert all(order == before for order in orders.values())
        return
    assert sorted(orders["swap"]) == before
    assert sum(a != b for a, b in zip(orders["swap"], before, strict=True)) <= 2 * times
    if times == 1:
        assert orders["swap"] != before
    assert len(orders["delete"]) == max(1, size - times)
    assert orders["delete"] == sorted(set(orders["delete"]))
    assert len(orders["insert"]) == size + times
    remaining = iter(orders["insert"])
    assert all(word in remaining for word in before)
    assert set(orders["insert"]) == set(before)


def test_changes_are_a_function_of_seed_epoch_and_example(tokenizer):
    data = encoded(tokenizer)
    first = rows(data, 0)
    whole = data.collate(np.arange(len(TEXTS)), 0)
    for row, inputs, mask in zip(first, whole[0]["input_ids"], whole[0]["attention_mask"], strict=True):
        assert row == inputs[mask == 1].tolist()
        assert not inputs[mask == 0].any()
    assert whole[1].tolist() == [0] * len(TEXTS)
    assert rows(data, 0) == first
    assert rows(data, 1) != first
    assert rows(encoded(tokenizer, seed=2), 0) != first
    same = rows(data, 0, range(4, 44))
    assert len(set(map(tuple, same))) > 15, "equal texts change differently"


def test_evaluation_and_runs_without_it_see_the_texts_as_they_are(tokenizer):
    plain = encode_texts(TEXTS, np.zeros(len(TEXTS)), tokenizer, 24, 0)
    assert plain.words is None
    assert rows(plain, 3) == rows(plain) == rows(encoded(tokenizer)) == [tokenizer.encode(text).ids for text in TEXTS]


def test_whole_words_move_between_the_special_tokens(tokenizer):
    data = encoded(tokenizer, max_length=40)
    opening, closing = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    unchanged = longer = shorter = 0
    changed_rows = [*enumerate(rows(data, 0)), *enumerate(rows(data, 1))]
    for index, row in changed_rows:
        assert (row[0], row[-1]) == (opening, closing)
        assert not {opening, closing} & set(row[1:-1])
        found, words = words_of(row, tokenizer), TEXTS[index].split()
        assert set(found) <= set(words)
        if index in (1, 2):
            assert found == words
        if index >= 4:
            unchanged += found == words
            longer += len(found) > len(words)
            shorter += len(found) < len(words)
    assert all(10 <= count <= 32 for count in (unchanged, longer, shorter))


@pytest.mark.parametrize("long_text", ["head", "head_tail"])
def test_insertions_stay_within_the_models_length(tokenizer, long_text):
    data = encoded(tokenizer, share=0.9, max_length=12, long_text=long_text)
    plain = encode_texts(TEXTS, np.zeros(len(TEXTS)), tokenizer, 12, 0, long_text)
    assert plain.shortened > 30
    assert rows(data) == rows(plain)
    lengths = [len(row) for epoch in range(3) for row in rows(data, epoch)]
    assert max(lengths) == 12
    for row, before in zip(rows(data, 1), rows(data), strict=True):
        if len(row) == len(before) == 12:
            assert set(row) <= set(before)


def test_a_run_learns_from_changed_texts(tiny, checkpoint, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = [
        {"text": f"{'gene site' if number % 2 else 'nfkb il2'} binds the a", "label": "yn"[number % 2]}
        for number in range(20)
    ]
    for split in ("train", "valid"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = RunConfig(
        task="text-classification",
        model=str(checkpoint),
        fresh_head=True,
        data=str(folder),
        epochs=2,
        batch_size=4,
        hidden_dropout=0.0,
        lora_dropout=0.0,
        output_dir=tmp_path / "off",
    )
    losses = []
    for name, changes in {"off": {}, "on": {"text_augment": "eda", "augment_share": 0.5}}.items():
        finished = run(dataclasses.replace(config, output_dir=tmp_path / name, **changes))
        losses.append([epoch["train_loss"] for epoch in finished.epochs])
    assert losses[0] != losses[1]
    with pytest.raises(ValueError, match=r"augment_share is a share, above 0 and below 1, but it is 1.5"):
        RunConfig(augment_share=1.5)
