"""Runs with every head, and models from scratch: each learns, and its saved files give the logged scores."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import lora_core
from lora_core.models import build_model, config_from_dict, load_pretrained, save_pretrained
from lora_core.models.crf import FORBIDDEN
from lora_core.models.heads import HEADS
from lora_core.whole import is_waiting
from trainers.config import RunConfig
from trainers.data.tokenizer import build_vocabulary
from trainers.experiment import run
from trainers.finished import evaluate_run
from trainers.model import build, load_model, prepare_head
from trainers.run_folder import read_predictions
from trainers.serve import pipeline
from trainers.serve.export import export_run

LABELS = ("DNA", "protein")
TEXT_HEADS = [name for name, model in HEADS.items() if model.task == "text-classification"]


@pytest.fixture(scope="module")
def corpus(tiny, tmp_path_factory):
    """Texts that one class of words abounds in, the label."""
    folder = tmp_path_factory.mktemp("texts")
    random = np.random.default_rng(5)
    for split, count in {"train": 32, "test": 12}.items():
        rows = []
        for number in range(count):
            label = LABELS[number % 2]
            kinds = random.choice([label, "O"], random.integers(3, 12), p=[0.7, 0.3])
            rows.append({"text": " ".join(random.choice(tiny.WORDS[kind]) for kind in kinds), "label": label})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def bare(tiny, tmp_path_factory):
    """A checkpoint of the encoder alone, without a pooler; its weights pass on what the words are."""
    folder = tiny.write_checkpoint(tmp_path_factory.mktemp("bare"))
    model = build_model(tiny.build().config, seed=1)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    save_pretrained(model, folder)
    return folder


@pytest.fixture
def config(bare, corpus, tmp_path):
    return RunConfig(
        task="text-classification", model=str(bare), data=str(corpus), output_dir=tmp_path / "run", batch_size=8,
        epochs=5, learning_rate=0.01, hidden_dropout=0.0, lora_dropout=0.0, r=4, metric="loss",
    )  # fmt: skip


def assert_found_again(finished):
    """`evaluate_run` reads the saved files and gives the scores that the run logged."""
    scores, logged = evaluate_run(finished.folder), dict(finished.result["test"])
    assert scores.pop("loss") == pytest.approx(logged.pop("loss"), abs=1e-5)
    assert scores == logged
    losses = [epoch["train_loss"] for epoch in finished.epochs]
    assert losses[-1] < losses[0]


def assert_served(config):
    """The pipeline of the run, and that of best/ alone, give the run's predictions."""
    texts = [json.loads(line)["text"] for line in Path(config.data, "test.jsonl").read_text().splitlines()]
    predicted, _ = map(np.concatenate, read_predictions(config.output_dir, "test"))
    best = config.output_dir / "best"
    for source in (config.output_dir, best) if best.exists() else (config.output_dir,):
        found = pipeline("text-classification", source)(texts)
        assert [LABELS.index(result["label"]) for result in found] == predicted.tolist()


@pytest.mark.parametrize(("head", "method"), [*((head, "lora") for head in TEXT_HEADS), ("lstm", "full")])
def test_a_run_with_each_head(config, head, method):
    finished = run(dataclasses.replace(config, head=head, method=method))
    assert finished.result["test"]["accuracy"] >= 0.75
    assert_found_again(finished)
    if method == "full":
        assert load_pretrained(config.output_dir / "best", "text-classification").head_kind == head
    assert_served(config)


@pytest.mark.parametrize("method", ["lora", "head"])
def test_a_pooler_that_the_checkpoint_lacks_is_trained_and_saved(config, method):
    finished = run(dataclasses.replace(config, method=method, seed=7))
    assert_found_again(finished)
    settings = dataclasses.replace(config, method=method, seed=7)
    pooler = "bert.pooler.dense.weight"
    trained = load_model(settings, LABELS).state_dict()
    assert not torch.equal(trained[pooler], build(settings, LABELS).state_dict()[pooler])
    if method == "lora":
        saved = json.loads((config.output_dir / "adapter" / "adapter_config.json").read_text())
        assert set(saved["modules_to_save"]) == {"classifier", "bert.pooler"}
        other = load_pretrained(config.model, config.task, LABELS, seed=8)  # with another random pooler
        lora_core.load_adapter(other, config.output_dir / "adapter")
        own = {name: tensor for name, tensor in other.state_dict().items() if not is_waiting(name)}
        assert all(torch.equal(tensor, trained[name]) for name, tensor in own.items())


