"""transformers' pipeline as the oracle, on MiniLM with a head whose weights are large enough to give all labels."""

import itertools
import shutil

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_core.models import load_pretrained, resolve, save_pretrained
from trainers.config import RunConfig
from trainers.data.tokenizer import load_tokenizer
from trainers.data.tokens.bio import bio_labels
from trainers.data.tokens.windows import encode_tokens
from trainers.loop import predict
from trainers.serve import pipeline
from trainers.serve.pipeline import CHUNK_ITEMS
from trainers.tasks.token import TokenClassification

LABELS = ["O", "B-protein", "I-protein", "B-DNA", "I-DNA"]
# No hyphens: at those transformers' pipeline cuts words in two.
TEXTS = [
    "Glucocorticoid receptors bind the promoter; transcription begins (in lymphocytes).",
    "Interleukin  induces\tphosphorylation of immunoglobulin genes, 95% of cells.",
    "NFkappaB",
    "Zytoplasmatische Überexpression des Präproinsulins, naïve Thymozyten!",
    'He said: "thrombocytopenia" is hypergammaglobulinemia.',
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("minilm")
    model = load_pretrained("embedded", "token-classification", LABELS)
    with torch.no_grad():
        model.get_submodule("classifier").weight.normal_(0, 0.4, generator=torch.Generator().manual_seed(3))
    save_pretrained(model, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (resolve("embedded") / name).is_file():
            shutil.copy(resolve("embedded") / name, folder)
    return folder


@pytest.fixture(scope="module")
def ner(folder):
    strategies = ("first", "average", "max")
    return {strategy: pipeline("ner", folder, aggregation_strategy=strategy) for strategy in strategies}


@pytest.fixture(scope="module")
def tiny_ner(finished):
    return pipeline("ner", finished["full"])


@pytest.fixture(scope="module")
def oracle(folder):
    return transformers.pipeline("ner", model=str(folder), device="cpu")


def assert_same(found, expected):
    """The same entities, whatever else is said of them."""
    places = [[(e["entity_group"], e["start"], e["end"]) for e in entities] for entities in (found, expected)]
    assert places[0] == places[1]
    assert [e["score"] for e in found] == pytest.approx([float(e["score"]) for e in expected], abs=1e-5)


@pytest.mark.parametrize("strategy", ["first", "average", "max"])
def test_the_entities_of_running_text_are_those_of_transformers(strategy, ner, oracle):
    found = ner[strategy](TEXTS)
    assert len({entity["entity_group"] for entities in found for entity in entities}) == 2
    assert sum(map(len, found)) > 10
    for text, entities in zip(TEXTS, found, strict=True):
        assert_same(entities, oracle(text, aggregation_strategy=strategy))
        assert all(entity["word"] == text[entity["start"] : entity["end"]] for entity in entities)


def test_strategies_differ_on_these_texts(ner):
    assert len({str(ner[strategy](TEXTS)) for strategy in ner}) == 3


def test_a_strategy_for_one_call(ner):
    before = ner["first"](TEXTS)
    assert ner["first"](TEXTS, aggregation_strategy="average") == ner["average"](TEXTS) != before
    assert ner["first"](TEXTS) == before


def test_the_entities_of_a_list_of_words_are_those_of_transformers(ner, oracle):
    words = ["Glucocorticoid", "receptors", "phosphorylation", "(", "NFkappaB", ")", "hypergammaglobulinemia", "."]
    (entities,) = ner["first"]([words])
    (expected,) = oracle(words, aggregation_strategy="first", is_split_into_words=True)
    assert entities
    assert_same(entities, expected)
    for entity in entities:
        first, end = entity["words"]
        assert entity["word"] == " ".join(words[first:end])


def test_one_text_several_and_none(ner):
    first = ner["first"]
    assert first(TEXTS[0]) == first([TEXTS[0]])[0] != []
    assert first([]) == []
    assert first("") == first(" \u200b ") == []
    assert first(["", TEXTS[0], " ", [], ["receptors"]])[::2] == [[], [], first([["receptors"]])[0]]
    assert "words" not in first(TEXTS[0])[0]


@pytest.mark.parametrize("max_tokens", [1, 40, 100_000])
def test_results_keep_their_order_whatever_the_batches(max_tokens, finished, tiny_ner):
    texts = [" ".join(["junb binds the", "il2", "gene promoter abcd"][place % 3 :]) for place in range(30)]
    texts = [text * (1 + place % 4) for place, text in enumerate(texts)]
    found = pipeline("ner", finished["full"], max_tokens=max_tokens)(texts)
    assert any(found)
    for text, entities in zip(texts, found, strict=True):
        assert_same(entities, tiny_ner(text))


def test_a_stream_is_read_a_chunk_at_a_time(tiny_ner):
    read = itertools.count()
    results = tiny_ner("il2 gene" if next(read) % 2 else "" for _ in range(CHUNK_ITEMS + 2))
    first, second = next(results), next(results)
    assert next(read) == CHUNK_ITEMS
    assert first == []
    assert [entity["word"] for entity in second] != []
    assert sum(1 for _ in results) == CHUNK_ITEMS  # one number was taken above


def test_every_word_of_a_long_text_has_the_prediction_of_evaluation(finished, alone):
    # The path of training and evaluation; texts of up to 90 words, in windows of at most 24 tokens.
    run = pipeline("ner", finished["full"])
    random = np.random.default_rng(0)
    words = [[str(word) for word in random.choice(["the", "il2", "binds", "junb", "abcdefgh", "gene", "."], count)]
             for count in (0, 90, 1, 22, 23, 24, 61)]  # fmt: skip
    tokenizer = load_tokenizer(finished["full"] / "best")
    windows = encode_tokens(words, None, tokenizer, 24, 0)
    assert len(windows) > len(words)
    task = TokenClassification(run.labels)
    _, predictions = predict(run.served.model, task, windows, RunConfig(), alone)
    expected = windows.words_from(predictions)
    found = run.word_predictions(words)
    assert [ids.tolist() for ids, _ in found] == [ids.tolist() for ids in expected]
    assert all(((scores > 0) & (scores <= 1)).all() for _, scores in found)


TEXT = st.text(st.sampled_from("ab il2.-,()'\n\u0301\u200b\u200d\u200fא東👩🏽+ é\x00"), max_size=80)


@settings(max_examples=40)
@given(st.lists(st.one_of(TEXT, st.lists(TEXT, max_size=40)), max_size=4))
def test_entities_lie_on_words_in_order(tiny_ner, inputs):
    for source, entities in zip(inputs, tiny_ner(inputs), strict=True):
        text = source if isinstance(source, str) else " ".join(source)
        end = 0
        for entity in entities:
            assert end <= entity["start"] <= entity["end"] <= len(text)
            assert entity["word"] == text[entity["start"] : entity["end"]]
            assert 0 < entity["score"] <= 1
            end = entity["end"]


def test_strict_reading(folder, ner):
    lenient = ner["first"](TEXTS)
    strict = pipeline("ner", folder, strict=True)(TEXTS)
    assert sum(map(len, strict)) < sum(map(len, lenient))
    assert bio_labels(ner["first"].labels) == tuple(LABELS)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["a", 3], "input 1 is int"),
        ([["a", 3]], "expected words that are strings"),
        ("a \ud800", "half of a character"),
        ({"a": "b"}, "input 0: expected a JSON object with 'text' or 'tokens'"),
        (b"a", "the input is bytes"),
    ],
)
def test_inputs_that_are_no_texts(inputs, message, ner):
    with pytest.raises(ValueError, match=message):
        ner["first"](inputs)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("nre",), {}, r"no pipeline for 'nre'; there are [^.]*\.$"),
        ((".",), {}, r"no pipeline for .*; there are .* Is it the model\? Then pipeline\(model=.*\)"),
        (("ner",), {}, "model is missing"),
        (("ner", "."), {"aggregation_strategy": "simple"}, "aggregation_strategy is 'simple'"),
        (("ner", "."), {"top_k": 2}, "no option 'top_k'; it has aggregation_strategy, strict"),
        (("ner", "."), {"max_tokens": 0}, "max_tokens=0"),
        (("text-classification", "."), {}, "no trained head|no head for text-classification"),
    ],
)
def test_arguments_are_checked(arguments, options, message, folder):
    with pytest.raises(ValueError, match=message):
        pipeline(*[folder if argument == "." else argument for argument in arguments], **options)
