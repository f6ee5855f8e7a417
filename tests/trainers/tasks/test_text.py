import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from lora_core.models import build_model, config_from_dict, save_pretrained
from trainers.config import RunConfig
from trainers.data.texts.reader import TextDataset
from trainers.experiment import run
from trainers.finished import FinishedRun, evaluate_run
from trainers.model import build
from trainers.results.vector_map import classifier_vectors
from trainers.run_folder import read_predictions
from trainers.serve import pipeline
from trainers.tasks import text
from trainers.tasks.classification import Classification

LABELS = ("DNA", "protein")


@pytest.fixture(scope="module")
def corpus(tiny, tmp_path_factory):
    """Texts in which one class of words abounds, the label; some are longer than the model's limit."""
    folder = tmp_path_factory.mktemp("texts")
    random = np.random.default_rng(5)
    for split, count in {"train": 40, "test": 12}.items():
        rows = []
        for number in range(count):
            label = LABELS[number % 2]
            kinds = random.choice([label, "O"], 30 if number < 3 else random.integers(3, 12), p=[0.7, 0.3])
            rows.append({"text": " ".join(random.choice(tiny.WORDS[kind]) for kind in kinds), "label": label})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def text_checkpoint(tiny, tmp_path_factory):
    """A random text classifier whose frozen weights are large enough to pass on what the words are."""
    folder = tiny.write_checkpoint(tmp_path_factory.mktemp("text_model"))
    model = build_model(tiny.build().config, "text-classification", LABELS, seed=1)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "classifier" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    save_pretrained(model, folder)
    return folder


@pytest.fixture
def config(text_checkpoint, corpus, tmp_path):
    return RunConfig(
        task="text-classification", model=str(text_checkpoint), data=str(corpus), output_dir=tmp_path / "run",
        batch_size=8, epochs=8, learning_rate=0.01, hidden_dropout=0.0, lora_dropout=0.0, r=4, lora_alpha=16.0,
        target_modules=("all-linear",),
    )  # fmt: skip


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_learns_and_is_found_again(config, method):
    config = dataclasses.replace(config, method=method)
    finished = run(config)
    logged = finished.result["test"]
    assert finished.result["labels"] == list(LABELS)
    assert logged["accuracy"] >= 0.8
    assert set(logged["types"]) == set(LABELS)
    assert evaluate_run(config.output_dir) == logged
    assert evaluate_run(config.output_dir, split="validation") == finished.result["validation"]
    predicted, gold = map(np.concatenate, read_predictions(config.output_dir, "test"))
    assert gold.tolist() == [0, 1] * 6
    assert np.mean(predicted == gold) == logged["accuracy"]
    folder = config.output_dir / ("adapter" if method == "lora" else "best")
    expected = Tokenizer.from_file(f"{config.model}/tokenizer.json").encode("nfkb gene").ids
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode("nfkb gene").ids == expected


def test_data_that_has_changed_since_is_said_where_it_is_scored(config, corpus, tmp_path, caplog):
    data = shutil.copytree(corpus, tmp_path / "data")
    config = dataclasses.replace(config, data=str(data), epochs=1)
    run(config)
    caplog.clear()
    for split in ("train", "validation", "test"):
        evaluate_run(config.output_dir, split=split)
    assert "is not what it was" not in caplog.text
    for path in data.glob("*.jsonl"):
        path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
    for split in ("validation", "test"):
        evaluate_run(config.output_dir, split=split)
        assert f"the {split} split is not what it was when {config.output_dir} began" in caplog.text
    caplog.clear()
    evaluate_run(config.output_dir, str(data))  # other data, by its name
    assert "is not what it was" not in caplog.text


def test_other_data_may_number_the_labels_in_another_order(config, tmp_path):
    finished = run(dataclasses.replace(config, epochs=1))
    folder = tmp_path / "other"
    folder.mkdir()
    lines = map(json.loads, Path(config.data, "test.jsonl").read_text().splitlines())
    rows = "".join(f'"{2 - LABELS.index(row["label"])}","{row["text"]}"\n' for row in lines)
    (folder / "test.csv").write_text(rows)
    (folder / "classes.txt").write_text("protein\nDNA\n")
    assert evaluate_run(config.output_dir, str(folder)) == finished.result["test"]
    (folder / "classes.txt").write_text("protein\nRNA\n")
    with pytest.raises(ValueError, match=r"test.csv has labels that are not among \['DNA', 'protein'\]: \['RNA'\]"):
        evaluate_run(config.output_dir, str(folder))