def test_a_head_that_is_not_trained_is_saved_with_the_adapter(config):
    settings = dataclasses.replace(config, train_head=False, seed=7)
    finished = run(settings)
    model = build(settings, LABELS)
    adapters = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert finished.result["trainable"] == adapters > 0
    assert_found_again(finished)
    other = load_pretrained(config.model, config.task, LABELS, seed=8)  # with another random head
    lora_core.load_adapter(other, config.output_dir / "adapter")
    for name in ("classifier.weight", "bert.pooler.dense.weight"):
        assert torch.equal(other.get_parameter(name), model.get_parameter(name))
    with pytest.raises(ValueError, match="train_head is false with method head"):
        dataclasses.replace(settings, method="head")


def test_a_pooler_of_the_checkpoint_stays_frozen(config, tiny, tmp_path):
    folder = tiny.write_checkpoint(tmp_path / "whole")
    save_pretrained(build_model(tiny.build().config, config.task, LABELS), folder)
    for method in ("lora", "head"):
        model = build(dataclasses.replace(config, model=str(folder), method=method), LABELS)
        assert model.head_names == ("classifier",)
        assert not model.get_parameter("bert.pooler.dense.weight").requires_grad


# Sequences of labels


@pytest.mark.parametrize(("method", "constraints"), [("lora", False), ("full", True)])
def test_a_run_with_a_crf(checkpoint, data, tmp_path, method, constraints):
    config = RunConfig(
        model=str(checkpoint), data=str(data), output_dir=tmp_path / "run", batch_size=4, epochs=4, method=method,
        learning_rate=0.01, hidden_dropout=0.0, lora_dropout=0.0, head="crf", crf_constraints=constraints,
        metric="loss",
    )  # fmt: skip
    finished = run(config)
    if method == "full":
        assert finished.result["test"]["f1"] > 0.8
    assert_found_again(finished)
    saved = load_model(config, tuple(finished.result["labels"]))
    assert (saved.classifier.forbidden == FORBIDDEN).any() == constraints


