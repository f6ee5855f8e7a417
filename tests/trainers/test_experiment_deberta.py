"""DeBERTa from the command line to the served file, with a tokenizer like its own: SentencePiece's unigrams, and fewer
tokens than the model has embeddings."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing

from lora_core.models import build_model, config_from_dict, save_pretrained
from trainers.cli import main
from trainers.serve import pipeline
from trainers.serve.entities import TokenPipeline

SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")


@pytest.fixture(scope="module")
def deberta(tiny, tmp_path_factory):
    """The folder of a tiny DeBERTa-v3."""
    folder = tmp_path_factory.mktemp("deberta")
    words = [word for kind in tiny.WORDS.values() for word in kind]
    letters = sorted({letter for word in words for letter in word})
    scores = [*((f"▁{word}", -4.0) for word in words), ("▁", -5.0), *((letter, -8.0) for letter in letters)]
    tokenizer = Tokenizer(Unigram([*((token, 0.0) for token in SPECIAL), *scores], unk_id=3))
    tokenizer.pre_tokenizer, tokenizer.decoder = Metaspace(), MetaspaceDecoder()
    ends = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
    tokenizer.add_special_tokens(list(SPECIAL))
    values = {
        "model_type": "deberta-v2", "vocab_size": tokenizer.get_vocab_size() + 9, "hidden_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": tiny.MAX_TOKENS, "relative_attention": True, "pos_att_type": "p2c|c2p",
        "position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False,
        "type_vocab_size": 0, "pad_token_id": 0,
    }  # fmt: skip
    save_pretrained(build_model(config_from_dict(values)), folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_words_are_trained_exported_and_served(tiny, deberta, data, tmp_path, capsys):
    run = tmp_path / "run"
    main(tiny.arguments(deberta, data, run, "--target-modules", "all-linear", "--epochs", "6"))
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [event["validation"]["loss"] for event in events if event["event"] == "epoch"]
    assert min(losses) < 0.8 * losses[0]
    main(["export", str(run), "--points-lost", "5"])
    assert "logits within" in capsys.readouterr().out
    words = [["the", "il2", "gene"], ["junb"] * 40, ["unheard", "of"]]
    expected = word_predictions(run, words)
    for file, tolerance in (("model.onnx", 1e-5), ("model.int8.onnx", 0.1)):
        for (ids, scores), (_, found) in zip(expected, word_predictions(run / file, words), strict=True):
            assert len(ids) == len(found)
            np.testing.assert_allclose(found, scores, atol=tolerance)


def word_predictions(model, words):
    served = pipeline("ner", model)
    assert isinstance(served, TokenPipeline)
    return served.word_predictions(words)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_texts_are_trained_with_their_pooler_and_served(tiny, deberta, tmp_path, precision):
    random = np.random.default_rng(5)
    for split, count in {"train": 24, "valid": 10, "test": 12}.items():
        rows = []
        for number in range(count):
            kind = ("DNA", "protein")[number % 2]
            words = random.choice(tiny.WORDS[kind] + tiny.WORDS["O"], random.integers(3, 30))
            rows.append(json.dumps({"text": " ".join(words), "label": kind}))
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    run = tmp_path / "run"
    main(["train", "--task", "text-classification", "--model", str(deberta), "--data", str(tmp_path), "--output-dir",
          str(run), "--epochs", "4", "--batch-size", "4", "--learning-rate", "0.01",
          "--precision", precision])  # fmt: skip
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert set(config["modules_to_save"]) == {"pooler", "classifier"}
    main(["export", str(run), "--points-lost", "20"])
    texts = ["promoter gene binds", "il2 receptor", "site enhancer the a of gene"]
    expected = [(found["label"], found["score"]) for found in pipeline("text-classification", run)(texts)]
    served = pipeline("text-classification", run / "model.onnx")(texts)
    assert [found["label"] for found in served] == [label for label, _ in expected]
    np.testing.assert_allclose([found["score"] for found in served], [score for _, score in expected], atol=1e-5)
