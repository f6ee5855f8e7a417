"""Tiny models, data and runs, for the tests of the trainers and for the processes that those tests start."""

import itertools
import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

import lora_core
from lora_core.models import build_model, config_from_dict, save_pretrained
from trainers.data.tokens.windows import IGNORED_LABEL, TokenWindows

LABELS = ("O", "B-protein", "I-protein", "B-DNA", "I-DNA")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = {
    "O": ["the", "of", "binds", "induces", "in", "cells", "and", "a"],
    "protein": ["nfkb", "il2", "junb", "receptor"],
    "DNA": ["promoter", "gene", "enhancer", "site"],
}
VOCABULARY = [
    *SPECIAL,
    *(word for words in WORDS.values() for word in words),
    *"abcdefgh",
    *(f"##{c}" for c in "abcdefgh"),
]
MAX_TOKENS = 24


def build(dropout: float = 0.0, *, lora: bool = False, seed: int = 0):
    """A random two-layer BERT for LABELS; with ``lora`` every bias is trained beside the adapters."""
    config = config_from_dict(
        {
            "model_type": "bert", "vocab_size": len(VOCABULARY), "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": MAX_TOKENS,
            "type_vocab_size": 1, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout,
        }
    )  # fmt: skip
    model = build_model(config, "token-classification", LABELS, seed=seed)
    if lora:
        torch.manual_seed(seed)
        lora_core.inject_lora(model, r=4, lora_dropout=dropout, bias="all")
    return model


def windows(count: int, seed: int = 0) -> TokenWindows:
    """Random windows of 4 to 20 tokens, each its own sentence, of which 1 to all words are labelled."""
    random = np.random.default_rng(seed)
    lengths = random.integers(4, 21, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    input_ids = random.integers(len(SPECIAL), len(VOCABULARY), offsets[-1]).astype(np.int32)
    labels = np.full(offsets[-1], IGNORED_LABEL, dtype=np.int64)
    word_ids = np.full(offsets[-1], -1, dtype=np.int32)
    for start, end in itertools.pairwise(offsets):
        words = np.arange(start + 1, end - 1)
        word_ids[words] = np.arange(len(words))
        # Most windows have few labels and some have many, so a mean per micro-batch is far from the whole mean.
        labelled = random.choice(words, 1 if random.random() < 0.6 else len(words), replace=False)
        labels[labelled] = input_ids[labelled] % len(LABELS)
    return TokenWindows(input_ids, labels, word_ids, offsets, np.arange(count, dtype=np.int32), pad_token_id=0)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def write_checkpoint(folder: Path) -> Path:
    """A random encoder with a tokenizer whose words are mostly one piece, in the transformers layout."""
    save_pretrained(build(dropout=0.1), folder)
    ids = {piece: index for index, piece in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_data(folder: Path) -> Path:
    """Data in the tner layout whose words tell their tags; one sentence is longer than the model's windows."""
    folder.mkdir()
    random = np.random.default_rng(3)
    for split, count in {"train": 21, "valid": 9, "test": 9}.items():
        rows = []
        for number in range(count):
            tokens, tags = [], []
            for _ in range(30 if number == 1 else random.integers(2, 10)):
                kind = random.choice(["O", "O", "protein", "DNA"])
                tokens.append(str(random.choice(WORDS[kind])))
                tags.append(LABELS.index("O" if kind == "O" else f"B-{kind}"))
            rows.append(json.dumps({"tokens": tokens, "tags": tags}))
        (folder / f"{split}.json").write_text("\n".join(rows) + "\n")
    (folder / "label.json").write_text(json.dumps({label: index for index, label in enumerate(LABELS)}))
    return folder


def arguments(checkpoint: Path, data: Path, output_dir: Path, *more: str) -> list[str]:
    """The command line of a short run with all kinds of dropout."""
    return ["train", "--model", str(checkpoint), "--data", str(data), "--output-dir", str(output_dir),
            "--epochs", "3", "--batch-size", "4", "--learning-rate", "0.01", "--hidden-dropout", "0.1",
            "--lora-dropout", "0.1", "--attention-dropout", "0.1", "--metric", "loss", *more]  # fmt: skip