def test_settings_that_do_not_suit_the_head(config, checkpoint, data, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("gene\n")
    for change, message in (
        ({"head": "mlp", "confusing_words": str(words)}, "'mlp' has no attention to take a penalty from"),
        ({"head": "crf"}, "there is no head 'crf' for text-classification"),
        ({"model": "lstm"}, "method is 'lora', but lstm starts untrained"),
        ({"model": "lstm", "method": "full", "head": "linear"}, "the head 'linear' reads the first token"),
        ({"tokenizer": "embedded"}, "tokenizer is 'embedded', but .* has its own"),
    ):
        with pytest.raises(ValueError, match=message):
            run(dataclasses.replace(config, **change))
        assert not (config.output_dir / "config.json").exists()
    tokens = RunConfig(model=str(checkpoint), data=str(data), output_dir=tmp_path / "tokens", head="crf")
    with pytest.raises(ValueError, match="head crf scores whole sequences"):
        run(dataclasses.replace(tokens, focal_gamma=2.0))
    with pytest.raises(ValueError, match="crf_constraints is set, but the head is 'default'"):
        run(dataclasses.replace(tokens, head="default", crf_constraints=True))


def test_confusing_words_are_marked_and_saved(config, tiny, tmp_path, caplog):
    words = tmp_path / "words.txt"
    words.write_text("gene\nab\n\nunheard\njunb\n")
    config = dataclasses.replace(config, head="attention", confusing_words=str(words), confusing_penalty=2.0, epochs=1)
    finished = run(config)
    assert "2 of 4 words are left out, for they are not a single token: ab, unheard" in caplog.text
    words.unlink()  # what counts is saved
    head = load_model(config, LABELS).classifier
    marked = {tiny.VOCABULARY[token] for token in head.confusing.nonzero().flatten()}
    assert (marked, head.penalty.item()) == ({"gene", "junb"}, 2.0)
    assert evaluate_run(config.output_dir)["accuracy"] == finished.result["test"]["accuracy"]
    words.write_text("unheard\n")
    with pytest.raises(ValueError, match="has no word that is a single token"):
        build(config, LABELS)


def test_confusing_words_are_marked_in_capitals_too(config, tmp_path):
    pieces = ["[PAD]", "[UNK]", "[SEP]", "gene", "Gene", "DNA"]
    tokenizer = Tokenizer(WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "words.txt").write_text("gene\ndna\n")
    sizes = config_from_dict({"model_type": "lstm", "vocab_size": 6})
    model = build_model(sizes, config.task, LABELS, head="attention")
    settings = {"model": "lstm", "head": "attention", "confusing_words": str(tmp_path / "words.txt")}
    prepare_head(model, dataclasses.replace(config, output_dir=tmp_path, **settings))
    assert [pieces[token] for token in model.classifier.confusing.nonzero().flatten()] == ["gene", "Gene", "DNA"]


# From scratch


def test_the_vocabulary_holds_words_that_occur_twice():
    tokenizer = build_vocabulary(iter(["The gene, the", "GENE? site", "a"]))
    assert tokenizer.get_vocab() == {"[PAD]": 0, "[UNK]": 1, "[SEP]": 2, "gene": 3, "the": 4}
    assert tokenizer.encode("Gene site the").ids == [3, 1, 4, 2]
    assert tokenizer.encode("").ids == [2]


@pytest.mark.parametrize(("model", "head"), [("lstm", "default"), ("bilstm-attention", "default"), ("lstm", "textcnn")])
def test_a_model_from_scratch(config, model, head):
    finished = run(dataclasses.replace(config, model=model, head=head, method="full"))
    assert finished.result["test"]["accuracy"] >= 0.75
    assert_found_again(finished)
    best = config.output_dir / "best"
    assert json.loads((best / "config.json").read_text())["model_type"] == model
    assert_served(config)
    vocabulary = Tokenizer.from_file(str(best / "tokenizer.json"))
    assert vocabulary.encode("nfkb gene").ids[-1] == vocabulary.token_to_id("[SEP]")


@pytest.mark.parametrize("head", ["default", "crf"])
def test_words_labelled_by_a_model_from_scratch(data, tmp_path, head):
    config = RunConfig(model="bilstm-attention", data=str(data), output_dir=tmp_path / "run", method="full", head=head,
                       epochs=6, batch_size=4, learning_rate=0.01, hidden_dropout=0.0, metric="loss")  # fmt: skip
    finished = run(config)
    assert finished.result["test"]["f1"] > 0.8
    assert_found_again(finished)


def test_another_model_s_tokenizer(config, bare):
    finished = run(dataclasses.replace(config, model="lstm", method="full", tokenizer=str(bare), epochs=2))
    assert_found_again(finished)
    assert not (config.output_dir / "tokenizer.json").exists()
    expected = Tokenizer.from_file(str(bare / "tokenizer.json")).get_vocab()
    assert Tokenizer.from_file(str(config.output_dir / "best" / "tokenizer.json")).get_vocab() == expected


def test_an_interrupted_run_from_scratch_goes_on(config, monkeypatch):
    config = dataclasses.replace(config, model="lstm", method="full", epochs=2, resume="auto", hidden_dropout=0.2)
    whole = run(dataclasses.replace(config, output_dir=config.output_dir.with_name("whole")))
    with monkeypatch.context() as patch:
        patch.setattr("trainers.experiment.save_model", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    assert run(config).result["test"] == whole.result["test"]


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_a_crf_s_run_is_served_with_whole_sequences(checkpoint, data, tmp_path, tiny):
    """Every word has the label of `predict`, however long the sentence, and a marginal probability."""
    config = RunConfig(model=str(checkpoint), data=str(data), output_dir=tmp_path / "run", epochs=1, head="crf")
    finished = run(config)
    with pytest.raises(ValueError, match="'max', but the head crf labels whole words"):
        pipeline("ner", config.output_dir, aggregation_strategy="max")
    ner = pipeline("ner", config.output_dir, max_tokens=50)
    words = [json.loads(line)["tokens"] for line in (data / "test.json").read_text().splitlines()]
    predicted, _ = read_predictions(config.output_dir, "test")
    found = ner.word_predictions(words)
    assert [ids.tolist() for ids, _ in found] == [ids.tolist() for ids in predicted]
    assert all(((scores > 1 / len(tiny.LABELS) / 3) & (scores <= 1)).all() for _, scores in found)
    assert max(map(len, words)) > tiny.MAX_TOKENS
    assert ner([words[0]]) == ner(words)[:1]
    export_run(finished.folder, points_lost=100)  # of so few examples, hardly trained, int8 may lose many
    served = pipeline("ner", finished.folder / "model.onnx")
    exported = served.word_predictions(words)
    assert [ids.tolist() for ids, _ in exported] == [ids.tolist() for ids in predicted]
    for (_, scores), (_, expected) in zip(exported, found, strict=True):
        np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert len(pipeline("ner", finished.folder / "model.int8.onnx").word_predictions(words)) == len(words)
