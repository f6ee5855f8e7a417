"""A run on pairs of texts, from a file to an int8 file that serves."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers

from lora_core.export import OnnxModel, export_onnx, quantize_onnx
from lora_core.kernels.fused import fuse
from lora_core.models import build_model, load_pretrained, save_pretrained
from trainers.config import RunConfig
from trainers.experiment import run
from trainers.finished import FinishedRun, evaluate_run
from trainers.report.page import write_report
from trainers.results.errors import analyse
from trainers.serve import pipeline
from trainers.serve.export import export_run
from trainers.tasks import text

LABELS = ("no", "yes")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Pairs whose label is whether the second text is the first: what neither text tells alone."""
    folder = tmp_path_factory.mktemp("pairs")
    random = np.random.default_rng(0)
    for split, count in (("train", 48), ("dev", 12), ("test", 12)):
        lines = ["id,question,sentence,label"]
        for number in range(count):
            one = random.choice(["gene", "promoter"])
            other = one if number % 2 else {"gene": "promoter", "promoter": "gene"}[one]
            lines.append(f"{number},the {one},a {other},{LABELS[number % 2]}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    """A random BERT that has two segments."""
    folder = tiny.write_checkpoint(tmp_path_factory.mktemp("pair_model"))
    config = dataclasses.replace(tiny.build().config, type_vocab_size=2)
    model = build_model(config, "text-classification", LABELS, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "classifier" not in name:
                parameter.normal_(0, 0.2, generator=generator)
    save_pretrained(model, folder)
    return folder


@pytest.fixture(scope="module")
def finished(checkpoint, corpus, tmp_path_factory):
    config = RunConfig(
        task="text-classification", model=str(checkpoint), data=str(corpus), method="full", batch_size=8, epochs=25,
        learning_rate=0.003, hidden_dropout=0.0, output_dir=tmp_path_factory.mktemp("pair_run") / "run",
    )  # fmt: skip
    return run(config)


def test_a_run_learns_from_both_texts(finished):
    assert finished.result["test"]["accuracy"] >= 0.9
    assert evaluate_run(finished.folder) == finished.result["test"]
    loaded = FinishedRun.open(finished.folder)
    assert text.shown(loaded.split("test"), 0).split(" || ")[1].startswith("a ")
    assert write_report(finished.folder).stat().st_size
    with pytest.raises(ValueError, match="read pairs of texts: the analysis of words is for single texts"):
        analyse(loaded)
    assert json.loads((loaded.weights_folder / "text_processing.json").read_text())["pairs"] is True


def test_pairs_are_predicted_in_every_form_and_file(finished):
    export_run(finished.folder, points_lost=50)
    pairs = [("the gene", "a gene"), ("the promoter", "a gene"), ("the gene", "a promoter")]
    loaded = FinishedRun.open(finished.folder)
    tokens = transformers.PreTrainedTokenizerFast(tokenizer_file=str(loaded.weights_folder / "tokenizer.json"),
                                                  pad_token="[PAD]")  # fmt: skip
    oracle = transformers.AutoModelForSequenceClassification.from_pretrained(loaded.weights_folder).eval()
    inputs = tokens([a for a, _ in pairs], [b for _, b in pairs], padding=True, return_tensors="pt",
                    return_token_type_ids=True)  # fmt: skip
    with torch.no_grad():
        expected = oracle(**inputs).logits.softmax(-1).numpy()
    for file, near in ((finished.folder, 1e-5), (finished.folder / "model.onnx", 1e-4),
                       (finished.folder / "model.int8.onnx", 0.2)):  # fmt: skip
        classify = pipeline("text-classification", file, top_k=None)
        for given in (pairs, [{"text": a, "text_pair": b} for a, b in pairs]):
            found = classify(given)
            scores = [[{one["label"]: one["score"] for one in each}[label] for label in LABELS] for each in found]
            assert np.array(scores) == pytest.approx(expected, abs=near)
        assert classify(pairs[0]) == classify({"text": pairs[0][0], "text_pair": pairs[0][1]})
        for single in ("the gene", ["the gene", "a gene"], {"text": "the gene"}):
            with pytest.raises(ValueError, match="was trained on pairs of texts"):
                classify(single)
        with pytest.raises(ValueError, match="some inputs are pairs"):
            classify([pairs[0], "the gene"])


def test_settings_for_single_texts_are_refused(checkpoint, corpus, tmp_path):
    config = RunConfig(task="text-classification", model=str(checkpoint), data=str(corpus), output_dir=tmp_path / "r")
    for name, value in (("long_text", "windows"), ("text_augment", "eda")):
        with pytest.raises(ValueError, match=f"{name} is {value}, which is for single texts; .*train.csv holds pairs"):
            run(dataclasses.replace(config, **{name: value}))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_logits_of_pairs_are_those_of_transformers_plain_fused_and_exported(family, tmp_path):
    sizes = {"vocab_size": 50, "max_position_embeddings": 20, "hidden_size": 24, "num_hidden_layers": 2,
             "num_attention_heads": 3, "intermediate_size": 40}  # fmt: skip
    if family == "distilbert":
        sizes = {"vocab_size": 50, "max_position_embeddings": 20, "dim": 24, "n_layers": 2, "n_heads": 3,
                 "hidden_dim": 40}  # fmt: skip
    settings = transformers.AutoConfig.for_model(family, **sizes, id2label=dict(enumerate(LABELS)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        oracle = transformers.AutoModelForSequenceClassification.from_config(settings).eval()
        for parameter in oracle.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    oracle.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, "text-classification").eval()
    ids = torch.randint(5, 50, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(12) < torch.tensor([12, 9, 5])[:, None]).long()
    inputs = {"input_ids": torch.where(mask == 1, ids, model.config.pad_token_id), "attention_mask": mask}
    segments = family == "bert"
    assert model.base_model.segments == (2 if segments else 1)
    if segments:
        inputs["token_type_ids"] = (torch.arange(12) > 3).long() * mask
    with torch.no_grad():
        expected = oracle(**inputs).logits
        assert torch.allclose(model(**inputs), expected, atol=1e-5)
        if segments:
            assert (model(**{**inputs, "token_type_ids": None}) - expected).abs().max() > 0.01
        assert torch.allclose(fuse(model)(**inputs), expected, atol=1e-5)
    file = export_onnx(model, tmp_path / "model.onnx", segments=segments)
    assert torch.allclose(OnnxModel(file)(**inputs), expected, atol=1e-4)
    int8 = OnnxModel(quantize_onnx(file, tmp_path / "model.int8.onnx"))(**inputs)
    assert (int8 - expected).abs().max() < 0.3 * expected.abs().max()
    if segments:
        with pytest.raises(ValueError, match="token_type_ids has the shape"):
            OnnxModel(file)(**{**inputs, "token_type_ids": inputs["token_type_ids"] + 1})
    else:
        with pytest.raises(ValueError, match="takes input_ids, attention_mask"):
            OnnxModel(file)(**inputs, token_type_ids=mask)