def test_long_texts_are_shortened_as_the_settings_say_and_it_is_reported(config, tiny, caplog):
    model = build(config, LABELS)
    words = [f"{letter}{letter}" for letter in "abcdefgh"] * 3  # two tokens each
    dataset = TextDataset([" ".join(words), "gene"], np.array([0, 1]), LABELS, "here")
    whole = Tokenizer.from_file(f"{config.model}/tokenizer.json").encode(dataset.texts[0]).ids
    for long_text, max_length, kept in (("head", None, "the beginning"), ("head_tail", 12, "half from each end")):
        caplog.clear()
        data = text.encode(dataset, model, dataclasses.replace(config, long_text=long_text, max_length=max_length))
        length = max_length or tiny.MAX_TOKENS
        tail = 0 if long_text == "head" else 5
        expected = whole[: length - 1 - tail] + whole[-1 - tail :]
        assert data.input_ids[: data.offsets[1]].tolist() == expected
        assert caplog.messages == [f"here: 1 of 2 texts exceed {length} tokens; {kept} is kept"]
    with pytest.raises(ValueError, match=r"max_length is 25, but .* has positions for 24 tokens"):
        text.encode(dataset, model, dataclasses.replace(config, max_length=25))


def test_texts_of_thousands_of_tokens_are_read_whole_and_it_is_said(config, tiny, caplog):
    fields = {"model_type": "modernbert", "vocab_size": len(tiny.VOCABULARY), "hidden_size": 16, "pad_token_id": 0,
              "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}  # fmt: skip
    model = build_model(config_from_dict(fields), "text-classification", LABELS)
    dataset = TextDataset(["gene " * 1500, "gene"], np.array([0, 1]), LABELS, "here")
    data = text.encode(dataset, model, config)
    assert data.lengths.tolist() == [1502, 3]
    (message,) = caplog.messages
    assert "here: the longest of the texts has 1502 tokens and is computed as a whole" in message
    assert message.endswith("--max-length 1024 bounds them.")
    caplog.clear()
    data = text.encode(dataset, model, dataclasses.replace(config, max_length=1024))
    assert data.lengths.tolist() == [1024, 3]
    assert caplog.messages == ["here: 1 of 2 texts exceed 1024 tokens; the beginning is kept"]


def test_texts_in_windows_learn_and_are_predicted_as_in_training(config):
    config = dataclasses.replace(config, long_text="windows", max_length=8, text_augment="eda", micro_batch_size=3,
                                 class_weights="balanced")  # fmt: skip
    finished = run(config)
    assert finished.result["test"]["accuracy"] >= 0.9
    assert evaluate_run(config.output_dir) == finished.result["test"]
    loaded = FinishedRun.open_fast(config.output_dir)
    dataset = loaded.split("test")
    probabilities = loaded.probabilities(dataset)
    data = text.encode(dataset, loaded.model, config)
    rows = data.cutter(data.input_ids[: data.offsets[1]])
    assert len(rows) > 1
    logits = [loaded.model(torch.from_numpy(row[None].astype(np.int64)))[0] for row in rows]
    expected = torch.stack(logits).mean(0).softmax(-1).detach().numpy()
    assert probabilities[0] == pytest.approx(expected, abs=1e-5)
    classify = pipeline("text-classification", config.output_dir, top_k=None, max_tokens=20)
    sizes = []
    classify.served.model.register_forward_pre_hook(
        lambda module, args, inputs: sizes.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    served = classify(dataset.texts)
    assert max(sizes) <= 20  # a text of five windows takes three batches
    found = [[{label["label"]: label["score"] for label in one}[name] for name in LABELS] for one in served]
    assert np.array(found) == pytest.approx(probabilities, abs=1e-5)
    assert classifier_vectors(loaded, dataset).shape == (12, 16)


def test_a_part_of_the_data(config):
    datasets = text.load(dataclasses.replace(config, train_examples=18, test_examples=6))
    assert {split: np.bincount(data.targets).tolist() for split, data in datasets.items()} == {
        "train": [9, 9], "validation": [1, 1], "test": [3, 3]}  # fmt: skip


def test_no_epochs_score_the_model_as_it_is(config):
    finished = run(dataclasses.replace(config, epochs=0, method="head"))
    assert finished.epochs == []
    assert finished.result["step"] == 0
    scores = evaluate_run(config.output_dir)
    assert scores == finished.result["test"]
    trained = run(dataclasses.replace(config, output_dir=config.output_dir.with_name("trained"), method="head"))
    assert trained.result["test"]["loss"] < scores["loss"]


def test_the_task_has_the_labels(config):
    assert text.task(LABELS, config) == Classification(LABELS)
