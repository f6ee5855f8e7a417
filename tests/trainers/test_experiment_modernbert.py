"""ModernBERT from the command line to served files, with a byte-level tokenizer as its checkpoints have it."""

import json
import logging

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from lora_core.export import fused_counts, read_metadata
from trainers.cli import main
from trainers.serve import pipeline

SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    """A random model for masked words, written by transformers, with its tokenizer.json and tokenizer_config.json."""
    folder = tmp_path_factory.mktemp("modernbert")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = [word for several in tiny.WORDS.values() for word in several]
    trainer = BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False,
                         initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator([" ".join(words), *words], trainer)
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )  # fmt: skip
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 64, "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]",
                    "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "mask_token": "[MASK]",
                    "model_input_names": ["input_ids", "attention_mask"]})
    )  # fmt: skip
    config = transformers.ModernBertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=8192, local_attention=8, classifier_pooling="mean",
        pad_token_id=ids["[PAD]"], bos_token_id=ids["[CLS]"], eos_token_id=ids["[SEP]"], cls_token_id=ids["[CLS]"],
        sep_token_id=ids["[SEP]"], initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.ModernBertForMaskedLM(config).save_pretrained(folder)
    return folder


def test_a_tagger_is_trained_exported_and_served(tiny, checkpoint, data, tmp_path, caplog):
    run = tmp_path / "run"
    with caplog.at_level(logging.INFO, logger="trainers"):
        main(tiny.arguments(checkpoint, data, run, "--target-modules", "attention"))
    assert "read in at most 64 tokens at a time" in caplog.text
    main(["export", str(run), "--points-lost", "100"])
    for name in ("model.onnx", "model.int8.onnx"):
        facts = read_metadata(run / name)
        assert (facts["model_type"], facts["max_tokens"]) == ("modernbert", "8192")
        assert fused_counts(run / name)["attention"] == 4
    words = [["the", "il2", "gene"], ["junb"] * 40, ["a"]]
    expected = pipeline("ner", run).word_predictions(words)
    for name, tolerance in (("model.onnx", 1e-5), ("model.int8.onnx", 0.2)):
        found = pipeline("ner", run / name).word_predictions(words)
        for (_, scores), (_, other) in zip(expected, found, strict=True):
            np.testing.assert_allclose(other, scores, atol=tolerance)


def test_a_text_classifier_learns_and_gives_transformers_scores(tiny, checkpoint, tmp_path):
    random = np.random.default_rng(5)
    for split, count in {"train": 48, "valid": 16, "test": 16}.items():
        rows = []
        for number in range(count):
            kind = ("DNA", "protein")[number % 2]
            words = random.choice(tiny.WORDS[kind] + tiny.WORDS["O"], random.integers(3, 30))
            rows.append(json.dumps({"text": " ".join(words), "label": kind}))
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    run = tmp_path / "run"
    main(["train", "--task", "text-classification", "--model", str(checkpoint), "--data", str(tmp_path),
          "--output-dir", str(run), "--epochs", "12", "--batch-size", "8", "--learning-rate", "0.02", "--r", "4",
          "--method", "full", "--hidden-dropout", "0.05"])  # fmt: skip
    result = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert result["test"]["accuracy"] > 0.8
    texts = ["the receptor binds", "a promoter", "in cells " * 12]
    ours = pipeline("text-classification", run, top_k=None)
    theirs = transformers.pipeline("text-classification", str(run / "best"), top_k=None)
    for text in texts:
        expected = {found["label"]: found["score"] for found in theirs([text])[0]}
        found = {found["label"]: found["score"] for found in ours(text)}
        assert found == pytest.approx(expected, abs=1e-5)
